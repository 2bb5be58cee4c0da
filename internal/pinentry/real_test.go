package pinentry

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
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

// named is what a pinentry is told of a terminal.
func named(p *ptytest.Terminal) Terminal {
	return Terminal{Name: p.Path(), Type: "xterm", LCCtype: "C.UTF-8", LCMessages: "C"}
}

// dialogOn is a dialog on a terminal.
func dialogOn(p *ptytest.Terminal) Dialog {
	return Dialog{
		Title: "tpm-agent", Description: "Key id_ecdsa\nfor ssh", Prompt: "PIN:", KeyInfo: "s/0123", Owner: 1,
		Environ: []string{"PATH=/usr/bin:/bin"}, Terminal: named(p),
	}
}

type result struct {
	pin    []byte
	button Button
	err    error
}

func getPIN(ctx context.Context, program string, d Dialog) <-chan result {
	done := make(chan result, 1)
	go func() {
		pin, err := GetPIN(ctx, program, d)
		done <- result{pin: pin, err: err}
	}()
	return done
}

func confirm(ctx context.Context, program string, d Dialog) <-chan result {
	done := make(chan result, 1)
	go func() {
		button, err := Confirm(ctx, program, d)
		done <- result{button: button, err: err}
	}()
	return done
}

// eachFlavour runs a test for each flavour on a terminal with somebody's shell;
// the terminal has to be as before when it is over.
func eachFlavour(t *testing.T, test func(t *testing.T, p *ptytest.Terminal, path string)) {
	for _, name := range terminalFlavours {
		t.Run(name, func(t *testing.T) {
			path := program(t, name)
			p := ptytest.New(t)
			p.Run(exec.Command("/bin/sleep", "1000"))
			before := p.Settings()
			test(t, p, path)
			if !t.Failed() && p.Settings() != before {
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
			eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
				done := getPIN(t.Context(), path, dialogOn(p))
				p.WaitFor("id_ecdsa")
				p.WaitFor("PIN:")
				p.Type(want + "\r")
				if got := <-done; got.err != nil || string(got.pin) != want {
					t.Errorf("got %q, %v; want %q", got.pin, got.err, want)
				}
				if seen := p.Seen(); len(want) > 1 && strings.Contains(seen, want) {
					t.Errorf("the PIN is on the screen: %q", seen)
				}
			})
		})
	}
}

func TestRealPINTooLong(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
		done := getPIN(t.Context(), path, dialogOn(p))
		p.WaitFor("PIN:")
		p.Type(strings.Repeat("x", maxPIN+1) + "\r")
		if got := <-done; got.pin != nil || !errors.Is(got.err, ErrProtocol) || !strings.Contains(got.err.Error(), "longer than 1024") {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
	})
}

// What is shown is what was meant, and nothing that a terminal acts upon.
func TestRealTexts(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
		d := dialogOn(p)
		d.Description = "Key 100% of\n\x1b[31mJürgen %0A" + strings.Repeat(", the end", 200)
		d.Error = "Wrong PIN, 3 tries left"
		done := getPIN(t.Context(), path, d)
		p.WaitFor("PIN:")
		seen := p.Seen()
		for _, text := range []string{"Key 100% of", "[31mJürgen %0A", "Wrong PIN, 3 tries left", "…"} {
			if !strings.Contains(seen, text) {
				t.Errorf("%q is not shown: %q", text, seen)
			}
		}
		if strings.Contains(seen, "\x1b[31mJ") {
			t.Errorf("a control sequence came through: %q", seen)
		}
		p.Type("1\r")
		if got := <-done; got.err != nil || string(got.pin) != "1" {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
	})
}

func TestRealCancel(t *testing.T) {
	keys := map[string]string{"pinentry-curses": "12\t\t\r", "pinentry-tty": "\x04"}
	eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
		done := getPIN(t.Context(), path, dialogOn(p))
		p.WaitFor("PIN:")
		p.Type(keys[path[strings.LastIndexByte(path, '/')+1:]])
		if got := <-done; got.pin != nil || !errors.Is(got.err, ErrCancelled) {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
	})
}

func TestRealTimeout(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
		d := dialogOn(p)
		d.Timeout = time.Second
		d.Grace = time.Minute // the program's own timeout, and not ours
		if got := <-getPIN(t.Context(), path, d); got.pin != nil || !errors.Is(got.err, ErrTimeout) {
			t.Errorf("got %q, %v", got.pin, got.err)
		}
		if got := <-confirm(t.Context(), path, d); got.button != 0 || !errors.Is(got.err, ErrTimeout) {
			t.Errorf("got %v, %v", got.button, got.err)
		}
	})
}

// A client that hangs up takes the dialog off its terminal, which gets its echo
// back.
func TestRealEndsWithContext(t *testing.T) {
	for name, ask := range map[string]func(context.Context, string, Dialog) <-chan result{"PIN": getPIN, "confirm": confirm} {
		t.Run(name, func(t *testing.T) {
			eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := ask(ctx, path, dialogOn(p))
				if name == "PIN" {
					p.WaitFor("PIN:")
				} else {
					p.WaitFor("ancel")
				}
				p.Type("12")
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
			eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
				d := dialogOn(p)
				d.OK, d.NotOK, d.Cancel = "_Once", "_15 minutes", "_Refuse"
				done := confirm(t.Context(), path, d)
				p.WaitFor("efuse")
				if strings.HasSuffix(path, "tty") {
					p.Type(test.tty)
				} else {
					p.Type(test.curses)
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
	eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
		done := confirm(t.Context(), path, dialogOn(p))
		p.WaitFor("ancel")
		if strings.HasSuffix(path, "tty") {
			p.Type("c")
		} else {
			p.Type("\t\r")
		}
		if got := <-done; got.button != 0 || !errors.Is(got.err, ErrCancelled) {
			t.Errorf("got %v, %v", got.button, got.err)
		}
	})
}

func TestRealMessage(t *testing.T) {
	eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
		d := dialogOn(p)
		d.Description = "The TPM is locked"
		done := make(chan error, 1)
		go func() { done <- Message(t.Context(), path, d) }()
		p.WaitFor("The TPM is locked")
		if strings.HasSuffix(path, "tty") {
			p.WaitFor("any key")
		} else {
			p.WaitFor("OK")
		}
		p.Type("\r")
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
				p := ptytest.New(t)
				if shell {
					p.Run(exec.Command("/bin/sleep", "1000"))
				}
				done := getPIN(t.Context(), path, dialogOn(p))
				p.WaitFor("PIN:")
				p.HangUp()
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
	eachFlavour(t, func(t *testing.T, p *ptytest.Terminal, path string) {
		other := ptytest.New(t)
		first := getPIN(t.Context(), path, dialogOn(p))
		second := getPIN(t.Context(), path, dialogOn(other))
		p.WaitFor("PIN:")
		other.WaitFor("PIN:")
		other.Type("2\r")
		p.Type("1\r")
		if a, b := <-first, <-second; a.err != nil || b.err != nil || string(a.pin) != "1" || string(b.pin) != "2" {
			t.Errorf("got %v and %v", a, b)
		}
	})
}
