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

// sshKey makes a key file with ssh-keygen and returns its public key.
func sshKey(t *testing.T, path, passphrase string) ssh.PublicKey {
	t.Helper()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ecdsa", "-N", passphrase, "-C", "here", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// checkImported fails the test unless path is the key file of the public key want.
func checkImported(t *testing.T, path string, want ssh.PublicKey) *keyfile.TPMKey {
	t.Helper()
	key, public, err := inspect.ReadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(public.Marshal(), want.Marshal()) {
		t.Errorf("%s is a different key", path)
	}
	return key
}

// TestImportOnTerminal checks that import does not show the passphrase, asks again
// after a wrong one, and does with it what the user chooses.
func TestImportOnTerminal(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answers []string // to the question what to do with the passphrase
		pin     string
	}{
		"kept":    {[]string{"\n"}, "s3cret"},
		"by name": {[]string{"what?\n", "KEEP\n"}, "s3cret"},
		"changed": {[]string{"c\n"}, "another"},
		"dropped": {[]string{"drop\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := program(t, "import", "id")
			public := sshKey(t, filepath.Join(cmd.Dir, "id"), "s3cret")
			s := sit(t, cmd)
			s.WaitFor("Enter passphrase for id: ")
			if s.Echoes() {
				t.Error("the terminal shows the passphrase")
			}
			s.Type("wrong\n")
			s.WaitFor("Wrong passphrase.  Try again.")
			s.WaitFor("Enter passphrase for id: ")
			s.Type("s3cret\n")
			for _, answer := range test.answers {
				s.WaitFor("keep the passphrase, change it, or drop it? (keep/change/drop) [keep]: ")
				s.Type(answer)
			}
			if test.pin == "another" {
				for _, question := range []string{"Enter PIN (empty for no PIN): ", "Enter same PIN again: "} {
					s.WaitFor(question)
					s.Type(test.pin + "\n")
				}
			}
			s.WaitFor("The old private key is still in id")
			s.ends(0)
			if key := checkImported(t, filepath.Join(cmd.Dir, "id.tpm"), public); key.EmptyAuth != (test.pin == "") {
				t.Errorf("the key has no PIN: %v, want %v", key.EmptyAuth, test.pin == "")
			}
			signsWith(t, cmd, test.pin)
		})
	}
}

// signsWith checks that the key id.tpm in the home of run signs with the PIN, and that
// the agent asks for a PIN only if there is one.
func signsWith(t *testing.T, run *exec.Cmd, pin string) {
	t.Helper()
	cmd := program(t, "serve", "--key-dir", ".", "--", "ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", "id.pub", "id.pub")
	askpass := filepath.Join(run.Dir, "askpass")
	script := "#!/bin/sh\n[ ! -e asked ] || exit 1\n: > asked\necho '" + pin + "'\n"
	if err := os.WriteFile(askpass, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	// Without the old key, ssh-keygen can ask only the agent.
	if err := os.Rename(filepath.Join(run.Dir, "id"), filepath.Join(run.Dir, "away")); err != nil {
		t.Fatal(err)
	}
	cmd.Dir, cmd.Env = run.Dir, append(run.Env, "SSH_ASKPASS="+askpass, "SSH_ASKPASS_REQUIRE=force")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(run.Dir, "id.pub.sig")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(run.Dir, "asked")); (err == nil) != (pin != "") {
		t.Errorf("the agent asked for a PIN: %v, want %v", err == nil, pin != "")
	}
}

// TestImportCancelled checks that three wrong passphrases, Ctrl-C and Ctrl-D end
// import and leave no files behind.
func TestImportCancelled(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		typed  []string
		status int
		says   string
	}{
		"wrong":  {[]string{"1\n", "2\n", "3\n"}, 1, "wrong passphrase"},
		"ctrl-c": {[]string{"\x03"}, 130, "interrupted"},
		"ctrl-d": {[]string{"\x04"}, 1, "refused at the prompt"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := program(t, "import", "id")
			sshKey(t, filepath.Join(cmd.Dir, "id"), "s3cret")
			s := sit(t, cmd)
			for _, typed := range test.typed {
				s.WaitFor("Enter passphrase for id: ")
				s.Type(typed)
			}
			s.WaitFor(test.says)
			s.ends(test.status)
			if files := list(t, s.cmd.Dir); len(files) != 2 {
				t.Errorf("there are %q", files)
			}
		})
	}
}

