package pinentry

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// terminalFlavours are the pinentries that ask on a terminal.
var terminalFlavours = []string{"pinentry-curses", "pinentry-tty"}

// program finds one of the real pinentries.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// dialog is a dialog on the terminal.
func (p *pty) dialog() Dialog {
	return Dialog{
		Title: "tpm-agent", Description: "Key id_ecdsa\nfor ssh", Prompt: "PIN:", KeyInfo: "s/0123", Owner: 1,
		Environ: []string{"PATH=/usr/bin:/bin"}, Terminal: p.terminal(),
	}
}

type result struct {
	pin    []byte
	button Button
	err    error
}

func (p *pty) getPIN(ctx context.Context, program string, d Dialog) <-chan result {
	done := make(chan result, 1)
	go func() {
		pin, err := GetPIN(ctx, program, d)
		done <- result{pin: pin, err: err}
	}()
	return done
}

func (p *pty) confirm(ctx context.Context, program string, d Dialog) <-chan result {
	done := make(chan result, 1)
	go func() {
		button, err := Confirm(ctx, program, d)
		done <- result{button: button, err: err}
	}()
	return done
}

// eachFlavour runs a test for each flavour on a terminal with somebody's shell;
// the terminal has to be as before when it is over.
func eachFlavour(t *testing.T, test func(t *testing.T, p *pty, path string)) {
	for _, name := range terminalFlavours {
		t.Run(name, func(t *testing.T) {
			path := program(t, name)
			p := newPTY(t)
			p.shell()
			before := p.termios()
			test(t, p, path)
			if !t.Failed() && p.termios() != before {
				t.Error("the terminal is not as it was")
			}
		})
	}
}

func TestRealPIN(t *testing.T) {
	long := strings.Repeat("0123456789", 100)
	for name, want := range map[string]string{
		"empty": "", "one": "1", "32": long[:32], "33": long[:33], "1000": long,
		"percent": "%0A100%25%", "blanks": " 1 2 ", "utf-8": "pässwörd€", "backslash": `\n"'`,
	} {
		t.Run(name, func(t *testing.T) {
			eachFlavour(t, func(t *testing.T, p *pty, path string) {
				done := p.getPIN(t.Context(), path, p.dialog())
				p.waitFor("id_ecdsa")
				p.waitFor("PIN:")
				p.types(want + "\r")
				if got := <-done; got.err != nil || string(got.pin) != want {
					t.Errorf("got %q, %v; want %q", got.pin, got.err, want)
				}
				if want != "" && len(want) > 1 && strings.Contains(p.seen.String(), want) {
					t.Errorf("the PIN is on the screen: %q", p.seen.String())
				}
			})
		})
	}
}

func TestRealPINTooLong(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *pty, path string) {
		done := p.getPIN(t.Context(), path, p.dialog())
		p.waitFor("PIN:")
		p.types(strings.Repeat("x", maxPIN+1) + "\r")
		if got := <-done; got.pin != nil || !errors.Is(got.err, ErrProtocol) || !strings.Contains(got.err.Error(), "longer than 1024") {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
	})
}

// What is shown is what was meant, and nothing that a terminal acts upon.
func TestRealTexts(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *pty, path string) {
		d := p.dialog()
		d.Description = "Key 100% of\n\x1b[31mJürgen %0A" + strings.Repeat(", the end", 200)
		d.Error = "Wrong PIN, 3 tries left"
		done := p.getPIN(t.Context(), path, d)
		p.waitFor("PIN:")
		for _, text := range []string{"Key 100% of", "[31mJürgen %0A", "Wrong PIN, 3 tries left", "…"} {
			if !strings.Contains(p.seen.String(), text) {
				t.Errorf("%q is not shown: %q", text, p.seen.String())
			}
		}
		if strings.Contains(p.seen.String(), "\x1b[31mJ") {
			t.Errorf("a control sequence came through: %q", p.seen.String())
		}
		p.types("1\r")
		if got := <-done; got.err != nil || string(got.pin) != "1" {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
	})
}

func TestRealCancel(t *testing.T) {
	keys := map[string]string{"pinentry-curses": "12\t\t\r", "pinentry-tty": "\x04"}
	eachFlavour(t, func(t *testing.T, p *pty, path string) {
		done := p.getPIN(t.Context(), path, p.dialog())
		p.waitFor("PIN:")
		p.types(keys[path[strings.LastIndexByte(path, '/')+1:]])
		if got := <-done; got.pin != nil || !errors.Is(got.err, ErrCancelled) {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
	})
}

func TestRealTimeout(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *pty, path string) {
		d := p.dialog()
		d.Timeout = time.Second
		d.Grace = time.Minute // the program's own timeout, and not ours
		if got := <-p.getPIN(t.Context(), path, d); got.pin != nil || !errors.Is(got.err, ErrTimeout) {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
		if got := <-p.confirm(t.Context(), path, d); got.button != 0 || !errors.Is(got.err, ErrTimeout) {
			t.Errorf("got %v, %v", got.button, got.err)
		}
	})
}

