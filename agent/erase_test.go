//go:build goexperiment.runtimesecret

package agent

// eraseAll says that this build erases temporaries, too.
const eraseAll = true
