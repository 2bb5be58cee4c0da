package pinentry

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/prompt/tty"
	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// seat is a terminal with a client in its foreground, which asks with a real
// pinentry.
type seat struct {
	*ptytest.Terminal
	way  pinentry
	q    ask.Question
	name string // of the pinentry
}

func newSeat(t *testing.T, name string, environ ...string) seat {
	t.Helper()
	dir := t.TempDir()
	conf := "pinentry-program " + needs.Program(t, name) + "\n"
	if err := os.WriteFile(filepath.Join(dir, "gpg-agent.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	s := prompt.Settings{Environ: []string{"PATH=" + os.Getenv("PATH"), "GNUPGHOME=" + dir}, Timeout: time.Hour, Grace: 2 * time.Second}
	p := ptytest.New(t)
	client := exec.Command("sleep", "1000")
	client.Env = append([]string{"TERM=xterm"}, environ...)
	pid := p.Run(client).Process.Pid
	return seat{p, pinentry{s, tty.New(s, "")}, ask.Question{Peer: peer.Peer{PID: pid, UID: os.Getuid()}}, name}
}

// eachFlavour runs a test for each pinentry that asks on terminals. The terminal
// must be as before when it is over.
func eachFlavour(t *testing.T, test func(t *testing.T, s seat)) {
	for _, name := range []string{"pinentry-curses", "pinentry-tty"} {
		t.Run(name, func(t *testing.T) {
			s := newSeat(t, name, "LANG=C.UTF-8")
			before := s.Settings()
			test(t, s)
			if !t.Failed() && s.Settings() != before {
				t.Error("the terminal is not as it was")
			}
		})
	}
}

type result struct {
	prompt.Answer
	err error
}

// asks asks in the background.
func (s seat) asks(ctx context.Context, kind prompt.Kind, text string) <-chan result {
	done := make(chan result, 1)
	go func() {
		answer, err := s.way.Ask(ctx, prompt.Question{Question: s.q, Kind: kind, Text: text})
		done <- result{answer, err}
	}()
	return done
}

// key types the keys of one program or of the other.
func (s seat) key(curses, tty string) {
	if s.name == "pinentry-tty" {
		s.Type(tty)
	} else {
		s.Type(curses)
	}
}

func TestRealPIN(t *testing.T) {
	long := strings.Repeat("0123456789", 100)
	for name, want := range map[string]string{
		"empty": "", "one": "1", "32": long[:32], "33": long[:33], "1000": long,
		"percent": "%0A100%25%", "blanks": " 1 2 ", "utf-8": "pässwörd€", "backslash": `\n"'`,
	} {
		t.Run(name, func(t *testing.T) {
			eachFlavour(t, func(t *testing.T, s seat) {
				done := s.asks(t.Context(), prompt.PIN, "Key id_ecdsa\nfor ssh")
				s.WaitFor("id_ecdsa")
				s.WaitFor("PIN:")
				s.Type(want + "\r")
				if got := <-done; got.err != nil || string(got.PIN) != want {
					t.Errorf("got %q, %v; want %q", got.PIN, got.err, want)
				}
				if seen := s.Seen(); len(want) > 1 && strings.Contains(seen, want) {
					t.Errorf("the PIN is on the screen: %q", seen)
				}
			})
		})
	}
}

func TestRealPINTooLong(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		done := s.asks(t.Context(), prompt.PIN, "?")
		s.WaitFor("PIN:")
		s.Type(strings.Repeat("x", prompt.MaxAnswer+1) + "\r")
		if got := <-done; got.PIN != nil || !errors.Is(got.err, prompt.ErrTooLong) {
			t.Errorf("got %q, %v", got.PIN, got.err)
		}
	})
}

// The text is shown as it is meant, and long texts are shortened.
func TestRealTexts(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		done := s.asks(t.Context(), prompt.PIN, "Key 100% of\nJürgen %0A git → ssh"+strings.Repeat(", the end", 200))
		s.WaitFor("PIN:")
		seen := s.Seen()
		for _, text := range []string{"Key 100% of", "Jürgen %0A git → ssh", "…"} {
			if !strings.Contains(seen, text) {
				t.Errorf("%q is not shown: %q", text, seen)
			}
		}
		s.Type("1\r")
		if got := <-done; got.err != nil || string(got.PIN) != "1" {
			t.Errorf("got %q, %v", got.PIN, got.err)
		}
	})
}

// In a locale without our signs, pinentry-curses would not show the text at all.
func TestRealTextInASCII(t *testing.T) {
	for _, name := range []string{"pinentry-curses", "pinentry-tty"} {
		for _, locale := range []string{"LC_ALL=C", "LC_ALL="} {
			t.Run(name+" "+locale, func(t *testing.T) {
				s := newSeat(t, name, locale)
				done := s.asks(t.Context(), prompt.PIN, "Requested by git → ssh… (pid 1)")
				s.WaitFor("git -> ssh... (pid 1)")
				s.WaitFor("PIN:")
				s.Type("1\r")
				if got := <-done; got.err != nil || string(got.PIN) != "1" {
					t.Errorf("got %q, %v", got.PIN, got.err)
				}
			})
		}
	}
}

func TestRealCancel(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		done := s.asks(t.Context(), prompt.PIN, "?")
		s.WaitFor("PIN:")
		s.key("12\t\t\r", "\x04")
		if got := <-done; got.PIN != nil || !errors.Is(got.err, ask.ErrRefused) {
			t.Errorf("got %q, %v", got.PIN, got.err)
		}
	})
}

