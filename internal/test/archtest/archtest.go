// Package archtest checks the architecture: which package may import which,
// how large it may be, and what may stand at package level.
//
// The tests parse the source files instead of asking go list. Files behind a
// build tag or for another system obey the same rules. The package has no code
// of its own.
package archtest
