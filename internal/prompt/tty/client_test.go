package tty

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// clientOn returns a question from a client in the foreground of a terminal.
func clientOn(p *ptytest.Terminal) ask.Question {
	return askedBy(p.Run(exec.Command("sleep", "1000")).Process.Pid)
}

func askedBy(pid int) ask.Question {
	return ask.Question{Peer: peer.Peer{PID: pid, UID: os.Getuid()}}
}

// onClients returns the way to ask on clients' terminals; the agent has none.
func onClients() *Terminals {
	return New(prompt.Settings{Timeout: time.Minute, Grace: time.Second}, "")
}

type result struct {
	prompt.Answer
	err error
}

// asking asks in the background.
func asking(ctx context.Context, w *Terminals, q prompt.Question) <-chan result {
	done := make(chan result, 1)
	go func() {
		answer, err := w.Ask(ctx, q)
		done <- result{answer, err}
	}()
	return done
}

// askPIN asks for a PIN in the background.
func askPIN(ctx context.Context, w *Terminals, q ask.Question) <-chan result {
	return asking(ctx, w, prompt.Question{Question: q, Kind: prompt.PIN, Text: "Enter PIN for id.tpm\nSHA256:x"})
}

func isUnusable(err error) bool {
	_, unusable := errors.AsType[*prompt.UnusableError](err)
	return unusable
}

func TestClientTerminal(t *testing.T) {
	p := ptytest.New(t)
	done := askPIN(t.Context(), onClients(), clientOn(p))
	p.WaitFor("Enter PIN for ")
	p.WaitFor(": ")
	if p.Echoes() {
		t.Error("the terminal shows what is typed")
	}
	p.Type("12x\x7f34\n")
	if got := <-done; got.err != nil || string(got.PIN) != "1234" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

// The agent stays without a controlling terminal if it has none.
func TestClientTerminalStaysTheClients(t *testing.T) {
	before, _ := peer.LookAt(os.Getpid())
	p := ptytest.New(t)
	done := askPIN(t.Context(), onClients(), clientOn(p))
	p.WaitFor("Enter PIN for ")
	if during, ok := peer.LookAt(os.Getpid()); !ok || during.Terminal != before.Terminal {
		t.Errorf("the agent's terminal was %d and is %d", before.Terminal, during.Terminal)
	}
	p.Type("\x04")
	if got := <-done; !errors.Is(got.err, ask.ErrRefused) {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
}

// TestClientTerminalUnusable tests where a question would not be seen by the
// user who waits for the client. It is not asked there.
func TestClientTerminalUnusable(t *testing.T) {
	for name, test := range map[string]struct {
		question func(t *testing.T, p *ptytest.Terminal) ask.Question
		why      string
	}{
		"no client": {func(*testing.T, *ptytest.Terminal) ask.Question {
			return ask.Question{Peer: peer.Peer{PID: -1, UID: -1}}
		}, "the client is not known"},
		"gone": {func(t *testing.T, p *ptytest.Terminal) ask.Question {
			cmd := exec.Command("true")
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			return askedBy(cmd.Process.Pid)
		}, "the client has gone"},
		"of another user": {func(t *testing.T, p *ptytest.Terminal) ask.Question {
			q := clientOn(p)
			q.Peer.UID++
			return q
		}, "belongs to another user"},
		"forwarded": {func(t *testing.T, p *ptytest.Terminal) ask.Question {
			q := clientOn(p)
			q.Use.Forwarded = true
			return q
		}, "forwarded from another machine"},
		"no terminal": {func(t *testing.T, p *ptytest.Terminal) ask.Question {
			cmd := exec.Command("sleep", "1000")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			return askedBy(cmd.Process.Pid)
		}, "the client has no terminal"},
		"background": {func(t *testing.T, p *ptytest.Terminal) ask.Question {
			bash := exec.Command("bash", "--norc", "-c", "set -m; sleep 1000 & echo $!; wait")
			bash.Env = []string{"PATH=" + os.Getenv("PATH")} // or it may warn of a locale
			p.Run(bash)
			pid, err := strconv.Atoi(p.WaitFor("\r\n"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // it is not in the foreground, which hangs up
			return askedBy(pid)
		}, "in the background of its terminal"},
		"raw": {func(t *testing.T, p *ptytest.Terminal) ask.Question {
			q := clientOn(p)
			p.Change(func(state *unix.Termios) { state.Lflag &^= unix.ICANON | unix.ISIG | unix.ECHO })
			return q
		}, "is in use by another program"},
		"asked for a password": {func(t *testing.T, p *ptytest.Terminal) ask.Question {
			q := clientOn(p)
			p.Change(func(state *unix.Termios) { state.Lflag &^= unix.ECHO })
			return q
		}, "is in use by another program"},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			got := <-askPIN(t.Context(), onClients(), test.question(t, p))
			if !isUnusable(got.err) || !strings.Contains(got.err.Error(), test.why) {
				t.Errorf("got %q, %v; want %q", got.PIN, got.err, test.why)
			}
		})
	}
}

// Processes and terminals of other users are not used.
func TestClientTerminalOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can create processes and terminals of other users")
	}
	const nobody = 65534
	p := ptytest.New(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	q := askedBy(p.Run(cmd).Process.Pid)
	if got := <-askPIN(t.Context(), onClients(), q); !isUnusable(got.err) || !strings.Contains(got.err.Error(), "belongs to another user") {
		t.Errorf("a process of another user: got %q, %v", got.PIN, got.err)
	}
	p = ptytest.New(t)
	q = clientOn(p)
	if err := os.Chown(p.Path(), nobody, -1); err != nil {
		t.Fatal(err)
	}
	if got := <-askPIN(t.Context(), onClients(), q); !isUnusable(got.err) || !strings.Contains(got.err.Error(), "belongs to another user") {
		t.Errorf("a terminal of another user: got %q, %v", got.PIN, got.err)
	}
}

// TestClientTerminalEnds tests what ends a question, and that the client gets its
// terminal back.
func TestClientTerminalEnds(t *testing.T) {
	gone := errors.New("client gone")
	for name, test := range map[string]struct {
		do   func(p *ptytest.Terminal, cancel context.CancelCauseFunc)
		want error
	}{
		"hung up": {func(_ *ptytest.Terminal, cancel context.CancelCauseFunc) { cancel(gone) }, gone},
		"ctrl-c":  {func(p *ptytest.Terminal, _ context.CancelCauseFunc) { p.Type("half a PIN\x03") }, errLeft},
		"ctrl-d":  {func(p *ptytest.Terminal, _ context.CancelCauseFunc) { p.Type("\x04") }, ask.ErrRefused},
		"stopped": {func(p *ptytest.Terminal, cancel context.CancelCauseFunc) { p.Type("\x13"); cancel(gone) }, gone},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			done := askPIN(ctx, onClients(), clientOn(p))
			p.WaitFor("Enter PIN for ")
			p.WaitFor(": ")
			test.do(p, cancel)
			if got := <-done; !errors.Is(got.err, test.want) {
				t.Errorf("got %q, %v; want %v", got.PIN, got.err, test.want)
			}
			if !p.Echoes() {
				t.Error("the terminal was left without echo")
			}
		})
	}
}

