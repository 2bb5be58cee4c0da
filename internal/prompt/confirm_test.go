package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// What OpenSSH's ask_permission makes of the same programs.
func TestConfirmAskpass(t *testing.T) {
	for name, test := range map[string]struct {
		body  string
		allow bool
	}{
		"nothing":          {"exit 0", true},
		"an empty line":    {"echo", true},
		"cr":               {`printf '\r\n'`, true},
		"yes":              {"echo yes", true},
		"YES":              {"echo YES", true},
		"no newline":       {"printf yes", true},
		"first line":       {`printf 'yes\nno\n'`, true},
		"empty first line": {`printf '\nno\n'`, true},
		"y":                {"echo y", false},
		"no":               {"echo no", false},
		"blank":            {"echo ' '", false},
		"yes and more":     {"echo yes sir", false},
		"exit status":      {"exit 1", false},
		"yes, but fails":   {"echo yes; exit 1", false},
		"killed":           {"echo yes; kill -9 $$", false},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := script(t, test.body)
			err := confirm(t.Context(), p, agent.Question{Name: "id.tpm"})
			if test.allow && err != nil || !test.allow && !errors.Is(err, agent.ErrRefused) {
				t.Errorf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "key id.tpm may be used") {
				t.Errorf("%v does not name the key", err)
			}
		})
	}
}

// confirm is Confirm, where a yes must be one for this time.
func confirm(ctx context.Context, p *Prompter, q agent.Question) error {
	grant, err := p.Confirm(ctx, agent.ConfirmPrompt{Question: q})
	if (err == nil) != (grant == agent.GrantOnce) {
		return fmt.Errorf("granted %d with the error %w", grant, err)
	}
	return err
}

// A program that goes wrong has said neither yes nor no, and allows nothing.
func TestConfirmAskpassFails(t *testing.T) {
	for _, body := range []string{`printf 'yes\000'`, `printf '\000'`, "printf '%01025d\n' 1", "while :; do echo; done"} {
		p, _ := script(t, body)
		if err := confirm(t.Context(), p, agent.Question{}); err == nil || errors.Is(err, agent.ErrRefused) {
			t.Errorf("%s: got %v", body, err)
		}
	}
	missing := New(Options{Ways: []Way{Askpass}, Askpass: filepath.Join(t.TempDir(), "nowhere"), Require: Force})
	if err := confirm(t.Context(), missing, agent.Question{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := confirm(t.Context(), New(Options{Ways: []Way{}}), agent.Question{}); !errors.Is(err, agent.ErrNoPrompt) {
		t.Errorf("got %v", err)
	}
}

// The program is told to show two buttons, and for a PIN it is not, whatever
// the agent was started with.
func TestConfirmHint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "askpass")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+`echo "${SSH_ASKPASS_PROMPT-unset} $MARK" | tee $1`), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, inherited := range []string{"SSH_ASKPASS_PROMPT=none", "SSH_ASKPASS_PROMPT=confirm", "OTHER="} {
		p := New(Options{Ways: []Way{Askpass}, Askpass: path, Require: Force, Environ: append(os.Environ(), "MARK=given", inherited)})
		out := filepath.Join(t.TempDir(), "out")
		for hint, want := range map[string]string{hintConfirm: "confirm given", hintNone: "none given"} {
			if got, err := (askpassWay{p}).ask(t.Context(), question{text: out}, hint); err != nil || string(got) != want {
				t.Errorf("%s: got %q, %v", inherited, got, err)
			}
		}
		if got, err := ask(t.Context(), p, out); err != nil || string(got) != "unset given" {
			t.Errorf("%s: a PIN is asked for with %q, %v", inherited, got, err)
		}
	}
}

// A descriptor that nobody marked does not reach the program.
func TestConfirmDescriptors(t *testing.T) {
	fd, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	p, _ := script(t, fmt.Sprintf("! [ -e /proc/self/fd/%d ]", fd))
	if err := confirm(t.Context(), p, agent.Question{}); err != nil {
		t.Error(err)
	}
}

func TestConfirmEndsWithContext(t *testing.T) {
	p, dir := script(t, `echo $$ > $DIR/pid; mv $DIR/pid $DIR/ready; exec sleep 600`)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client gone")
	done := make(chan error, 1)
	go func() { done <- confirm(ctx, p, agent.Question{}) }()
	pid := await(t, filepath.Join(dir, "ready"))
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	awaitGone(t, pid)
}

func TestConfirmTerminal(t *testing.T) {
	for typed, allow := range map[string]bool{
		"y\n": true, "Y\n": true, "yes\n": true, "YES\r": true, " yes \n": true, "nx\x7f\x7fy\n": true,
		"\n": false, "\x04": false, "n\n": false, "no\n": false, "ye\n": false, "yess\n": false, "1\n": false, "y n\n": false,
	} {
		t.Run(fmt.Sprintf("%q", typed), func(t *testing.T) {
			tty := ptytest.New(t)
			p := New(Options{Ways: []Way{Terminal}, Terminal: tty.Path()})
			done := make(chan error, 1)
			go func() { done <- confirm(t.Context(), p, agent.Question{Name: "id.tpm", Fingerprint: "SHA256:x"}) }()
			tty.WaitFor("Allow use of key id.tpm?\r\nKey fingerprint SHA256:x.\r\n")
			tty.WaitFor("\r\ny once, p this process, m 15 minutes, l until locked [y/p/m/l/N] ")
			if !tty.Echoes() {
				t.Error("the terminal does not show what is typed")
			}
			tty.Type(typed)
			if err := <-done; allow && err != nil || !allow && !errors.Is(err, agent.ErrRefused) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A question that nobody waits for leaves the terminal to the next, and what
// was typed before a question is no answer to it: a PIN's dialog between the
// two turned the echo off, and consent is asked for with echo again.
func TestConfirmTerminalTakesTurns(t *testing.T) {
	tty := ptytest.New(t)
	p := New(Options{Ways: []Way{Terminal}, Terminal: tty.Path()})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- confirm(ctx, p, agent.Question{Name: "first.tpm"}) }()
	tty.WaitFor("first.tpm")
	tty.WaitFor("[y/p/m/l/N] ")
	pin := asking(t.Context(), p)
	tty.Type("y")
	tty.WaitFor("y")
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	tty.WaitFor("Enter PIN: ")
	if tty.Echoes() {
		t.Error("the terminal shows what is typed")
	}
	tty.Type("1234\n")
	if got := <-pin; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	tty.Type("yes\n")
	tty.WaitFor("yes\r\n")
	second := make(chan error, 1)
	go func() { second <- confirm(t.Context(), p, agent.Question{Name: "second.tpm"}) }()
	tty.WaitFor("[y/p/m/l/N] ")
	tty.Type("no\n")
	if err := <-second; !errors.Is(err, agent.ErrRefused) {
		t.Errorf("typed before it was asked: %v", err)
	}
}

// TestGrantTime: the questions say how long consent for a while holds.
func TestGrantTime(t *testing.T) {
	if got := Duration(agent.GrantTime); got != "15 minutes" {
		t.Errorf("consent holds for %s, and the terminal and pinentry offer 15 minutes", got)
	}
}
