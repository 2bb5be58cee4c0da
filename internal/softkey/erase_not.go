//go:build !goexperiment.runtimesecret

package softkey

// erasing calls f. What f leaves on stack and heap is not erased but reused;
// see erase.go for builds with GOEXPERIMENT=runtimesecret.
func erasing(f func()) { f() }

// Collect does nothing: only the other build erases memory on collection.
func Collect() {}
