package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// crash is a command that writes files. It is killed at every system call by
// which it does, and then each of these calls fails. Keys are in keys/.
type crash struct {
	name    string
	prepare [][]string // what is run before
	args    []string   // of tpm-agent
	again   string     // what it may say when it is run once more; empty: it works
	late    string     // what it says when it fails after all is done; empty: it does not
	partly  bool       // when it fails it may be done in part: the new key is there, and the old one
}

// A key of ssh-keygen, keys/old. Wherever there is one, it or the key that was
// made of it for the TPM must be usable all the time.
var (
	crashOld       = []string{"ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-C", "here", "-f", "keys/old"}
	crashLocked    = []string{"ssh-keygen", "-q", "-t", "ecdsa", "-N", crashPassphrase, "-C", "here", "-f", "keys/old"}
	crashFree      = []string{"tpm-agent", "keygen", "-q", "-N", "", "-f", "keys/id"}
	crashStorage   = []string{"sh", "-c", "tpm-agent srk >srk"}
	crashElsewhere = []string{"tpm-agent", "keygen", "-q", "--for", "srk", "-N", crashPIN, "-C", "here", "-f", "far"}
)

var crashes = []crash{
	{
		name: "keygen", args: []string{"keygen", "-q", "-N", "", "-C", "here", "-f", "keys/id"},
		again: "already exists",
	},
	{
		name: "keygen with PIN", prepare: [][]string{{"tpm-agent", "keygen", "-q", "-N", "", "-f", "keys/first"}},
		args:  []string{"keygen", "-q", "-N", crashPIN, "-C", "here", "-f", "keys/id"},
		again: "already exists",
	},
	{
		name: "keygen for another", prepare: [][]string{crashStorage},
		args:  []string{"keygen", "-q", "--for", "srk", "-N", crashPIN, "-C", "here", "-f", "keys/id"},
		again: "already exists",
	},
	{
		name: "import", prepare: [][]string{crashOld},
		args:  []string{"import", "-q", "--no-pin", "keys/old"},
		again: "already exists",
	},
	{
		name: "import wrapped", prepare: [][]string{crashStorage, crashElsewhere},
		args:  []string{"import", "-q", "-P", crashPIN, "-f", "keys/id", "far.wrapped.tpm"},
		again: "already exists",
	},
	{
		name: "import for another", prepare: [][]string{crashStorage, crashOld},
		args:  []string{"import", "-q", "--no-pin", "--for", "srk", "-f", "keys/id", "keys/old"},
		again: "already exists",
	},
	{
		name: "import and retire", prepare: [][]string{crashLocked},
		args:  []string{"import", "-q", "-P", crashPassphrase, "-N", crashPIN, "--retire", "keys/old"},
		again: "already exists", partly: true,
	},
	{
		name: "import and replace", prepare: [][]string{crashOld},
		args:  []string{"import", "-q", "-N", crashPIN, "--replace", "keys/old"},
		again: "is a TPM key already", partly: true,
	},
	// The PINs are those of keys that the lockout does not protect: to find out
	// which one a key has, both are tried.
	{
		name: "passwd, set", prepare: [][]string{crashFree},
		args:  []string{"passwd", "-q", "--without-lockout", "-N", crashPIN, "keys/id.tpm"},
		again: "standard input has ended", late: "has the new PIN, but after a crash",
	},
	{
		name: "passwd", prepare: [][]string{crashFree, {"tpm-agent", "passwd", "-q", "--without-lockout", "-N", crashOldPIN, "keys/id.tpm"}},
		args:  []string{"passwd", "-q", "-P", crashOldPIN, "-N", crashPIN, "keys/id.tpm"},
		again: "wrong PIN", late: "has the new PIN, but after a crash",
	},
	{
		name: "passwd, removed", prepare: [][]string{{"tpm-agent", "keygen", "-q", "-N", crashPIN, "-f", "keys/id"}},
		args:  []string{"passwd", "-q", "-P", crashPIN, "--remove", "keys/id.tpm"},
		again: "it has no PIN", late: "has the new PIN, but after a crash",
	},
}

const (
	crashPIN        = "1234"
	crashOldPIN     = "5678"
	crashPassphrase = "correct horse"
)

// crashHome is a home for a crash, a copy of one that was prepared once.
func crashHome(t *testing.T, prepared string) string {
	t.Helper()
	home := t.TempDir()
	if out, err := exec.Command("cp", "-a", prepared+"/.", home).CombinedOutput(); err != nil {
		t.Fatalf("copying the home: %v: %s", err, out)
	}
	return home
}

