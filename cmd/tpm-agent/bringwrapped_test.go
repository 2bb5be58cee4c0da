package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// wrappedFor makes a key with a PIN in home, wrapped for a TPM.
func wrappedFor(t *testing.T, tpm *tpmtest.SWTPM, home, name, pin string) {
	t.Helper()
	out, err := programIn(t, home, "srk", "--tpm", tpm.Address()).Output()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(home, "srk"), out)
	if out, err := programIn(t, home, "keygen", "-q", "--for", "srk", "-N", pin, "-f", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// programIn returns a command that runs tpm-agent in the directory home.
func programIn(t *testing.T, home string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := program(t, args...)
	cmd.Dir = home
	cmd.Env = append(cmd.Env, "HOME="+home, "XDG_STATE_HOME="+home+"/state")
	return cmd
}

// TestImportWrappedLastTry checks that import does not use the last try before a
// lockout for the PIN of a wrapped key unless the user says yes.
func TestImportWrappedLastTry(t *testing.T) {
	t.Parallel()
	tpm := tpmtest.Start(t)
	home := program(t).Dir
	wrappedFor(t, tpm, home, "id", "1234")
	run := func(input string, args ...string) (string, int) {
		cmd := programIn(t, home, append(args, "--tpm", tpm.Address(), "id.wrapped.tpm")...)
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		return string(out), status(t, err)
	}
	counter := func() int {
		lo, err := tpm.Lockout()
		if err != nil {
			t.Fatal(err)
		}
		return int(lo.Counter)
	}
	for range 2 { // of three
		if out, code := run("", "import", "-P", "4321"); code != 1 || !strings.Contains(out, "wrong PIN") {
			t.Fatalf("status %d: %s", code, out)
		}
	}
	before := counter()
	for _, test := range []struct {
		input string
		args  []string
	}{
		{"", []string{"-P", "4321"}},
		{"no\n", []string{"-P", "4321"}},
		{"\n", nil},
	} {
		out, code := run(test.input, append([]string{"import"}, test.args...)...)
		if code != 1 || !strings.Contains(out, "One more wrong PIN locks the TPM.") {
			t.Errorf("%q, %q: status %d: %s", test.args, test.input, code, out)
		}
	}
	if n := counter(); n != before {
		t.Errorf("the TPM has counted %d wrong PINs, want %d", n, before)
	}
	if out, code := run("yes\n1234\n", "import", "-q"); code != 0 {
		t.Errorf("status %d: %s", code, out)
	}
}

// TestImportWrappedNewTPM checks that import does not give the PIN of a wrapped key
// to a TPM that has replaced the remembered one without --new-tpm.
func TestImportWrappedNewTPM(t *testing.T) {
	t.Parallel()
	tpm := tpmtest.Start(t)
	home := program(t).Dir
	if out, err := programIn(t, home, "keygen", "-q", "-N", "", "-f", "old", "--tpm", tpm.Address()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tpm.Replace()
	wrappedFor(t, tpm, home, "id", "1234")
	args := []string{"import", "-q", "-P", "1234", "--tpm", tpm.Address(), "id.wrapped.tpm"}
	before := list(t, home)
	out, err := programIn(t, home, args...).CombinedOutput()
	if code := status(t, err); code != 1 || !bytes.Contains(out, []byte("another TPM, or was cleared")) || !bytes.Contains(out, []byte("--new-tpm")) {
		t.Errorf("status %d: %s", code, out)
	}
	if files := list(t, home); len(files) != len(before) {
		t.Errorf("import left the files %q", files)
	}
	if out, err := programIn(t, home, append(args, "--new-tpm")...).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if left, err := tpm.Leftovers(); err != nil || len(left) > 0 {
		t.Errorf("left in the TPM: %q, %v", left, err)
	}
}
