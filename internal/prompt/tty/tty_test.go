package tty

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// onOwn returns the way to ask on the agent's own terminal.
func onOwn(path string) *Terminals {
	return New(prompt.Settings{Timeout: time.Minute, Grace: time.Second}, path)
}

// askOwn asks for a PIN on the agent's own terminal, in the background.
func askOwn(ctx context.Context, w *Terminals) <-chan result {
	return asking(ctx, w, prompt.Question{Kind: prompt.PIN, Text: "Enter PIN"})
}

func TestTerminal(t *testing.T) {
	for name, test := range map[string]struct{ typed, want string }{
		"pin":       {"1234\n", "1234"},
		"return":    {"1234\r", "1234"},
		"empty":     {"\n", ""},
		"corrected": {"12x\x7f34\n", "1234"},
		"utf-8":     {"pässwörd\n", "pässwörd"},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			done := askOwn(t.Context(), onOwn(p.Path()))
			p.WaitFor("Enter PIN: ")
			if p.Echoes() {
				t.Error("the terminal shows what is typed")
			}
			p.Type(test.typed)
			if got := <-done; got.err != nil || string(got.PIN) != test.want {
				t.Errorf("got %q, %v; want %q", got.PIN, got.err, test.want)
			}
			if !p.Echoes() {
				t.Error("the terminal was left without echo")
			}
			if seen := p.Seen(); test.want != "" && strings.Contains(seen, test.want) {
				t.Errorf("the PIN is on the screen: %q", seen)
			}
		})
	}
}

func TestTerminalRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		typed   string
		refused bool
	}{
		"end of file": {"\x04", true},
		"NUL":         {"12\x0034\n", false},
		"too long":    {strings.Repeat("x", prompt.MaxAnswer+1) + "\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			done := askOwn(t.Context(), onOwn(p.Path()))
			p.WaitFor("Enter PIN: ")
			p.Type(test.typed)
			if got := <-done; got.err == nil || got.PIN != nil || errors.Is(got.err, ask.ErrRefused) != test.refused {
				t.Errorf("got %q, %v", got.PIN, got.err)
			}
			if !p.Echoes() {
				t.Error("the terminal was left without echo")
			}
		})
	}
}

// A question ends with its client, and the next one can be asked.
func TestTerminalEndsWithContext(t *testing.T) {
	p := ptytest.New(t)
	w := onOwn(p.Path())
	ctx, cancel := context.WithCancel(t.Context())
	first := askOwn(ctx, w)
	p.WaitFor("Enter PIN: ")
	p.Type("half a P")
	cancel()
	if got := <-first; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
	second := askOwn(t.Context(), w)
	p.WaitFor("Enter PIN: ")
	p.Type("1234\n")
	if got := <-second; got.err != nil || string(got.PIN) != "1234" {
		t.Errorf("after an ended prompt: got %q, %v", got.PIN, got.err)
	}
}

// Two questions do not share the terminal, and one that waits ends with its
// client.
func TestTerminalOneAtATime(t *testing.T) {
	p := ptytest.New(t)
	w := onOwn(p.Path())
	first := askOwn(t.Context(), w)
	p.WaitFor("Enter PIN: ")
	ctx, cancel := context.WithCancel(t.Context())
	second := askOwn(ctx, w)
	cancel()
	if got := <-second; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	p.Type("1234\n")
	if got := <-first; got.err != nil || string(got.PIN) != "1234" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
}

func TestReadPIN(t *testing.T) {
	p := ptytest.New(t)
	done := make(chan result, 1)
	go func() {
		pin, err := ReadPIN(t.Context(), p.Path(), "Enter same PIN again: ")
		done <- result{prompt.Answer{PIN: pin}, err}
	}()
	p.WaitFor("Enter same PIN again: ")
	p.Type("x\n")
	if got := <-done; got.err != nil || string(got.PIN) != "x" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	if _, err := ReadPIN(t.Context(), t.TempDir(), "?"); err == nil {
		t.Error("asked on a directory")
	}
}

// A shell whose job was stopped turns the echo on. When the job continues, the
// echo is off again before the question is asked.
func TestReadPINAfterStop(t *testing.T) {
	p := ptytest.New(t)
	done := make(chan result, 1)
	go func() {
		pin, err := ReadPIN(t.Context(), p.Path(), "Enter PIN: ")
		done <- result{prompt.Answer{PIN: pin}, err}
	}()
	p.WaitFor("Enter PIN: ")
	for range 2 {
		p.Change(func(s *unix.Termios) { s.Lflag |= unix.ECHO })
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		p.WaitFor("Enter PIN: ")
		if p.Echoes() {
			t.Error("the terminal shows what is typed")
		}
	}
	p.Type("1234\n")
	if got := <-done; got.err != nil || string(got.PIN) != "1234" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
	if seen := p.Seen(); strings.Contains(seen, "1234") {
		t.Errorf("the PIN is on the screen: %q", seen)
	}
}

func TestNoTerminal(t *testing.T) {
	for _, path := range []string{"", "/dev/null", t.TempDir() + "/gone"} {
		if got := <-askOwn(t.Context(), onOwn(path)); !isUnusable(got.err) {
			t.Errorf("%s: got %v", path, got.err)
		}
	}
}

// What was typed before a question does not answer it, and an abandoned question
// leaves the terminal to the next one, with or without echo as it needs.
func TestTerminalForgetsTypedAhead(t *testing.T) {
	p := ptytest.New(t)
	w := onOwn(p.Path())
	consent := prompt.Question{Kind: prompt.Consent, Text: "Allow?"}
	ctx, cancel := context.WithCancel(t.Context())
	first := asking(ctx, w, consent)
	p.WaitFor("[y/p/m/l/N] ")
	pin := askOwn(t.Context(), w)
	p.Type("y")
	p.WaitFor("y")
	cancel()
	if got := <-first; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %v", got.err)
	}
	p.WaitFor("Enter PIN: ")
	if p.Echoes() {
		t.Error("the terminal shows what is typed")
	}
	p.Type("1234\n")
	if got := <-pin; got.err != nil || string(got.PIN) != "1234" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	p.Type("yes\n")
	p.WaitFor("yes\r\n")
	second := asking(t.Context(), w, consent)
	p.WaitFor("[y/p/m/l/N] ")
	p.Type("no\n")
	if got := <-second; !errors.Is(got.err, ask.ErrRefused) {
		t.Errorf("typed before it was asked: %v", got.err)
	}
}
