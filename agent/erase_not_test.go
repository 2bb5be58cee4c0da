//go:build !goexperiment.runtimesecret

package agent

const eraseAll = false
