//go:build goexperiment.runtimesecret

package agent

import (
	"runtime"
	"runtime/secret"
)

// erasing calls f and has the runtime erase what f leaves behind: registers
// and stack at once, the heap when the garbage collector has seen that nobody
// uses it any more. So nothing is left of the numbers that the standard
// library computes with, and that nobody else can reach.
func erasing(f func()) { secret.Do(f) }

// collect has the garbage collector see it soon. An agent that nobody uses
// might not collect for minutes.
func collect() { go runtime.GC() }
