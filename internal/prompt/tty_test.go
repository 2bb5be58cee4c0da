package prompt

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

type result struct {
	pin []byte
	err error
}

// asking asks in the background.
func asking(ctx context.Context, prompter *Prompter) <-chan result {
	done := make(chan result, 1)
	go func() {
		pin, err := ask(ctx, prompter, "Enter PIN")
		done <- result{pin, err}
	}()
	return done
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
			done := asking(t.Context(), New(Options{Ways: []Way{Terminal}, Terminal: p.Path()}))
			p.WaitFor("Enter PIN: ")
			if p.Echoes() {
				t.Error("the terminal shows what is typed")
			}
			p.Type(test.typed)
			if got := <-done; got.err != nil || string(got.pin) != test.want {
				t.Errorf("got %q, %v; want %q", got.pin, got.err, test.want)
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
		"too long":    {strings.Repeat("x", maxAnswer+1) + "\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			done := asking(t.Context(), New(Options{Ways: []Way{Terminal}, Terminal: p.Path()}))
			p.WaitFor("Enter PIN: ")
			p.Type(test.typed)
			if got := <-done; got.err == nil || got.pin != nil || errors.Is(got.err, agent.ErrRefused) != test.refused {
				t.Errorf("got %q, %v", got.pin, got.err)
			}
			if !p.Echoes() {
				t.Error("the terminal was left without echo")
			}
		})
	}
}

// A client that goes takes its prompt with it, and the next one can ask.
func TestTerminalEndsWithContext(t *testing.T) {
	p := ptytest.New(t)
	prompter := New(Options{Ways: []Way{Terminal}, Terminal: p.Path()})
	ctx, cancel := context.WithCancel(t.Context())
	first := asking(ctx, prompter)
	p.WaitFor("Enter PIN: ")
	p.Type("half a P")
	cancel()
	if got := <-first; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
	second := asking(t.Context(), prompter)
	p.WaitFor("Enter PIN: ")
	p.Type("1234\n")
	if got := <-second; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("after an ended prompt: got %q, %v", got.pin, got.err)
	}
}

// Two prompts do not share the terminal, and the one that waits leaves when
// its client does.
func TestTerminalOneAtATime(t *testing.T) {
	p := ptytest.New(t)
	prompter := New(Options{Ways: []Way{Terminal}, Terminal: p.Path()})
	first := asking(t.Context(), prompter)
	p.WaitFor("Enter PIN: ")
	ctx, cancel := context.WithCancel(t.Context())
	second := asking(ctx, prompter)
	cancel()
	if got := <-second; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	p.Type("1234\n")
	if got := <-first; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
}

func TestReadPIN(t *testing.T) {
	p := ptytest.New(t)
	done := make(chan result, 1)
	go func() {
		pin, err := ReadPIN(t.Context(), p.Path(), "Enter same PIN again: ")
		done <- result{pin, err}
	}()
	p.WaitFor("Enter same PIN again: ")
	p.Type("x\n")
	if got := <-done; got.err != nil || string(got.pin) != "x" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if _, err := ReadPIN(t.Context(), t.TempDir(), "?"); err == nil {
		t.Error("asked on a directory")
	}
}

// TestReadPINAfterStop: a shell whose job was stopped turns the echo on. When the
// job goes on, it is off again before anybody is asked.
func TestReadPINAfterStop(t *testing.T) {
	p := ptytest.New(t)
	done := make(chan result, 1)
	go func() {
		pin, err := ReadPIN(t.Context(), p.Path(), "Enter PIN: ")
		done <- result{pin, err}
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
	if got := <-done; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
	if seen := p.Seen(); strings.Contains(seen, "1234") {
		t.Errorf("the PIN is on the screen: %q", seen)
	}
}

func TestNoTerminal(t *testing.T) {
	for _, path := range []string{"/dev/null", t.TempDir() + "/gone"} {
		if _, err := ask(t.Context(), New(Options{Ways: []Way{Terminal}, Terminal: path}), "?"); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}
