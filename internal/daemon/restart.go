package daemon

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// noPreemption keeps Go's runtime from interrupting goroutines with signals. The
// registers of an interrupted goroutine are written to memory that is not
// overwritten, and 16 octets of a PIN fit into one. The runtime reads this setting
// from the environment only, at the start.
const noPreemption = "asyncpreemptoff=1"

// withoutPreemption starts the program again in its own place, with its process ID
// and its descriptors, unless that was done already. It returns where that is not
// possible. Programs that the agent starts get the GODEBUG that it was started with.
func withoutPreemption(sys *term.System) {
	environ := slices.DeleteFunc(slices.Clone(sys.Environ), func(entry string) bool { return strings.HasPrefix(entry, "GODEBUG=") })
	own, done := strings.CutSuffix(sys.Getenv("GODEBUG"), noPreemption)
	if done {
		sys.Environ = environ
		if own = strings.TrimSuffix(own, ","); own != "" {
			sys.Environ = append(sys.Environ, "GODEBUG="+own)
		}
		return
	}
	program, err := os.Executable()
	if err != nil {
		return
	}
	if own != "" {
		own += ","
	}
	_ = unix.Exec(program, os.Args, append(environ, "GODEBUG="+own+noPreemption))
}
