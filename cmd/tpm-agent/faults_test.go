package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// program returns a command that runs tpm-agent in a new home with the software TPM.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	needs.Programs(t, "swtpm", "ssh-keygen")
	path, err := exec.LookPath("tpm-agent") // the test binary: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	cmd := exec.Command(path, args...)
	cmd.Dir = home
	cmd.Env = []string{
		"HOME=" + home, "XDG_RUNTIME_DIR=" + home, "XDG_STATE_HOME=" + home,
		"PATH=" + os.Getenv("PATH"), "TPM_AGENT_TPM=software", "SHELL=/bin/sh", "GOCOVERDIR=" + os.Getenv("GOCOVERDIR"),
		"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus",
	}
	return cmd
}

// TestKeygenFullDisk checks that keygen on a disk that is too small saves both files
// or none.
func TestKeygenFullDisk(t *testing.T) {
	t.Parallel()
	full, done := 0, 0
	for pages := range 6 {
		dir := needs.SmallDisk(t, pages)
		cmd := program(t, "keygen", "-N", "", "-C", "here", "-f", filepath.Join(dir, "id"))
		out, err := cmd.CombinedOutput()
		if err == nil {
			done++
			checkKey(t, filepath.Join(dir, "id"))
			continue
		}
		full++
		if !strings.Contains(string(out), "no space left on device") || !strings.Contains(string(out), "hint: nothing was saved") {
			t.Errorf("%d pages: keygen reports %s", pages, out)
		}
		if files := list(t, dir); len(files) != 1 {
			t.Errorf("%d pages: left behind %q", pages, files)
		}
	}
	if full < 2 || done < 1 {
		t.Errorf("%d disks were too small and %d were large enough: the test needs both", full, done)
	}
}

// list returns the names of the files in a directory.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// checkKey fails the test unless both files exist, are complete, and belong to the
// same key.
func checkKey(t *testing.T, file string) {
	t.Helper()
	key, err := keyfile.ReadFile(file + ".tpm")
	if err != nil {
		t.Error(err)
		return
	}
	want, err := ssh.NewPublicKey(key.Public.Key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Error(err)
		return
	}
	if !bytes.Equal(data, inspect.AuthorizedKey(want, "here")) {
		t.Errorf("%s.pub is %q", file, data)
	}
}

// TestKeygenReadOnlyDisk checks that keygen reports a read-only file system.
func TestKeygenReadOnlyDisk(t *testing.T) {
	t.Parallel()
	dir := needs.SmallDisk(t, 4)
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	out, err := program(t, "keygen", "-N", "", "-f", filepath.Join(dir, "id")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "read-only file system") || !strings.Contains(string(out), "hint: the file system is mounted read-only") {
		t.Errorf("%v, says %s", err, out)
	}
}

// TestKeygenKilled kills keygen at many moments, and checks that the files it has
// written are complete.
func TestKeygenKilled(t *testing.T) {
	t.Parallel()
	const times = 16
	begin := time.Now()
	if out, err := program(t, "keygen", "-q", "-N", "", "-C", "here", "-f", "id").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	whole := time.Since(begin)
	killed, done := 0, 0
	for n := range times {
		delay := whole * time.Duration(n) * 5 / (times * 4)
		cmd := program(t, "keygen", "-q", "-N", "", "-C", "here", "-f", "id")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay) // any moment will do; the test waits for no event
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err != nil {
			killed++
		} else {
			done++
		}
		checkRemains(t, cmd.Dir)
	}
	t.Logf("%d runs were killed, %d had ended before", killed, done)
}

// checkRemains fails the test if a file is incomplete, or if there is a public key
// without its private key. keygen must save the private key first.
func checkRemains(t *testing.T, dir string) {
	t.Helper()
	private, public := filepath.Join(dir, "id.tpm"), filepath.Join(dir, "id.pub")
	_, noPrivate := os.Lstat(private)
	_, noPublic := os.Lstat(public)
	switch {
	case noPrivate == nil && noPublic == nil:
		checkKey(t, filepath.Join(dir, "id"))
	case noPrivate == nil:
		if _, err := keyfile.ReadFile(private); err != nil {
			t.Error(err)
		}
	case noPublic == nil:
		t.Error("there is a public key without its private one")
	}
}

// TestKeygenInterrupted sends SIGINT to keygen at many moments, and checks that
// keygen leaves nothing in a TPM without a resource manager.
func TestKeygenInterrupted(t *testing.T) {
	t.Parallel()
	tpm := tpmtest.Start(t)
	for delay := time.Duration(0); delay < 30*time.Millisecond; delay += 2 * time.Millisecond {
		cmd := program(t, "--tpm", tpm.Address(), "keygen", "-N", "1234", "-C", "here", "-f", "id")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay)
		_ = cmd.Process.Signal(os.Interrupt)
		err := cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() != 130 && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
			t.Errorf("after %v: %v: %s", delay, err, out.String())
		}
		checkRemains(t, cmd.Dir)
		if left, err := tpm.Leftovers(); err != nil || len(left) > 0 {
			t.Errorf("after %v: left in the TPM: %q, %v", delay, left, err)
		}
	}
}

// TestTPMHints checks the errors and hints for an address without a TPM.
func TestTPMHints(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--tpm", "device:/dev/null", "keygen", "-N", "", "-f", "id"}, "tpm-agent: making the key: "},
		{[]string{"--tpm", "swtpm:path=/nowhere/sock", "keygen", "-N", "", "-f", "id"}, "hint: choose the TPM with --tpm or "},
	} {
		out, err := program(t, test.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), test.want) {
			t.Errorf("%q: %v: %s", test.args, err, out)
		}
	}
}

// write writes a file that only its owner can read.
func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