// inHome is a program of the tests, in that home. Its output goes to a file.
func inHome(t *testing.T, home, name string, args ...string) (cmd *exec.Cmd, output *os.File) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	output, err = os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { output.Close() })
	cmd = exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = home, output, output
	cmd.Env = []string{
		"HOME=" + home, "XDG_RUNTIME_DIR=" + home, "XDG_STATE_HOME=" + home + "/state", "PATH=" + os.Getenv("PATH"),
		"TPM_AGENT_TPM=software", "SHELL=/bin/sh", "GOCOVERDIR=" + os.Getenv("GOCOVERDIR"),
	}
	return cmd, output
}

// said runs a program of the tests, and returns what it said.
func said(t *testing.T, home, name string, args ...string) (string, error) {
	t.Helper()
	cmd, output := inHome(t, home, name, args...)
	err := cmd.Run()
	return text(t, output), err
}

func text(t *testing.T, f *os.File) string {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestCrash kills and hinders each of the commands at each of its writing
// system calls.
func TestCrash(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("takes long, and traces the program as it is: make test runs it without the race detector")
	}
	for _, c := range crashes {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			prepared := t.TempDir()
			if err := os.Mkdir(filepath.Join(prepared, "keys"), 0o700); err != nil {
				t.Fatal(err)
			}
			// In another directory: the software TPM is there before, no more.
			first := []string{"tpm-agent", "keygen", "-q", "-N", "", "-f", "first"}
			for _, command := range append([][]string{first}, c.prepare...) {
				if out, err := said(t, prepared, command[0], command[1:]...); err != nil {
					t.Fatalf("%q: %v: %s", command, err, out)
				}
			}
			calls := c.undisturbed(t, prepared)
			for n := range calls {
				t.Run(fmt.Sprintf("killed at %d", n+1), func(t *testing.T) {
					t.Parallel()
					c.killed(t, crashHome(t, prepared), n+1)
				})
				errno := []syscall.Errno{syscall.ENOSPC, syscall.EIO}[n%2]
				t.Run(fmt.Sprintf("%v at %d", errno, n+1), func(t *testing.T) {
					t.Parallel()
					c.hindered(t, crashHome(t, prepared), n+1, errno)
				})
			}
		})
	}
}

// undisturbed lets the command do its work, and counts the calls.
func (c *crash) undisturbed(t *testing.T, prepared string) int {
	t.Helper()
	home := crashHome(t, prepared)
	tr := &tracer{below: home}
	cmd, output := inHome(t, home, "tpm-agent", c.args...)
	if status := tr.run(t, cmd); status.ExitStatus() != 0 {
		t.Fatalf("%v: %s", status, text(t, output))
	}
	if found := remains(t, home); found == 0 || tr.count < 8 {
		t.Fatalf("%d calls that write, and %d keys", tr.count, found)
	}
	t.Logf("%d calls that write", tr.count)
	return tr.count
}

func (c *crash) killed(t *testing.T, home string, n int) {
	tr := &tracer{below: home, at: n}
	cmd, output := inHome(t, home, "tpm-agent", c.args...)
	status := tr.run(t, cmd)
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("was not killed at %d of %d: %v: %s", n, tr.count, status, text(t, output))
	}
	t.Log("at", tr.call)
	remains(t, home)
	out, err := said(t, home, "tpm-agent", c.args...)
	if err != nil && !strings.Contains(out, c.again) {
		t.Errorf("once more: %v: %s", err, out)
	}
	if remains(t, home) == 0 {
		t.Error("there is no key")
	}
}

// hindered has one call fail. The command may get along without it; else it
// says why it failed, and has changed nothing.
func (c *crash) hindered(t *testing.T, home string, n int, errno syscall.Errno) {
	before := written(t, home)
	tr := &tracer{below: home, at: n, errno: errno}
	cmd, output := inHome(t, home, "tpm-agent", c.args...)
	status := tr.run(t, cmd)
	out := text(t, output)
	found := remains(t, home)
	if status.ExitStatus() == 0 {
		t.Logf("gets along without %s", tr.call)
		if found == 0 {
			t.Error("there is no key")
		}
		return
	}
	if !status.Exited() || !strings.Contains(out, errno.Error()) {
		t.Errorf("at %s: %v: %s", tr.call, status, out)
	}
	// What cannot be removed stays, under a name that is known for that.
	if after := written(t, home); after != before && tr.call != "unlinkat" && !c.partly && (c.late == "" || !strings.Contains(out, c.late)) {
		t.Errorf("at %s: the files were\n%s and are\n%s%s", tr.call, before, after, out)
	}
}

