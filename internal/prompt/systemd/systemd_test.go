package systemd

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

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// Questions for the machine are files in one directory, where other programs may
// ask and answer at the same time. These tests run in a process with a directory
// of its own, if possible.
const (
	questionsDir = "/run/systemd/ask-password"
	apartEnv     = "PROMPT_TEST_APART"
)

func TestSystemdApart(t *testing.T) {
	needs.Programs(t, program, "systemd-tty-ask-password-agent")
	// The first program that asks creates it; an agent waits for files in it.
	for _, dir := range []string{filepath.Dir(questionsDir), questionsDir} {
		switch err := os.Mkdir(dir, 0o755); {
		case err == nil:
			t.Cleanup(func() { _ = os.Remove(dir) })
		case !errors.Is(err, os.ErrExist):
			t.Skip(err)
		}
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

// answering starts systemd-tty-ask-password-agent on a terminal, as on a server's
// console.
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
			t.Fatal("the agent does not wait for questions")
		}
	}
	return p
}

type result struct {
	answer prompt.Answer
	err    error
}

// asking asks in the background.
func asking(ctx context.Context, timeout time.Duration, q prompt.Question) <-chan result {
	done := make(chan result, 1)
	go func() {
		answer, err := New(prompt.Settings{Environ: os.Environ(), Timeout: timeout, Grace: time.Minute}).Ask(ctx, q)
		done <- result{answer, err}
	}()
	return done
}

func TestSystemd(t *testing.T) {
	p := answering(t)
	done := asking(t.Context(), time.Hour, prompt.Question{Kind: prompt.PIN, Text: "Enter PIN for id.tpm\nSHA256:x"})
	p.WaitFor("Enter PIN for id.tpm, SHA256:x:")
	p.Type("12 34\n")
	if got := <-done; got.err != nil || string(got.answer.PIN) != "12 34" {
		t.Errorf("got %q, %v", got.answer.PIN, got.err)
	}
}

// Only a typed yes is a yes.
func TestSystemdConfirm(t *testing.T) {
	p := answering(t)
	for typed, allow := range map[string]bool{"yes\n": true, "y\n": false, "\n": false, "no\n": false} {
		for kind, question := range map[prompt.Kind]string{prompt.Consent: "Type yes to allow it:", prompt.LastTry: "Type yes to go on:"} {
			done := asking(t.Context(), time.Hour, prompt.Question{Kind: kind, Text: "id.tpm?"})
			p.WaitFor(question)
			p.Type(typed)
			if got := <-done; allow && (got.err != nil || got.answer.Grant != ask.GrantOnce) || !allow && !errors.Is(got.err, ask.ErrRefused) {
				t.Errorf("%q: got %+v, %v", typed, got.answer, got.err)
			}
		}
	}
}

// The question ends with its client, and after the time limit.
func TestSystemdEnds(t *testing.T) {
	answering(t)
	q := prompt.Question{Kind: prompt.PIN, Text: "Enter PIN"}
	gone := errors.New("client gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := asking(ctx, time.Hour, q)
	for deadline := time.Now().Add(time.Minute); questions(t) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is asked")
		}
	}
	cancel(gone)
	if got := <-done; !errors.Is(got.err, gone) {
		t.Errorf("got %v", got.err)
	}
	if got := <-asking(t.Context(), 50*time.Millisecond, q); !errors.Is(got.err, ask.ErrNoAnswer) {
		t.Errorf("got %v", got.err)
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

// TestMeaning tests what is made of the program's complaints.
func TestMeaning(t *testing.T) {
	for complaint, want := range map[string]error{
		"Failed to query password: Operation canceled":       ask.ErrRefused,
		"Failed to query password: Timer expired":            ask.ErrNoAnswer,
		"Failed to query password: Permission denied":        nil,
		"systemd-ask-password: unrecognized option '--user'": nil,
		"": nil,
	} {
		program := prompt.Program{Path: "/bin/sh", Args: []string{"-c", `echo "$0" >&2; exit 3`, complaint}}
		_, err := prompt.Settings{Timeout: time.Minute, Grace: time.Minute}.Run(t.Context(), program)
		exit, _ := errors.AsType[*prompt.ExitError](err)
		if exit == nil {
			t.Fatal(err)
		}
		err = meaning(exit)
		_, unusable := errors.AsType[*prompt.UnusableError](err)
		if unusable != (want == nil) || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: got %v", complaint, err)
		}
	}
}

// Without an agent for such questions, nothing is asked.
func TestSystemdWatched(t *testing.T) {
	if watched(t.TempDir()) || watched("/nowhere") {
		t.Error("a new directory is watched")
	}
	if _, err := scope([]string{"XDG_RUNTIME_DIR=" + t.TempDir()}); os.Getuid() != 0 && err == nil {
		t.Error("a user without an agent is asked")
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