// TestImportWrappedOnTerminal checks that import does not show the PIN of a wrapped
// key, and asks again after a wrong one.
func TestImportWrappedOnTerminal(t *testing.T) {
	t.Parallel()
	cmd := program(t, "import", "id.wrapped.tpm")
	run := func(args ...string) []byte {
		other := exec.Command(cmd.Path, args...)
		other.Dir, other.Env = cmd.Dir, cmd.Env
		out, err := other.Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return out
	}
	if err := os.WriteFile(filepath.Join(cmd.Dir, "srk"), run("srk"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("keygen", "-q", "--for", "srk", "-N", "s3cret", "-f", "id")
	s := sit(t, cmd)
	s.WaitFor("Enter PIN for id.wrapped.tpm: ")
	if s.Echoes() {
		t.Error("the terminal shows the PIN")
	}
	s.Type("wrong\n")
	s.WaitFor("Wrong PIN. 2 tries left")
	s.WaitFor("Enter PIN for id.wrapped.tpm: ")
	s.Type("s3cret\n")
	s.WaitFor("Your public key is the same, in id.pub")
	s.WaitFor("Only this TPM can open it")
	s.ends(0)
	if _, _, err := inspect.ReadKey(filepath.Join(cmd.Dir, "id.tpm")); err != nil {
		t.Error(err)
	}
}

// TestImportFullDisk checks that import on a disk that is too small leaves the old key
// in place, and otherwise saves the new key completely.
func TestImportFullDisk(t *testing.T) {
	t.Parallel()
	full, done := 0, 0
	for _, option := range []string{"--quiet", "--retire", "--replace"} {
		for pages := range 6 {
			dir := needs.SmallDisk(t, pages+2)
			path := filepath.Join(dir, "id")
			public := sshKey(t, path, "")
			if err := os.Remove(path + ".pub"); err != nil {
				t.Fatal(err)
			}
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fill(t, dir, pages)
			cmd := program(t, "import", "--no-pin", option, path)
			state := filepath.Join(cmd.Dir, "tpm-agent", "retired")
			out, err := cmd.CombinedOutput()
			if err == nil {
				done++
				checkImportDone(t, option, path, public)
				continue
			}
			full++
			if !strings.Contains(string(out), "no space left on device") {
				t.Errorf("%s, %d pages: import reports %s", option, pages, out)
			}
			wantContent(t, path, string(old))
			if files := list(t, dir); len(files) != 3 {
				t.Errorf("%s, %d pages: import left the files %q", option, pages, files)
			}
			if files, err := os.ReadDir(state); err == nil && len(files) > 0 {
				t.Errorf("%s, %d pages: import left the retired keys %v", option, pages, files)
			}
		}
	}
	if full < 3 || done < 3 {
		t.Errorf("%d disks were too small and %d were large enough: the test needs both", full, done)
	}
}

// fill writes a file that leaves room for that many pages.
func fill(t *testing.T, dir string, pages int) {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	size := (int64(fs.Bavail) - int64(pages)) * fs.Bsize
	if err := os.WriteFile(filepath.Join(dir, "more"), make([]byte, max(size, 0)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkImportDone checks the files after import with an option.
func checkImportDone(t *testing.T, option, path string, public ssh.PublicKey) {
	t.Helper()
	switch _, err := os.Lstat(path); option {
	case "--replace":
		checkImported(t, path, public)
	case "--retire":
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old key is still there: %v", err)
		}
		fallthrough
	default:
		checkImported(t, path+".tpm", public)
	}
	wantContent(t, path+".pub", string(inspect.AuthorizedKey(public, "here")))
}

// TestImportReplaceKilled kills import --replace at many moments. It checks that the
// file is always the old key or the new one, and that the old key is not lost.
func TestImportReplaceKilled(t *testing.T) {
	t.Parallel()
	const times = 20
	replace := func(delay time.Duration) (killed bool) {
		cmd := program(t, "import", "-q", "--no-pin", "--replace", "id")
		path := filepath.Join(cmd.Dir, "id")
		public := sshKey(t, path, "")
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if delay > 0 {
			time.Sleep(delay) // any moment will do; the test waits for no event
			_ = cmd.Process.Kill()
		}
		killed = cmd.Wait() != nil
		now, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(now, old) {
			checkImported(t, path, public)
			kept, err := filepath.Glob(filepath.Join(cmd.Dir, "tpm-agent", "retired", "id.*"))
			if err != nil || len(kept) != 1 {
				t.Fatalf("the retired keys are %q, want one: %v", kept, err)
			}
			wantContent(t, kept[0], string(old))
		}
		return killed
	}
	begin := time.Now()
	if replace(0) {
		t.Fatal("import --replace fails if it is not killed")
	}
	whole, killed := time.Since(begin), 0
	for n := range times {
		if replace(1 + whole*time.Duration(n)*5/(times*4)) {
			killed++
		}
	}
	t.Logf("%d of %d runs were killed", killed, times)
	if killed == 0 {
		t.Error("no run was killed")
	}
}

// TestImportInterrupted sends SIGINT to import at many moments. It checks that import
// leaves nothing in a TPM without a resource manager and no damaged file.
func TestImportInterrupted(t *testing.T) {
	t.Parallel()
	tpm := tpmtest.Start(t)
	for delay := time.Duration(0); delay < 40*time.Millisecond; delay += 2 * time.Millisecond {
		cmd := program(t, "--tpm", tpm.Address(), "import", "-q", "-N", "1234", "id")
		path := filepath.Join(cmd.Dir, "id")
		public := sshKey(t, path, "")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay) // any moment will do; the test waits for no event
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if files := list(t, cmd.Dir); len(files) > 2 {
			checkImported(t, path+".tpm", public)
		}
		if left, err := tpm.Leftovers(); err != nil || len(left) > 0 {
			t.Errorf("after %v: left in the TPM: %q, %v", delay, left, err)
		}
	}
}

// TestImportFailureCleanup checks that a failed import leaves nothing in a TPM without
// a resource manager, and no new file.
func TestImportFailureCleanup(t *testing.T) {
	t.Parallel()
	tpm := tpmtest.Start(t)
	home := program(t).Dir
	run := func(args ...string) (string, int) {
		cmd := programIn(t, home, append([]string{"--tpm", tpm.Address()}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), status(t, err)
	}
	if err := os.WriteFile(filepath.Join(home, "srk"), []byte(first(run("srk"))), 0o600); err != nil {
		t.Fatal(err)
	}
	sshKey(t, filepath.Join(home, "id"), "")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "rsa", "-b", "4096", "-N", "", "-f", filepath.Join(home, "big")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range [][]string{
		{"keygen", "-q", "--for", "srk", "-N", "1234", "-f", "pin"},
		{"keygen", "-q", "--for", "srk", "-N", "", "-t", "rsa", "-b", "4096", "-f", "rsa"},
	} {
		if out, code := run(args...); code != 0 {
			t.Fatalf("%q: %s", args, out)
		}
	}
	damage(t, filepath.Join(home, "pin.wrapped.tpm"), filepath.Join(home, "damaged.wrapped.tpm"))
	before := list(t, home)
	for _, test := range []struct {
		code int
		says string
		args []string
	}{
		{1, "wrong PIN", []string{"-P", "4321", "pin.wrapped.tpm"}},
		{1, "TPM2_Import", []string{"-P", "1234", "damaged.wrapped.tpm"}},
		{3, "RSA 4096", []string{"rsa.wrapped.tpm"}},
		{3, "RSA 4096", []string{"--no-pin", "big"}},
		{1, "0x81000123", []string{"--no-pin", "--parent", "0x81000123", "id"}},
	} {
		out, code := run(append([]string{"import"}, test.args...)...)
		if code != test.code || !strings.Contains(out, test.says) {
			t.Errorf("%q: status %d, want %d; import reports %s", test.args, code, test.code, out)
		}
		if left, err := tpm.Leftovers(); err != nil || len(left) > 0 {
			t.Errorf("%q: left in the TPM: %q, %v", test.args, left, err)
		}
		if files := list(t, home); len(files) != len(before) {
			t.Errorf("%q: import left the files %q", test.args, files)
		}
	}
}

// first returns the first of its arguments.
func first(out string, _ int) string { return out }

// damage writes a copy of a wrapped key with one encrypted bit changed.
func damage(t *testing.T, from, to string) {
	t.Helper()
	key, err := keyfile.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	key.Privkey[len(key.Privkey)-1] ^= 1
	data, err := key.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// wantContent fails the test unless the file has the content want.
func wantContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s has %q, want %q: %v", path, got, want, err)
	}
}
