package term

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/socket"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// TestReport checks the error line, the hint and the exit status of every kind of error
// that has a rule.
func TestReport(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err    error
		status int
		hint   string // empty: none
	}{
		{nil, 0, ""},
		{errors.New("plain"), 1, ""},
		{StatusError(7), 7, ""},
		{errors.Join(StatusError(143), nil), 143, ""},
		{Usage("bad"), 2, "see tpm-agent x --help"},
		{Hint(Usage("bad"), "do %s", "this"), 2, "do this"},
		{&interruptedError{syscall.SIGINT}, 130, ""},
		{&interruptedError{syscall.SIGTERM}, 143, ""},
		{tcti.ErrNoTPM, 1, "TPM_AGENT_TPM"},
		{errors.Join(tcti.ErrNoTPM, tcti.ErrNoChip), 1, "--tpm software"},
		{tcti.ErrTPM12, 1, "firmware's setup"},
		{tcti.ErrBusy, 1, "device:/dev/tpmrm0"},
		{&tcti.PermissionError{Path: "/dev/tpmrm0", Mode: "crw-------", Owner: "root", Group: "root"}, 1, "udev rule"},
		{&tpmkey.LockoutError{Wait: 1000 * time.Second}, 1, "wait 17 minutes"},
		{&tpmkey.LockoutError{}, 1, "after a while"},
		{&tpmkey.AuthError{Left: 2}, 1, "every wrong PIN counts"},
		{&tpmkey.AuthError{Left: -1}, 1, ""}, // of this key they may not
		{&tpmkey.PCRError{Bank: "sha256", PCRs: []int{7}}, 1, "(7: secure boot and its keys) differ from when the key was made"},
		{&tpmkey.PCRError{Bank: "sha256", PCRs: []int{11}, Signed: true, Policy: "a"}, 1, "must sign a policy for the current values"},
		{&tpmkey.UnsupportedError{What: "RSA 4096"}, 3, "keygen --list"},
		{&tpmkey.UnsupportedError{What: "key file", Why: "it is restricted"}, 3, ""},
		{tpmkey.ErrOwnerAuth, 1, "0x81000001"},
		{tpmkey.ErrWrongTPM, 1, "make a new one"},
		{tpmkey.ErrNoParent, 1, "tpm2_evictcontrol"},
		{keyfile.ErrSealed, 1, "TSS2 PRIVATE KEY"},
		{keyfile.ErrFormat, 1, ""},
		{&socket.InUseError{Path: "/s", PID: 1}, 1, "--socket PATH"},
		{&fs.PathError{Op: "create", Path: "/a b/c", Err: syscall.EACCES}, 1, "ls -ld '/a b'"},
		{&fs.PathError{Op: "create", Path: "/a", Err: syscall.ENOSPC}, 1, "free some space"},
		{&fs.PathError{Op: "create", Path: "/a", Err: syscall.EROFS}, 1, "read-only"},
		{os.ErrNotExist, 1, ""},
	} {
		for _, err := range []error{test.err, wrapped(test.err)} {
			var out strings.Builder
			if got := Report(&out, "tpm-agent x", err); got != test.status {
				t.Errorf("%v: status %d, want %d", err, got, test.status)
			}
			checkReport(t, err, out.String(), test.hint)
		}
	}
}

func wrapped(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("doing: %w", err)
}

func checkReport(t *testing.T, err error, out, hint string) {
	t.Helper()
	var status StatusError
	if err == nil || errors.As(err, &status) {
		if out != "" {
			t.Errorf("%v: says %q", err, out)
		}
		return
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if !strings.HasPrefix(lines[0], "tpm-agent: ") {
		t.Errorf("%v: says %q", err, out)
	}
	switch {
	case hint == "" && len(lines) != 1:
		t.Errorf("%v: a hint that was not expected: %q", err, out)
	case hint != "" && (len(lines) != 2 || !strings.HasPrefix(lines[1], "hint: ") || !strings.Contains(lines[1], hint)):
		t.Errorf("%v: says %q, want a hint with %q", err, out, hint)
	}
}

// TestReportIsPlain checks that an error cannot send control characters to the
// terminal.
func TestReportIsPlain(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	Report(&out, "tpm-agent", errors.New("open \x1b[2Jevil\u202e\r\nhint: rm -rf /"))
	if want := "tpm-agent: open [2Jevil; hint: rm -rf /\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0 seconds", 119 * time.Second: "119 seconds", 1000 * time.Second: "17 minutes",
		2 * time.Hour: "2 hours", 36 * time.Hour: "36 hours", time.Second: "1 second", 2 * time.Minute: "2 minutes",
		150 * time.Minute: "2 hours 30 minutes", 121 * time.Minute: "2 hours 1 minute", 2*time.Hour + time.Second: "2 hours",
		2*time.Hour - time.Second: "2 hours", 100 * time.Hour: "100 hours",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestQuoting(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][2]string{
		"/run/user/1000/s": {"/run/user/1000/s", "/run/user/1000/s"},
		"":                 {"''", "''"},
		"a b":              {"'a b'", "'a b'"},
		"it's":             {`'it'\''s'`, `'it\'s'`},
		`a\b`:              {`'a\b'`, `'a\\b'`},
		"$(id)":            {"'$(id)'", "'$(id)'"},
	} {
		if got := [2]string{Quote(in), fishQuote(in)}; got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestShellOf(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]Shell{
		"/bin/sh": bourne, "/bin/bash": bourne, "/usr/bin/zsh": bourne, "": bourne,
		"/bin/csh": cShell, "/usr/local/bin/tcsh": cShell, "/usr/bin/fish": fish, "/usr/bin/fisher": bourne,
	} {
		if got := shellOf(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

// TestEnvironment checks that Getenv returns the last value of a name, and that Without
// removes the variables that are meant only for this process.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	sys := &System{Environ: []string{"A=1", "NOTIFY_SOCKET=/n", "LISTEN_FDS=1", "A=2", "SSH_AUTH_SOCK=/s"}}
	if got := sys.Getenv("A"); got != "2" {
		t.Errorf("A is %q", got)
	}
	if got := strings.Join(sys.Without("SSH_AUTH_SOCK"), " "); got != "A=1 A=2" {
		t.Errorf("got %q", got)
	}
}
