//go:build !goexperiment.runtimesecret

package softkey

const eraseAll = false