// written describes the files in keys.
func written(t *testing.T, home string) string {
	t.Helper()
	var b strings.Builder
	for path, data := range contents(t, filepath.Join(home, "keys")) {
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(data))
	}
	return b.String()
}

// contents yields the files of a directory, if it is there.
func contents(t *testing.T, dir string) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if !yield(filepath.Join(dir, e.Name()), data) {
				return
			}
		}
	}
}

// remains fails for a file that is not whole, for one that others can read and
// must not, for a key that does not sign, and if neither keys/old nor a key made
// of it can be used any more, or the old key is gone. It returns the number of
// TPM keys.
func remains(t *testing.T, home string) (found int) {
	t.Helper()
	usable, kept := make(map[string]bool), make(map[string]bool)
	for path, data := range contents(t, filepath.Join(home, "keys")) {
		name := filepath.Base(path)
		switch {
		case keyfile.IsTemporary(name):
			private(t, path, data)
		case strings.HasSuffix(name, ".pub"):
			checkPublic(t, path, data)
		case bytes.Contains(data, []byte("TSS2 PRIVATE KEY")):
			found++
			private(t, path, data)
			usable[tpmKey(t, home, path)] = true
		default:
			private(t, path, data)
			public := plainKey(t, path, data)
			usable[public], kept[public] = true, true
		}
	}
	for path, data := range contents(t, filepath.Join(home, "state", "tpm-agent", "retired")) {
		private(t, path, data)
		if !keyfile.IsTemporary(filepath.Base(path)) {
			kept[plainKey(t, path, data)] = true
		}
	}
	if data, err := os.ReadFile(filepath.Join(home, "keys", "old.pub")); err == nil {
		if public := parsePublic(t, data); !usable[public] || !kept[public] {
			t.Errorf("the old key: usable %v, kept %v", usable[public], kept[public])
		}
	}
	listed(t, filepath.Join(home, "keys"), home)
	return found
}

// private fails for a file that others can read and that holds no public key.
func private(t *testing.T, path string, data []byte) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o077 != 0 && !bytes.HasPrefix(data, []byte("ecdsa-")) {
		t.Errorf("%s has mode %v", path, info.Mode())
	}
}

// tpmKey has a key file sign, and returns its public key.
func tpmKey(t *testing.T, home, path string) string {
	t.Helper()
	if out, err := said(t, home, "signs", path, crashPIN, crashOldPIN); err != nil {
		t.Errorf("%s: %v: %s", path, err, out)
		return ""
	}
	_, public, err := readKey(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(public.Marshal())
}

// plainKey returns the public key of a key of ssh-keygen.
func plainKey(t *testing.T, path string, data []byte) string {
	t.Helper()
	signer, err := ssh.ParsePrivateKey(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		signer, err = ssh.ParsePrivateKeyWithPassphrase(data, []byte(crashPassphrase))
	}
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	return string(signer.PublicKey().Marshal())
}

func parsePublic(t *testing.T, data []byte) string {
	t.Helper()
	public, _, _, rest, err := ssh.ParseAuthorizedKey(data)
	if err != nil || len(rest) > 0 {
		t.Errorf("a public key: %v, and %q", err, rest)
		return ""
	}
	return string(public.Marshal())
}

// checkPublic fails unless a public key is that of a key beside it.
func checkPublic(t *testing.T, path string, data []byte) {
	t.Helper()
	public := parsePublic(t, data)
	base := strings.TrimSuffix(path, ".pub")
	for _, beside := range []string{base + ".tpm", base + ".wrapped.tpm", base} {
		private, err := os.ReadFile(beside)
		switch _, key, keyErr := readKey(beside); {
		case err != nil:
			continue
		case keyErr == nil && string(key.Marshal()) != public:
			t.Errorf("%s is not of the key %s", path, beside)
		case keyErr != nil && plainKey(t, beside, private) != public:
			t.Errorf("%s is not of the key %s", path, beside)
		}
		return
	}
	t.Errorf("%s: a public key without its private one", path)
}

// listed fails if the files give tpm-agent cause to complain.
func listed(t *testing.T, dir, home string) {
	t.Helper()
	if _, err := (parents.Store{Path: filepath.Join(home, "state", "tpm-agent", "storage-keys")}).Read(dir); err != nil {
		t.Error(err)
	}
	if out, err := said(t, home, "tpm-agent", "list", "--key-dir", dir); err != nil || strings.Contains(out, "tpm-agent:") {
		t.Errorf("list: %v: %s", err, out)
	}
}
