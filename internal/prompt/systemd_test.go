package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// Questions for the machine are files in one directory, where others may ask and
// answer at the same time. So these tests run in a process that has one for
// itself, where that is possible.
const (
	questionsDir = "/run/systemd/ask-password"
	apartEnv     = "PROMPT_TEST_APART"
)

func TestSystemdApart(t *testing.T) {
	for _, name := range []string{systemdProgram, "systemd-tty-ask-password-agent"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	// It is made by who asks first; an agent waits for files in it.
	if err := os.MkdirAll(questionsDir, 0o755); err != nil {
		t.Skip(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := runApart(self, syscall.CLONE_NEWNS)
	if errors.Is(err, syscall.EINVAL) { // as where the root was changed by chroot
		out, err = runApart(self, 0)
	}
	if errors.Is(err, syscall.EPERM) {
		t.Skip("only root can have a directory for itself")
	}
	if err != nil || strings.Count(string(out), "\n--- PASS: ") != 3 {
		t.Errorf("%v\n%s", err, out)
	}
}

// runApart runs the tests in a process with namespaces of its own, if any.
func runApart(self string, namespaces uintptr) ([]byte, error) {
	cmd := exec.Command(self, "-test.run=^TestSystemd(|Confirm|Ends)$", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%#x", apartEnv, namespaces))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: namespaces}
	return cmd.CombinedOutput()
}

// answering starts systemd-tty-ask-password-agent on a terminal, as it runs on
// a server's console.
func answering(t *testing.T) *ptytest.Terminal {
	t.Helper()
	switch os.Getenv(apartEnv) {
	case "":
		t.Skip("runs as a child of TestSystemdApart")
	case "0x0": // with others
	default:
		if err := syscall.Mount("tmpfs", questionsDir, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
	}
	p := ptytest.New(t)
	p.Run(exec.Command("systemd-tty-ask-password-agent", "--watch"))
	for deadline := time.Now().Add(time.Minute); !watched(questionsDir); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for questions")
		}
	}
	return p
}

func bySystemd(timeout time.Duration) *Prompter {
	return New(Options{Ways: []Way{Systemd}, Timeout: timeout})
}

func TestSystemd(t *testing.T) {
	p := answering(t)
	done := make(chan result, 1)
	go func() {
		pin, err := bySystemd(time.Minute).AuthValue(t.Context(), agent.AuthPrompt{Question: askedBy(1), TriesLeft: 3})
		done <- result{pin, err}
	}()
	p.WaitFor("Enter PIN for id.tpm")
	p.WaitFor("SHA256:x")
	p.Type("12 34\n")
	if got := <-done; got.err != nil || string(got.pin) != "12 34" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
}

// Only a typed yes is a consent, and a go; the rest is a no, and so is Ctrl-D.
func TestSystemdConfirm(t *testing.T) {
	p := answering(t)
	for typed, allow := range map[string]bool{"yes\n": true, "y\n": false, "\n": false, "no\n": false} {
		done := make(chan error, 2)
		prompter := bySystemd(time.Minute)
		go func() {
			done <- confirm(t.Context(), prompter, agent.Question{Name: "id.tpm"})
			done <- prompter.LastTry(t.Context(), agent.AuthPrompt{Question: agent.Question{Name: "id.tpm"}, TriesLeft: 1})
		}()
		for _, question := range []string{"Type yes to allow it:", "Type yes to go on:"} {
			p.WaitFor(question)
			p.Type(typed)
			if err := <-done; allow && err != nil || !allow && !errors.Is(err, agent.ErrRefused) {
				t.Errorf("%q: got %v", typed, err)
			}
		}
	}
}

// Nobody answers, or the client goes: the question goes.
func TestSystemdEnds(t *testing.T) {
	answering(t)
	gone := errors.New("client gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := ask(ctx, bySystemd(time.Minute), "Enter PIN")
		done <- err
	}()
	for deadline := time.Now().Add(time.Minute); questions(t) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is asked")
		}
	}
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if _, err := ask(t.Context(), bySystemd(50*time.Millisecond), "Enter PIN"); !errors.Is(err, agent.ErrNoAnswer) {
		t.Errorf("got %v", err)
	}
	if n := questions(t); n != 0 {
		t.Errorf("%d questions are still there", n)
	}
}

func questions(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob(questionsDir + "/ask.*")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// What the program says when it ends tells who did not answer.
func TestSystemdErrors(t *testing.T) {
	for _, test := range []struct {
		body   string
		want   error
		passed string
	}{
		{"echo 'Failed to query password: Operation canceled' >&2; exit 1", agent.ErrRefused, ""},
		{"echo 'Failed to query password: Timer expired' >&2; exit 1", agent.ErrNoAnswer, ""},
		{"echo 'Failed to query password: Permission denied' >&2; exit 1", nil, "Permission denied"},
		{`echo "systemd-ask-password: unrecognized option '--user'" >&2; exit 1`, nil, "before version 257"},
		{"exit 3", nil, "exit status 3"},
		{"kill -9 $$", nil, "signal: killed"},
	} {
		cmd := exec.Command("sh", "-c", test.body)
		var said strings.Builder
		cmd.Stderr = &said
		var exit *exec.ExitError
		if err := cmd.Run(); !errors.As(err, &exit) {
			t.Fatal(err)
		}
		err := systemdError(exit, strings.TrimSpace(said.String()))
		var passed *unusableError
		if test.want != nil && !errors.Is(err, test.want) || errors.As(err, &passed) != (test.want == nil) || !strings.Contains(err.Error(), test.passed) {
			t.Errorf("%s: got %v", test.body, err)
		}
	}
}

// Without anybody who answers such questions, none is asked.
func TestSystemdWatched(t *testing.T) {
	if watched(t.TempDir()) || watched("/nowhere") {
		t.Error("somebody waits for files in a new directory")
	}
	if _, err := systemdScope([]string{"XDG_RUNTIME_DIR=" + t.TempDir()}); os.Getuid() != 0 && err == nil {
		t.Error("a user is asked, whom nobody answers for")
	}
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"a":                          "a",
		"Enter PIN for k\nSHA256:x":  "Enter PIN for k, SHA256:x",
		"Allow use?\nKey x.\nFor y.": "Allow use? Key x. For y.",
		"a\n\nb":                     "a, b",
		"a\n  (b)\nc\n":              "a (b), c",
		"":                           "",
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
