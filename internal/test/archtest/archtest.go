// Package archtest holds the shape of the house as tests: which package may
// import which, and what may stand at package level.
//
// The tests read the source files themselves and not the answer of go list, so
// that a file behind a build tag or for another system is held to the same
// rules. The package has no code of its own.
package archtest