// A client that hangs up takes the dialog off its terminal, which gets its echo
// back.
func TestRealEndsWithContext(t *testing.T) {
	for name, ask := range map[string]func(*pty, context.Context, string, Dialog) <-chan result{"PIN": (*pty).getPIN, "confirm": (*pty).confirm} {
		t.Run(name, func(t *testing.T) {
			eachFlavour(t, func(t *testing.T, p *pty, path string) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := ask(p, ctx, path, p.dialog())
				if name == "PIN" {
					p.waitFor("PIN:")
				} else {
					p.waitFor("ancel")
				}
				p.types("12")
				cancel()
				if got := <-done; got.pin != nil || got.button != 0 || !errors.Is(got.err, context.Canceled) {
					t.Errorf("got %q, %v, %v", got.pin, got.button, got.err)
				}
			})
		})
	}
}

func TestRealConfirm(t *testing.T) {
	for name, test := range map[string]struct {
		curses, tty string
		want        Button
		err         error
	}{
		"ok":     {"\r", "o", ButtonOK, nil},
		"middle": {"\t\r", "1", ButtonNotOK, nil},
		"cancel": {"\t\t\r", "r", 0, ErrCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			eachFlavour(t, func(t *testing.T, p *pty, path string) {
				d := p.dialog()
				d.OK, d.NotOK, d.Cancel = "_Once", "_15 minutes", "_Refuse"
				done := p.confirm(t.Context(), path, d)
				p.waitFor("efuse")
				if strings.HasSuffix(path, "tty") {
					p.types(test.tty)
				} else {
					p.types(test.curses)
				}
				if got := <-done; got.button != test.want || !errors.Is(got.err, test.err) {
					t.Errorf("got %v, %v; want %v, %v", got.button, got.err, test.want, test.err)
				}
			})
		})
	}
}

// Without texts for the buttons there is still one to say no with.
func TestRealConfirmCancelByDefault(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *pty, path string) {
		done := p.confirm(t.Context(), path, p.dialog())
		p.waitFor("ancel")
		if strings.HasSuffix(path, "tty") {
			p.types("c")
		} else {
			p.types("\t\r")
		}
		if got := <-done; got.button != 0 || !errors.Is(got.err, ErrCancelled) {
			t.Errorf("got %v, %v", got.button, got.err)
		}
	})
}

func TestRealMessage(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *pty, path string) {
		d := p.dialog()
		d.Description = "The TPM is locked"
		done := make(chan error, 1)
		go func() { done <- Message(t.Context(), path, d) }()
		p.waitFor("The TPM is locked")
		if strings.HasSuffix(path, "tty") {
			p.waitFor("any key")
		} else {
			p.waitFor("OK")
		}
		p.types("\r")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Without a terminal, or on one that cannot be used, nobody has said no.
func TestRealNoTerminal(t *testing.T) {
	for _, name := range terminalFlavours {
		for _, path := range []string{"", "/dev/null", t.TempDir() + "/gone"} {
			t.Run(name+path, func(t *testing.T) {
				d := Dialog{Terminal: Terminal{Name: path, Type: "xterm"}, Environ: []string{"PATH=/usr/bin:/bin"}}
				if pin, err := GetPIN(t.Context(), program(t, name), d); pin != nil || !errors.Is(err, ErrUnusable) || errors.Is(err, ErrCancelled) {
					t.Errorf("got %q, %v", pin, err)
				}
				if button, err := Confirm(t.Context(), program(t, name), d); button != 0 || !errors.Is(err, ErrUnusable) {
					t.Errorf("got %v, %v", button, err)
				}
			})
		}
	}
}

// A terminal that vanishes, because its window is closed or its line is cut,
// ends the dialog, whether it is the program's own terminal or, as usual, that
// of somebody's shell.
func TestRealTerminalVanishes(t *testing.T) {
	for _, name := range terminalFlavours {
		for _, shell := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %v", name, shell), func(t *testing.T) {
				path := program(t, name)
				p := newPTY(t)
				if shell {
					p.shell()
				}
				done := p.getPIN(t.Context(), path, p.dialog())
				p.waitFor("PIN:")
				p.person.Close()
				if got := <-done; got.pin != nil || got.err == nil {
					t.Errorf("got %q, %v", got.pin, got.err)
				} else {
					t.Log(got.err)
				}
			})
		}
	}
}

// Several keys may ask at once, each on its own terminal.
func TestRealTwoAtOnce(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *pty, path string) {
		other := newPTY(t)
		first := p.getPIN(t.Context(), path, p.dialog())
		second := other.getPIN(t.Context(), path, other.dialog())
		p.waitFor("PIN:")
		other.waitFor("PIN:")
		other.types("2\r")
		p.types("1\r")
		if a, b := <-first, <-second; a.err != nil || b.err != nil || string(a.pin) != "1" || string(b.pin) != "2" {
			t.Errorf("got %v and %v", a, b)
		}
	})
}
