//go:build goexperiment.runtimesecret

package softkey

import (
	"runtime"
	"runtime/secret"
)

// erasing calls f and has the runtime erase what f leaves behind: registers and
// stack at once, the heap when the garbage collector frees it. This covers the
// numbers that the standard library computes with, which no other code reaches.
func erasing(f func()) { secret.Do(f) }

// Collect starts a garbage collection, which an idle agent might otherwise not
// run for minutes.
func Collect() { go runtime.GC() }
