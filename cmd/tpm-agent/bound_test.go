package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// TestInspectChangedPCR checks that inspect names a PCR that has changed since the
// key was made, and what the user can do.
func TestInspectChangedPCR(t *testing.T) {
	t.Parallel()
	sw := tpmtest.Start(t)
	file := filepath.Join(t.TempDir(), "id")
	run := func(args ...string) string {
		t.Helper()
		out, err := program(t, append([]string{"--tpm", sw.Address()}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("keygen", "-N", "", "--pcr", "7", "-f", file)
	if out := run("inspect", file+".tpm"); !strings.Contains(out, "they match\n") {
		t.Errorf("inspect does not report a match:\n%s", out)
	}
	sw.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat("5a", 32))
	if out := run("keygen", "-N", "", "--pcr", "7", "-f", file+"2"); strings.Contains(out, "warning") {
		t.Errorf("keygen with a PCR that is in use warns:\n%s", out)
	}
	out := run("inspect", file+".tpm")
	for _, want := range []string{
		"PCRs now:      they do not match: PCR 7 (sha256) has changed since the key was made\n",
		"way out:       the PCR values (7: secure boot and its keys) differ from",
		"can be used:   yes\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect does not say %q:\n%s", want, out)
		}
	}
	if out := run("inspect", "--json", file+".tpm"); !strings.Contains(out, `"match": false`) {
		t.Errorf("inspect --json does not report a mismatch:\n%s", out)
	}
}
