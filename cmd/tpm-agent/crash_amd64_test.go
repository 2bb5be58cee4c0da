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

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// crash is a command that writes files. The test kills it at each of its writing
// system calls, and in other runs makes each of these calls fail. Keys are in keys/.
type crash struct {
	name    string
	prepare [][]string // commands to run first
	args    []string   // of tpm-agent
	again   string     // the error that a second run may give; empty: it must succeed
	late    string     // the error if it fails after its work is done; empty: it has none
	partly  bool       // a failure may leave both the new key and the old one
}

// These commands prepare a home. If there is a key of ssh-keygen, keys/old, then
// that key or the TPM key made from it must be usable at all times.
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
	// The lockout does not count wrong PINs of these keys, so the test can try both
	// PINs to find out which one a key has.
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

// crashHome returns a new home, a copy of a prepared one.
func crashHome(t *testing.T, prepared string) string {
	t.Helper()
	home := t.TempDir()
	if out, err := exec.Command("cp", "-a", prepared+"/.", home).CombinedOutput(); err != nil {
		t.Fatalf("copying the home: %v: %s", err, out)
	}
	return home
}

// inHome returns a command that runs a program in home. Its output goes to a file.
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

// said runs a program in home and returns its output.
func said(t *testing.T, home, name string, args ...string) (string, error) {
	t.Helper()
	cmd, output := inHome(t, home, name, args...)
	err := cmd.Run()
	return text(t, output), err
}

// text returns the content of a file.
func text(t *testing.T, f *os.File) string {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestCrash checks that no key is lost and no file is damaged if a command is killed
// at any of its writing system calls, or if any of these calls fails.
func TestCrash(t *testing.T) {
	t.Parallel()
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
			// This creates the software TPM. The key is not in keys/.
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

// undisturbed runs the command to its end and returns the number of its writing
// calls.
func (c *crash) undisturbed(t *testing.T, prepared string) int {
	t.Helper()
	home := crashHome(t, prepared)
	tr := &tracer{below: home}
	cmd, output := inHome(t, home, "tpm-agent", c.args...)
	if status := tr.run(t, cmd); status.ExitStatus() != 0 {
		t.Fatalf("%v: %s", status, text(t, output))
	}
	if found := remains(t, home); found == 0 || tr.count < 8 {
		t.Fatalf("the command made %d writing calls and %d keys, want at least 8 and 1", tr.count, found)
	}
	t.Logf("%d writing calls", tr.count)
	return tr.count
}

// killed kills the command at its n-th writing call, and checks that the keys are
// intact and that a second run succeeds or says why not.
func (c *crash) killed(t *testing.T, home string, n int) {
	tr := &tracer{below: home, at: n}
	cmd, output := inHome(t, home, "tpm-agent", c.args...)
	status := tr.run(t, cmd)
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the command was not killed at call %d of %d: %v: %s", n, tr.count, status, text(t, output))
	}
	t.Log("at", tr.call)
	remains(t, home)
	out, err := said(t, home, "tpm-agent", c.args...)
	if err != nil && !strings.Contains(out, c.again) {
		t.Errorf("the second run: %v: %s", err, out)
	}
	if remains(t, home) == 0 {
		t.Error("there is no key")
	}
}

// hindered makes the n-th writing call fail. The command may succeed without the
// call. Otherwise it must say why it failed, and must have changed nothing.
func (c *crash) hindered(t *testing.T, home string, n int, errno syscall.Errno) {
	before := written(t, home)
	tr := &tracer{below: home, at: n, errno: errno}
	cmd, output := inHome(t, home, "tpm-agent", c.args...)
	status := tr.run(t, cmd)
	out := text(t, output)
	found := remains(t, home)
	if status.ExitStatus() == 0 {
		t.Logf("the command succeeds without %s", tr.call)
		if found == 0 {
			t.Error("there is no key")
		}
		return
	}
	if !status.Exited() || !strings.Contains(out, errno.Error()) {
		t.Errorf("at %s: %v: %s", tr.call, status, out)
	}
	// A file that cannot be removed stays, under a temporary name.
	if after := written(t, home); after != before && tr.call != "unlinkat" && !c.partly && (c.late == "" || !strings.Contains(out, c.late)) {
		t.Errorf("at %s: the files were\n%s and are\n%s%s", tr.call, before, after, out)
	}
}

// written returns the names and hashes of the files in keys.
func written(t *testing.T, home string) string {
	t.Helper()
	var b strings.Builder
	for path, data := range contents(t, filepath.Join(home, "keys")) {
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(data))
	}
	return b.String()
}

// contents yields the files of a directory. A missing directory is empty.
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

// remains checks the files in home and returns the number of TPM keys. It fails the
// test if a file is incomplete, if others can read a private key, if a key does not
// sign, if neither keys/old nor a key made from it is usable, or if the old key is
// gone.
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
			t.Errorf("the old key is usable: %v; it is kept: %v; want both", usable[public], kept[public])
		}
	}
	listed(t, filepath.Join(home, "keys"), home)
	return found
}

// private fails the test if others can read a file that is not a public key.
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

// tpmKey checks that a TPM key signs, and returns its public key.
func tpmKey(t *testing.T, home, path string) string {
	t.Helper()
	if out, err := said(t, home, "signs", path, crashPIN, crashOldPIN); err != nil {
		t.Errorf("%s: %v: %s", path, err, out)
		return ""
	}
	_, public, err := inspect.ReadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(public.Marshal())
}

// plainKey returns the public key of a private key file of ssh-keygen.
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

// parsePublic returns the key of a .pub file.
func parsePublic(t *testing.T, data []byte) string {
	t.Helper()
	public, _, _, rest, err := ssh.ParseAuthorizedKey(data)
	if err != nil || len(rest) > 0 {
		t.Errorf("parsing a public key: %v, rest %q", err, rest)
		return ""
	}
	return string(public.Marshal())
}

// checkPublic fails the test unless a public key belongs to a private key beside it.
func checkPublic(t *testing.T, path string, data []byte) {
	t.Helper()
	public := parsePublic(t, data)
	base := strings.TrimSuffix(path, ".pub")
	for _, beside := range []string{base + ".tpm", base + ".wrapped.tpm", base} {
		private, err := os.ReadFile(beside)
		switch _, key, keyErr := inspect.ReadKey(beside); {
		case err != nil:
			continue
		case keyErr == nil && string(key.Marshal()) != public:
			t.Errorf("%s does not belong to the key %s", path, beside)
		case keyErr != nil && plainKey(t, beside, private) != public:
			t.Errorf("%s does not belong to the key %s", path, beside)
		}
		return
	}
	t.Errorf("%s: a public key without its private one", path)
}

// listed fails the test if tpm-agent list reports a problem with the files.
func listed(t *testing.T, dir, home string) {
	t.Helper()
	if _, err := (parents.Store{Path: filepath.Join(home, "state", "tpm-agent", "storage-keys")}).Read(dir); err != nil {
		t.Error(err)
	}
	if out, err := said(t, home, "tpm-agent", "list", "--key-dir", dir); err != nil || strings.Contains(out, "tpm-agent:") {
		t.Errorf("list: %v: %s", err, out)
	}
}
