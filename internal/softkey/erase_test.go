//go:build goexperiment.runtimesecret

package softkey

// eraseAll is whether this build erases temporaries, too.
const eraseAll = true
