package daemon

import (
	"slices"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// TestChildrenGetOwnGODEBUG checks that an agent that was started without preemption
// passes on the setting that its user has made, or none.
func TestChildrenGetOwnGODEBUG(t *testing.T) {
	t.Parallel()
	for given, want := range map[string][]string{
		noPreemption:                           {"HOME=/h"},
		"gctrace=1," + noPreemption:            {"HOME=/h", "GODEBUG=gctrace=1"},
		"madvdontneed=1,x=y,asyncpreemptoff=1": {"HOME=/h", "GODEBUG=madvdontneed=1,x=y"},
	} {
		sys := &term.System{Environ: []string{"GODEBUG=" + given, "HOME=/h"}}
		withoutPreemption(sys)
		if !slices.Equal(sys.Environ, want) {
			t.Errorf("%s: children get %q, want %q", given, sys.Environ, want)
		}
	}
}
