package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// program is a run of tpm-agent in a home of its own, with the software TPM.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
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

// TestFullDisk makes keys on disks with less and less room. Either both files
// are there in the end, or none.
func TestFullDisk(t *testing.T) {
	full, done := 0, 0
	for pages := range 6 {
		dir := smallDisk(t, pages)
		cmd := program(t, "keygen", "-N", "", "-C", "here", "-f", filepath.Join(dir, "id"))
		out, err := cmd.CombinedOutput()
		if err == nil {
			done++
			checkKey(t, filepath.Join(dir, "id"))
			continue
		}
		full++
		if !strings.Contains(string(out), "no space left on device") || !strings.Contains(string(out), "hint: nothing was kept") {
			t.Errorf("%d pages: says %s", pages, out)
		}
		if files := list(t, dir); len(files) != 1 {
			t.Errorf("%d pages: left behind %q", pages, files)
		}
	}
	if full < 2 || done < 1 {
		t.Errorf("%d disks were too small, %d were not: the test did not see both", full, done)
	}
}

// smallDisk is a file system with room for that many pages.
func smallDisk(t *testing.T, pages int) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size="+strconv.Itoa((pages+1)*os.Getpagesize()))
	if errors.Is(err, syscall.EPERM) {
		t.Skip("only root can make a small disk")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, os.Getpagesize()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

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

// checkKey fails unless both files are there, whole, and of the same key.
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
	if !bytes.Equal(data, authorizedKey(want, "here")) {
		t.Errorf("%s.pub is %q", file, data)
	}
}

// TestReadOnlyDisk: the reason is named, nothing is changed.
func TestReadOnlyDisk(t *testing.T) {
	dir := smallDisk(t, 4)
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	out, err := program(t, "keygen", "-N", "", "-f", filepath.Join(dir, "id")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "read-only file system") || !strings.Contains(string(out), "hint: the file system is mounted read-only") {
		t.Errorf("%v, says %s", err, out)
	}
}

// TestKilled ends keygen at many moments by SIGKILL. A file that is there is
// whole; and what is there is no obstacle to the next one.
func TestKilled(t *testing.T) {
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
		time.Sleep(delay) // a moment, not an event: any will do
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err != nil {
			killed++
		} else {
			done++
		}
		checkRemains(t, cmd.Dir)
	}
	t.Logf("%d were killed, %d were done before", killed, done)
}

// checkRemains fails for a file that is not whole. The private key comes first:
// a public key alone would be a lie.
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

// TestInterrupted ends keygen by SIGINT while it works in a TPM that nobody
// cleans up. Nothing may be left in it: tpmtest looks.
func TestInterrupted(t *testing.T) {
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

// What is wrong with the TPM is said in the terms of the address.
func TestHints(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--tpm", "device:/dev/null", "keygen", "-N", "", "-f", "id"}, "tpm-agent: making the key: "},
		{[]string{"--tpm", "swtpm:path=/nowhere/sock", "keygen", "-N", "", "-f", "id"}, "hint: --tpm or "},
	} {
		out, err := program(t, test.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), test.want) {
			t.Errorf("%q: %v: %s", test.args, err, out)
		}
	}
}