func TestRealTimeout(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		s.way.Timeout = 200 * time.Millisecond
		s.way.terminals = tty.New(s.way.Settings, "")
		for _, kind := range []prompt.Kind{prompt.PIN, prompt.Consent} {
			if got := <-s.asks(t.Context(), kind, "?"); got.PIN != nil || !errors.Is(got.err, ask.ErrNoAnswer) {
				t.Errorf("got %q, %v", got.PIN, got.err)
			}
		}
	})
}

// A client that hangs up takes the dialog off its terminal, which gets its echo
// back.
func TestRealEndsWithContext(t *testing.T) {
	for kind, shown := range map[prompt.Kind]string{prompt.PIN: "PIN:", prompt.Consent: "eny"} {
		eachFlavour(t, func(t *testing.T, s seat) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := s.asks(ctx, kind, "?")
			s.WaitFor(shown)
			s.Type("12")
			cancel()
			if got := <-done; got.PIN != nil || got.Grant != ask.GrantNo || !errors.Is(got.err, context.Canceled) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestRealConsent(t *testing.T) {
	for name, test := range map[string]struct {
		curses, tty string
		want        ask.Grant
		err         error
	}{
		"once":       {"\r", "a", ask.GrantOnce, nil},
		"15 minutes": {"\t\r", "m", ask.GrantMinutes, nil},
		"deny":       {"\t\t\r", "d", ask.GrantNo, ask.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			eachFlavour(t, func(t *testing.T, s seat) {
				done := s.asks(t.Context(), prompt.Consent, "Allow?")
				s.WaitFor("eny")
				s.key(test.curses, test.tty)
				if got := <-done; got.Grant != test.want || !errors.Is(got.err, test.err) {
					t.Errorf("got %v, %v; want %v, %v", got.Grant, got.err, test.want, test.err)
				}
			})
		})
	}
}

// A notice is written to the terminal without a dialog, which would have to be
// closed. No pinentry is needed for it.
func TestRealNotice(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		for _, environ := range [][]string{{"DISPLAY=:7799"}, {"PATH=/nowhere", "GNUPGHOME=/nowhere"}} {
			s.way.Environ = append(s.way.Environ, environ...)
			if environ[0] != "DISPLAY=:7799" {
				s.way.Environ = environ
			}
			if got := <-s.asks(t.Context(), prompt.Notice, "The TPM is locked"); got.err != nil {
				t.Error(got.err)
			}
			s.WaitFor("The TPM is locked")
		}
	})
}

// A program for terminals asks there even if there is a display.
func TestRealPinentryForTerminals(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		s.way.Environ = append(s.way.Environ, "DISPLAY=:7799")
		done := s.asks(t.Context(), prompt.PIN, "?")
		s.WaitFor("PIN:")
		s.Type("1\r")
		if got := <-done; got.err != nil || string(got.PIN) != "1" {
			t.Errorf("got %q, %v", got.PIN, got.err)
		}
	})
}

// Without a terminal that the program can use, the user has not said no.
func TestRealNoTerminal(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		s.q.Peer = peer.Peer{PID: -1, UID: -1}
		for _, kind := range []prompt.Kind{prompt.PIN, prompt.Consent} {
			got := <-s.asks(t.Context(), kind, "?")
			if !isUnusable(got.err) || !strings.Contains(got.err.Error(), s.name+" asks on terminals only, and the client is not known") {
				t.Errorf("got %v", got.err)
			}
			// The name of the file does not tell.
			path := filepath.Join(t.TempDir(), "pinentry")
			if err := os.WriteFile(path, []byte("#!/bin/sh\nexec "+needs.Program(t, s.name)+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := s.way.run(t.Context(), path, s.way.Environ, prompt.Question{Kind: kind, Text: "?"}, nil)
			if !isUnusable(err) {
				t.Errorf("got %v", err)
			}
		}
	})
}

// A terminal that vanishes ends the dialog: its window is closed, or its line is
// cut.
func TestRealTerminalVanishes(t *testing.T) {
	for _, name := range []string{"pinentry-curses", "pinentry-tty"} {
		t.Run(name, func(t *testing.T) {
			s := newSeat(t, name)
			done := s.asks(t.Context(), prompt.PIN, "?")
			s.WaitFor("PIN:")
			s.HangUp()
			if got := <-done; got.PIN != nil || got.err == nil {
				t.Errorf("got %q, %v", got.PIN, got.err)
			}
		})
	}
}

// Dialogs on one terminal wait for each other, but not for those on another.
func TestRealTurns(t *testing.T) {
	eachFlavour(t, func(t *testing.T, s seat) {
		other := newSeat(t, s.name)
		other.way = s.way
		first, elsewhere := s.asks(t.Context(), prompt.PIN, "?"), other.asks(t.Context(), prompt.PIN, "?")
		s.WaitFor("PIN:")
		other.WaitFor("PIN:")
		ctx, cancel := context.WithCancel(t.Context())
		second := s.asks(ctx, prompt.PIN, "?")
		cancel()
		if got := <-second; !errors.Is(got.err, context.Canceled) {
			t.Errorf("got %q, %v", got.PIN, got.err)
		}
		other.Type("2\r")
		s.Type("1\r")
		if a, b := <-first, <-elsewhere; a.err != nil || b.err != nil || string(a.PIN) != "1" || string(b.PIN) != "2" {
			t.Errorf("got %+v and %+v", a, b)
		}
	})
}