// A stopped terminal does not delay the end of the question.
func TestClientTerminalStopped(t *testing.T) {
	p := ptytest.New(t)
	q := clientOn(p)
	p.Type("\x13")
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client gone")
	done := askPIN(ctx, onClients(), q)
	awaitSilence(t, p)
	cancel(gone)
	if got := <-done; !errors.Is(got.err, gone) {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

// awaitSilence waits until the terminal's echo is off.
func awaitSilence(t *testing.T, p *ptytest.Terminal) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); p.Echoes(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the echo stays on")
		}
	}
}

// A question ends when its terminal vanishes, even if the client lives on.
func TestClientTerminalVanishes(t *testing.T) {
	for name, client := range map[string]string{"client dies": "sleep 1000", "client stays": "trap '' HUP; while :; do sleep 1; done"} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			cmd := p.Run(exec.Command("sh", "-c", client))
			done := askPIN(t.Context(), onClients(), askedBy(cmd.Process.Pid))
			p.WaitFor("Enter PIN for ")
			p.Type("half a P")
			p.HangUp()
			if got := <-done; !errors.Is(got.err, ask.ErrLeft) || !errors.Is(got.err, ask.ErrNoAnswer) {
				t.Errorf("got %q, %v", got.PIN, got.err)
			}
		})
	}
}

