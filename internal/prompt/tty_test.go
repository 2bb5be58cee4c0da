package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
)

// pty is a terminal with somebody at it.
type pty struct {
	t      *testing.T
	person *os.File
	hold   *os.File
	path   string
	seen   bytes.Buffer
}

func newPTY(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	var n int
	err = control(master, func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Held open, or what is written between two prompts ends in EIO.
	path := fmt.Sprintf("/dev/pts/%d", n)
	hold, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close() })
	return &pty{t: t, person: master, hold: hold, path: path}
}

// waitFor reads until the screen shows text.
func (p *pty) waitFor(text string) {
	p.t.Helper()
	if err := p.person.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 1024)
	for !strings.Contains(p.seen.String(), text) {
		n, err := p.person.Read(buf)
		p.seen.Write(buf[:n])
		if err != nil {
			p.t.Fatalf("waiting for %q: %v; seen %q", text, err, p.seen.String())
		}
	}
}

func (p *pty) types(text string) {
	p.t.Helper()
	if _, err := p.person.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// echoes reports the terminal's settings.
func (p *pty) echoes() bool {
	p.t.Helper()
	var echo bool
	err := control(p.person, func(fd int) error {
		state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			echo = state.Lflag&unix.ECHO != 0
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return echo
}

type result struct {
	pin []byte
	err error
}

func (p *pty) ask(ctx context.Context, prompter *Prompter) <-chan result {
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
			p := newPTY(t)
			done := p.ask(t.Context(), New(Options{Ways: []Way{Terminal}, Terminal: p.path}))
			p.waitFor("Enter PIN: ")
			if p.echoes() {
				t.Error("the terminal shows what is typed")
			}
			p.types(test.typed)
			if got := <-done; got.err != nil || string(got.pin) != test.want {
				t.Errorf("got %q, %v; want %q", got.pin, got.err, test.want)
			}
			if !p.echoes() {
				t.Error("the terminal was left without echo")
			}
			if test.want != "" && strings.Contains(p.seen.String(), test.want) {
				t.Errorf("the PIN is on the screen: %q", p.seen.String())
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
			p := newPTY(t)
			done := p.ask(t.Context(), New(Options{Ways: []Way{Terminal}, Terminal: p.path}))
			p.waitFor("Enter PIN: ")
			p.types(test.typed)
			if got := <-done; got.err == nil || got.pin != nil || errors.Is(got.err, agent.ErrRefused) != test.refused {
				t.Errorf("got %q, %v", got.pin, got.err)
			}
			if !p.echoes() {
				t.Error("the terminal was left without echo")
			}
		})
	}
}

// A client that goes takes its prompt with it, and the next one can ask.
func TestTerminalEndsWithContext(t *testing.T) {
	p := newPTY(t)
	prompter := New(Options{Ways: []Way{Terminal}, Terminal: p.path})
	ctx, cancel := context.WithCancel(t.Context())
	first := p.ask(ctx, prompter)
	p.waitFor("Enter PIN: ")
	p.types("half a P")
	cancel()
	if got := <-first; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if !p.echoes() {
		t.Error("the terminal was left without echo")
	}
	p.seen.Reset()
	second := p.ask(t.Context(), prompter)
	p.waitFor("Enter PIN: ")
	p.types("1234\n")
	if got := <-second; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("after an ended prompt: got %q, %v", got.pin, got.err)
	}
}

// Two prompts do not share the terminal, and the one that waits leaves when
// its client does.
func TestTerminalOneAtATime(t *testing.T) {
	p := newPTY(t)
	prompter := New(Options{Ways: []Way{Terminal}, Terminal: p.path})
	first := p.ask(t.Context(), prompter)
	p.waitFor("Enter PIN: ")
	ctx, cancel := context.WithCancel(t.Context())
	second := p.ask(ctx, prompter)
	cancel()
	if got := <-second; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	p.types("1234\n")
	if got := <-first; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
}

func TestReadPIN(t *testing.T) {
	p := newPTY(t)
	done := make(chan result, 1)
	go func() {
		pin, err := ReadPIN(t.Context(), p.path, "Enter same PIN again: ")
		done <- result{pin, err}
	}()
	p.waitFor("Enter same PIN again: ")
	p.types("x\n")
	if got := <-done; got.err != nil || string(got.pin) != "x" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if _, err := ReadPIN(t.Context(), t.TempDir(), "?"); err == nil {
		t.Error("asked on a directory")
	}
}

func TestNoTerminal(t *testing.T) {
	for _, path := range []string{"/dev/null", t.TempDir() + "/gone"} {
		if _, err := ask(t.Context(), New(Options{Ways: []Way{Terminal}, Terminal: path}), "?"); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}
