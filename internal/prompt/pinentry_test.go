package prompt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// realPinentry is a Prompter that asks by an installed pinentry.
func realPinentry(t *testing.T, name string) *Prompter {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Skip("is not installed")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gpg-agent.conf"), []byte("pinentry-program "+program+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return New(Options{Ways: []Way{Pinentry}, Environ: []string{"PATH=" + os.Getenv("PATH"), "GNUPGHOME=" + dir}, Timeout: time.Minute, Grace: time.Second})
}

// screen is a terminal with a client in its foreground that
// was started there.
func screen(t *testing.T) (*ptytest.Terminal, agent.Question) {
	t.Helper()
	p := ptytest.New(t)
	client := exec.Command("sleep", "1000")
	client.Env = []string{"TERM=xterm", "LANG=C.UTF-8"}
	return p, askedBy(p.Run(client).Process.Pid)
}

// The dialog of a pinentry is on the client's terminal, and leaves it as it was:
// answered, cancelled, or because the client has gone.
func TestRealPinentryOnClientTerminal(t *testing.T) {
	for program, cancel := range map[string]string{"pinentry-curses": "\t\t\r", "pinentry-tty": "\x04"} {
		for name, test := range map[string]struct {
			typed string
			want  error
		}{
			"answered":  {"12 34\r", nil},
			"cancelled": {cancel, agent.ErrRefused},
			"hung up":   {"half", context.Canceled},
		} {
			t.Run(program+" "+name, func(t *testing.T) {
				prompter := realPinentry(t, program)
				p, q := screen(t)
				before := p.Settings()
				ctx, hangUp := context.WithCancel(t.Context())
				defer hangUp()
				done := askPIN(ctx, prompter, q)
				p.WaitFor("Enter PIN for ")
				p.WaitFor("PIN:")
				awaitSilence(t, p)
				p.Type(test.typed)
				if errors.Is(test.want, context.Canceled) {
					hangUp()
				}
				got := <-done
				if !errors.Is(got.err, test.want) || test.want == nil && string(got.pin) != "12 34" {
					t.Errorf("got %q, %v; want %v", got.pin, got.err, test.want)
				}
				if p.Settings() != before {
					t.Errorf("the terminal was %+v, and is %+v", before, p.Settings())
				}
			})
		}
	}
}

// On a terminal a pinentry is one more dialog that waits its turn, and is ended
// when nobody answers.
func TestRealPinentryTakesItsTurn(t *testing.T) {
	prompter := realPinentry(t, "pinentry-curses")
	p, q := screen(t)
	first := askPIN(t.Context(), prompter, q)
	p.WaitFor("PIN:")
	ctx, cancel := context.WithCancel(t.Context())
	second := askPIN(ctx, prompter, q)
	cancel()
	if got := <-second; !errors.Is(got.err, context.Canceled) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	awaitSilence(t, p)
	p.Type("1\r")
	if got := <-first; got.err != nil || string(got.pin) != "1" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	prompter.options.Timeout = 300 * time.Millisecond
	if got := <-askPIN(t.Context(), prompter, q); !errors.Is(got.err, agent.ErrNoAnswer) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

// A program for terminals asks on the client's also where there is a display.
func TestRealPinentryForTerminals(t *testing.T) {
	prompter := realPinentry(t, "pinentry-curses")
	prompter.options.Environ = append(prompter.options.Environ, "DISPLAY=:7799")
	p, q := screen(t)
	done := askPIN(t.Context(), prompter, q)
	p.WaitFor("PIN:")
	awaitSilence(t, p)
	p.Type("1\r")
	if got := <-done; got.err != nil || string(got.pin) != "1" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
}