// Ctrl-Z gives the terminal to the shell, and the question leaves it: what is
// typed then is a command.
func TestClientTerminalCtrlZ(t *testing.T) {
	p := ptytest.New(t)
	shell := exec.Command("bash", "--norc", "--noediting", "-i")
	shell.Env = append(os.Environ(), "PS1=ready> ", "HISTFILE=")
	p.Run(shell)
	p.WaitFor("ready> ")
	p.Type("sh -c 'echo pid $$ e\"\"nd; exec sleep 1000'\n")
	p.WaitFor("\npid ")
	pid, err := strconv.Atoi(p.WaitFor(" end"))
	if err != nil {
		t.Fatal(err)
	}
	done := askPIN(t.Context(), onClients(), askedBy(pid))
	p.WaitFor("Enter PIN for ")
	p.Type("\x1a")
	if got := <-done; !errors.Is(got.err, errLeft) {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	p.WaitFor("Stopped")
	p.Type("echo shell reads $((6*7))\n")
	p.WaitFor("shell reads 42")
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

// Questions on one terminal wait for each other, but not for those on another.
func TestClientTerminalTakesTurns(t *testing.T) {
	one, other := ptytest.New(t), ptytest.New(t)
	prompter := onClients()
	q := clientOn(one)
	first := askPIN(t.Context(), prompter, q)
	one.WaitFor("Enter PIN for ")
	second := askPIN(t.Context(), prompter, q)
	elsewhere := askPIN(t.Context(), prompter, clientOn(other))
	other.WaitFor("Enter PIN for ")
	other.Type("elsewhere\n")
	if got := <-elsewhere; got.err != nil || string(got.PIN) != "elsewhere" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	if seen := one.Seen(); strings.Count(seen, "Enter PIN") > 1 {
		t.Errorf("two questions at a time: %q", seen)
	}
	one.Type("1\n")
	if got := <-first; got.err != nil || string(got.PIN) != "1" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	one.WaitFor("Enter PIN for ")
	awaitSilence(t, one)
	one.Type("2\n")
	if got := <-second; got.err != nil || string(got.PIN) != "2" {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
}

// TestConsent tests which consent can be typed. Everything else is a no.
func TestConsent(t *testing.T) {
	for typed, want := range map[string]ask.Grant{
		"y\n": ask.GrantOnce, "YES\r": ask.GrantOnce, " yes \n": ask.GrantOnce, "nx\x7f\x7fy\n": ask.GrantOnce,
		"p\n": ask.GrantProcess, "m\n": ask.GrantMinutes, "L\n": ask.GrantUntilLocked,
		"\n": ask.GrantNo, "\x04": ask.GrantNo, "n\n": ask.GrantNo, "pm\n": ask.GrantNo, "yes p\n": ask.GrantNo, "o\n": ask.GrantNo, "yess\n": ask.GrantNo, "1\n": ask.GrantNo,
	} {
		p := ptytest.New(t)
		done := asking(t.Context(), onClients(), prompt.Question{Question: clientOn(p), Kind: prompt.Consent, Text: "Allow use of key id.tpm?"})
		p.WaitFor("Allow use of key id.tpm?\r\ny once, p this process, m 15 minutes, l until locked [y/p/m/l/N] ")
		if !p.Echoes() {
			t.Error("the terminal does not show what is typed")
		}
		p.Type(typed)
		got := <-done
		if got.Grant != want || want != ask.GrantNo && got.err != nil || want == ask.GrantNo && !errors.Is(got.err, ask.ErrRefused) {
			t.Errorf("%q: got %d, %v", typed, got.Grant, got.err)
		}
	}
}

// Only the whole word yes is a yes.
func TestLastTry(t *testing.T) {
	for typed, yes := range map[string]bool{"yes": true, "Yes": true, "y": false, "": false, "no": false, "yes!": false} {
		p := ptytest.New(t)
		done := asking(t.Context(), onClients(), prompt.Question{Question: clientOn(p), Kind: prompt.LastTry, Text: "Try the PIN anyway?"})
		p.WaitFor("Try the PIN anyway?\r\nType yes to go on, anything else to stop: ")
		p.Type(typed + "\n")
		if got := <-done; yes && got.err != nil || !yes && !errors.Is(got.err, ask.ErrRefused) {
			t.Errorf("%q: got %v", typed, got.err)
		}
	}
}

// A notice is written without waiting for the user.
func TestNotice(t *testing.T) {
	p := ptytest.New(t)
	got := <-asking(t.Context(), onClients(), prompt.Question{Question: clientOn(p), Kind: prompt.Notice, Text: "The TPM is locked"})
	if got.err != nil {
		t.Error(got.err)
	}
	p.WaitFor("The TPM is locked")
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

// A question ends after the time limit.
func TestClientTerminalTimeout(t *testing.T) {
	p := ptytest.New(t)
	w := New(prompt.Settings{Timeout: 50 * time.Millisecond}, "")
	if got := <-askPIN(t.Context(), w, clientOn(p)); !errors.Is(got.err, ask.ErrNoAnswer) || isUnusable(got.err) {
		t.Errorf("got %q, %v", got.PIN, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

func TestInForeground(t *testing.T) {
	for stat, want := range map[peer.Stat]bool{
		{Terminal: 34817, Group: 7, Foreground: 7}: true,
		{Terminal: 34817, Group: 7, Foreground: 8}: false,
		{Group: -1, Foreground: -1}:                false,
	} {
		if inForeground(peer.Process{Stat: stat}) != want {
			t.Errorf("%+v: want %t", stat, want)
		}
	}
}

func TestDevicePath(t *testing.T) {
	wants := map[uint32]string{136 << 8: "/dev/pts/0", 136<<8 | 300&0xff | 300&0xfff00<<12: "/dev/pts/300"}
	if _, err := os.Stat("/sys/dev/char/1:3"); err == nil { // not in every container
		wants[1<<8|3] = "/dev/null"
	}
	for device, want := range wants {
		if got, err := devicePath(device); err != nil || got != want {
			t.Errorf("got %q, %v; want %s", got, err, want)
		}
	}
	if got, err := devicePath(4000<<8 | 1); err == nil {
		t.Errorf("got %q", got)
	}
}

// Tidying turns on the echo that a killed program turned off. It undoes other
// changes only while the client has the terminal: a shell may have made them.
func TestTidying(t *testing.T) {
	silent := func(s *unix.Termios) { s.Lflag &^= unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL }
	raw := func(s *unix.Termios) { silent(s); s.Lflag &^= unix.ICANON; s.Iflag &^= unix.ICRNL }
	for name, test := range map[string]struct {
		change       func(*unix.Termios)
		gone, undone bool
	}{
		"nothing":                        {func(*unix.Termios) {}, true, true},
		"no echo":                        {silent, false, true},
		"no echo, client gone":           {silent, true, true},
		"a single key, client gone":      {func(s *unix.Termios) { silent(s); s.Lflag &^= unix.ICANON; s.Cc[unix.VMIN] = 4 }, true, true},
		"raw":                            {raw, false, true},
		"an editor's, client gone":       {raw, true, false},
		"another erase key, client gone": {func(s *unix.Termios) { silent(s); s.Cc[unix.VERASE] = 8 }, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			before := p.Settings()
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			err := onClients().OnClient(t.Context(), clientOn(p), func(_ context.Context, c *Client) error {
				defer c.Tidying(ctx)()
				p.Change(test.change)
				if test.gone {
					hangUp()
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Settings() == before; got != test.undone {
				t.Errorf("as before: %t, want %t", got, test.undone)
			}
		})
	}
}

// The locale is the client's, as setlocale(3) finds it.
func TestLocale(t *testing.T) {
	for environ, want := range map[string]string{
		"TERM=xterm LANG=de_DE.UTF-8":                   "xterm de_DE.UTF-8 de_DE.UTF-8",
		"LANG=a LC_CTYPE=b LC_MESSAGES=c":               " b c",
		"LANG=a LC_CTYPE=b LC_ALL=C.UTF-8":              " C.UTF-8 C.UTF-8",
		"TERM=../../x LC_ALL=/etc/passwd LANG=a\x1b[2J": "  ",
	} {
		p := ptytest.New(t)
		cmd := exec.Command("sleep", "1000")
		cmd.Env = strings.Fields(environ)
		err := onClients().OnClient(t.Context(), askedBy(p.Run(cmd).Process.Pid), func(_ context.Context, c *Client) error {
			term, ctype, messages := c.Locale()
			if got := term + " " + ctype + " " + messages; got != want {
				t.Errorf("%s: got %q, want %q", environ, got, want)
			}
			if c.IsUTF8() != strings.HasSuffix(ctype, "UTF-8") {
				t.Errorf("%s: UTF-8 is %t", environ, c.IsUTF8())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
