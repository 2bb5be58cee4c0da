package prompt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/ptytest"
)

// clientOn is what a client in the foreground of a terminal asks.
func clientOn(p *ptytest.Terminal) agent.Question {
	return askedBy(p.Run(exec.Command("sleep", "1000")).Process.Pid)
}

func askedBy(pid int) agent.Question {
	return agent.Question{Name: "id.tpm", Fingerprint: "SHA256:x", Peer: agent.Peer{PID: pid, UID: os.Getuid()}}
}

// onTerminals asks on terminals only, and the agent has none.
func onTerminals() *Prompter { return New(Options{Ways: []Way{Terminal}, Timeout: time.Minute}) }

func askPIN(ctx context.Context, p *Prompter, q agent.Question) <-chan result {
	done := make(chan result, 1)
	go func() {
		pin, err := p.AuthValue(ctx, agent.AuthPrompt{Question: q, TriesLeft: -1})
		done <- result{pin, err}
	}()
	return done
}

func TestClientTerminal(t *testing.T) {
	p := ptytest.New(t)
	done := askPIN(t.Context(), onTerminals(), clientOn(p))
	p.WaitFor("Enter PIN for ")
	p.WaitFor(": ")
	if p.Echoes() {
		t.Error("the terminal shows what is typed")
	}
	p.Type("12x\x7f34\n")
	if got := <-done; got.err != nil || string(got.pin) != "1234" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

// The agent stays without a controlling terminal if it has none.
func TestClientTerminalStaysTheClients(t *testing.T) {
	before, err := readProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p := ptytest.New(t)
	done := askPIN(t.Context(), onTerminals(), clientOn(p))
	p.WaitFor("Enter PIN for ")
	during, err := readProcess(os.Getpid())
	if err != nil || during.Terminal != before.Terminal {
		t.Errorf("the agent's terminal was %d and is %d, %v", before.Terminal, during.Terminal, err)
	}
	p.Type("\x04")
	if got := <-done; !errors.Is(got.err, agent.ErrRefused) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
}

// Where nobody who waits for the client would see the question, it is not asked.
func TestClientTerminalUnusable(t *testing.T) {
	for name, test := range map[string]struct {
		question func(t *testing.T, p *ptytest.Terminal) agent.Question
		why      string
	}{
		"no client": {func(*testing.T, *ptytest.Terminal) agent.Question {
			return agent.Question{Peer: agent.Peer{PID: -1, UID: -1}}
		}, "the client is not known"},
		"gone": {func(t *testing.T, p *ptytest.Terminal) agent.Question {
			cmd := exec.Command("true")
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			return askedBy(cmd.Process.Pid)
		}, "the client has gone"},
		"of another user": {func(t *testing.T, p *ptytest.Terminal) agent.Question {
			q := clientOn(p)
			q.Peer.UID++
			return q
		}, "the client is another user's"},
		"forwarded": {func(t *testing.T, p *ptytest.Terminal) agent.Question {
			q := clientOn(p)
			q.Use.Forwarded = true
			return q
		}, "forwarded from another machine"},
		"no terminal": {func(t *testing.T, p *ptytest.Terminal) agent.Question {
			cmd := exec.Command("sleep", "1000")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			return askedBy(cmd.Process.Pid)
		}, "the client has no terminal"},
		"background": {func(t *testing.T, p *ptytest.Terminal) agent.Question {
			bash := exec.Command("bash", "--norc", "-c", "set -m; sleep 1000 & echo $!; wait")
			bash.Env = []string{"PATH=" + os.Getenv("PATH")} // or it may warn of a locale
			p.Run(bash)
			pid, err := strconv.Atoi(p.WaitFor("\r\n"))
			if err != nil {
				t.Fatal(err)
			}
			return askedBy(pid)
		}, "in the background of its terminal"},
		"raw": {func(t *testing.T, p *ptytest.Terminal) agent.Question {
			q := clientOn(p)
			p.Change(func(state *unix.Termios) { state.Lflag &^= unix.ICANON | unix.ISIG | unix.ECHO })
			return q
		}, "is in use by another program"},
		"asked for a password": {func(t *testing.T, p *ptytest.Terminal) agent.Question {
			q := clientOn(p)
			p.Change(func(state *unix.Termios) { state.Lflag &^= unix.ECHO })
			return q
		}, "is in use by another program"},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			got := <-askPIN(t.Context(), onTerminals(), test.question(t, p))
			if !errors.Is(got.err, agent.ErrNoPrompt) || !strings.Contains(got.err.Error(), test.why) {
				t.Errorf("got %q, %v; want %q", got.pin, got.err, test.why)
			}
		})
	}
}

// Neither a process of somebody else, under whatever number, nor a terminal of
// somebody else is used.
func TestClientTerminalOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make processes and terminals of others")
	}
	const nobody = 65534
	p := ptytest.New(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	q := askedBy(p.Run(cmd).Process.Pid)
	if got := <-askPIN(t.Context(), onTerminals(), q); !errors.Is(got.err, agent.ErrNoPrompt) || !strings.Contains(got.err.Error(), "another user's") {
		t.Errorf("a process of another user: got %q, %v", got.pin, got.err)
	}
	p = ptytest.New(t)
	q = clientOn(p)
	if err := os.Chown(p.Path(), nobody, -1); err != nil {
		t.Fatal(err)
	}
	if got := <-askPIN(t.Context(), onTerminals(), q); !errors.Is(got.err, agent.ErrNoPrompt) || !strings.Contains(got.err.Error(), "belongs to another user") {
		t.Errorf("a terminal of another user: got %q, %v", got.pin, got.err)
	}
}

// What ends the wait for somebody at the client's terminal, and that it is given
// back.
func TestClientTerminalEnds(t *testing.T) {
	gone := errors.New("client gone")
	for name, test := range map[string]struct {
		do   func(p *ptytest.Terminal, cancel context.CancelCauseFunc)
		want error
	}{
		"hung up": {func(_ *ptytest.Terminal, cancel context.CancelCauseFunc) { cancel(gone) }, gone},
		"ctrl-c":  {func(p *ptytest.Terminal, _ context.CancelCauseFunc) { p.Type("half a PIN\x03") }, errTaken},
		"ctrl-d":  {func(p *ptytest.Terminal, _ context.CancelCauseFunc) { p.Type("\x04") }, agent.ErrRefused},
		"stopped": {func(p *ptytest.Terminal, cancel context.CancelCauseFunc) { p.Type("\x13"); cancel(gone) }, gone},
	} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			done := askPIN(ctx, onTerminals(), clientOn(p))
			p.WaitFor("Enter PIN for ")
			p.WaitFor(": ")
			test.do(p, cancel)
			if got := <-done; !errors.Is(got.err, test.want) {
				t.Errorf("got %q, %v; want %v", got.pin, got.err, test.want)
			}
			if !p.Echoes() {
				t.Error("the terminal was left without echo")
			}
		})
	}
}

// A terminal on which output was stopped does not hold up the client's end.
func TestClientTerminalStopped(t *testing.T) {
	p := ptytest.New(t)
	q := clientOn(p)
	p.Type("\x13")
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client gone")
	done := askPIN(ctx, onTerminals(), q)
	awaitSilence(t, p)
	cancel(gone)
	if got := <-done; !errors.Is(got.err, gone) {
		t.Errorf("got %q, %v", got.pin, got.err)
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

// A terminal that vanishes takes its question along, also if the client lives
// on.
func TestClientTerminalVanishes(t *testing.T) {
	for name, client := range map[string]string{"client dies": "sleep 1000", "client stays": "trap '' HUP; while :; do sleep 1; done"} {
		t.Run(name, func(t *testing.T) {
			p := ptytest.New(t)
			cmd := p.Run(exec.Command("sh", "-c", client))
			done := askPIN(t.Context(), onTerminals(), askedBy(cmd.Process.Pid))
			p.WaitFor("Enter PIN for ")
			p.Type("half a P")
			p.HangUp()
			if got := <-done; !errors.Is(got.err, agent.ErrLeft) || !errors.Is(got.err, agent.ErrNoAnswer) {
				t.Errorf("got %q, %v", got.pin, got.err)
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
	done := askPIN(t.Context(), onTerminals(), askedBy(pid))
	p.WaitFor("Enter PIN for ")
	p.Type("\x1a")
	if got := <-done; !errors.Is(got.err, errTaken) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	p.WaitFor("Stopped")
	p.Type("echo shell reads $((6*7))\n")
	p.WaitFor("shell reads 42")
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

// Dialogs on one terminal wait for each other, whoever asks; on another they do
// not.
func TestClientTerminalTakesTurns(t *testing.T) {
	one, other := ptytest.New(t), ptytest.New(t)
	prompter := onTerminals()
	q := clientOn(one)
	first := askPIN(t.Context(), prompter, q)
	one.WaitFor("Enter PIN for ")
	second := askPIN(t.Context(), prompter, q)
	elsewhere := askPIN(t.Context(), prompter, clientOn(other))
	other.WaitFor("Enter PIN for ")
	other.Type("elsewhere\n")
	if got := <-elsewhere; got.err != nil || string(got.pin) != "elsewhere" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if seen := one.Seen(); strings.Count(seen, "Enter PIN") > 1 {
		t.Errorf("two questions at a time: %q", seen)
	}
	one.Type("1\n")
	if got := <-first; got.err != nil || string(got.pin) != "1" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	one.WaitFor("Enter PIN for ")
	awaitSilence(t, one)
	one.Type("2\n")
	if got := <-second; got.err != nil || string(got.pin) != "2" {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
}

// All kinds of consent that can be typed, and no others.
func TestGrantsOnTerminal(t *testing.T) {
	for typed, want := range map[string]agent.Grant{
		"y": agent.GrantOnce, "YES": agent.GrantOnce, "p": agent.GrantProcess, "m": agent.GrantMinutes, "L": agent.GrantUntilLocked,
		"": agent.GrantNo, "n": agent.GrantNo, "pm": agent.GrantNo, "yes p": agent.GrantNo, "o": agent.GrantNo,
	} {
		p := ptytest.New(t)
		prompter := onTerminals()
		type consented struct {
			grant agent.Grant
			err   error
		}
		done := make(chan consented, 1)
		q := clientOn(p)
		go func() {
			grant, err := prompter.Confirm(t.Context(), agent.ConfirmPrompt{Question: q})
			done <- consented{grant, err}
		}()
		p.WaitFor("[y/p/m/l/N] ")
		p.Type(typed + "\n")
		if got := <-done; got.grant != want || (got.err == nil) != (want != agent.GrantNo) {
			t.Errorf("%q: got %d, %v", typed, got.grant, got.err)
		}
	}
}

// Only the whole word is a go.
func TestLastTryOnTerminal(t *testing.T) {
	for typed, goes := range map[string]bool{"yes": true, "Yes": true, "y": false, "": false, "no": false, "yes!": false} {
		p := ptytest.New(t)
		prompter := onTerminals()
		q := clientOn(p)
		done := make(chan error, 1)
		go func() { done <- prompter.LastTry(t.Context(), agent.AuthPrompt{Question: q, TriesLeft: 1}) }()
		p.WaitFor("Type yes to go on")
		p.Type(typed + "\n")
		if err := <-done; goes && err != nil || !goes && !errors.Is(err, agent.ErrRefused) {
			t.Errorf("%q: got %v", typed, err)
		}
	}
}

// A pinentry that is killed leaves the terminal as it was to the next way.
func TestKilledPinentryOnTerminal(t *testing.T) {
	for name, test := range map[string]struct{ setting, undone string }{
		"tty":    {"-echo -icanon", ""},
		"curses": {"raw -echo", leaveScreen},
	} {
		killed := speaker(`stty -F "$(sed -n 's/^OPTION ttyname=//p' $DIR/told)" `+test.setting+`; kill -9 $$`, "")
		prompter, _ := scripts(t, killed, "", Options{Ways: []Way{Pinentry, Terminal}})
		p := ptytest.New(t)
		before := p.Settings()
		done := askPIN(t.Context(), prompter, clientOn(p))
		if said := p.WaitFor("Enter PIN for "); strings.TrimSpace(said) != test.undone {
			t.Errorf("%s: before the question there is %q", name, said)
		}
		p.Type("1234\n")
		if got := <-done; got.err != nil || string(got.pin) != "1234" {
			t.Errorf("%s: got %q, %v", name, got.pin, got.err)
		}
		if p.Settings() != before {
			t.Errorf("%s: the terminal was %+v, and is %+v", name, before, p.Settings())
		}
	}
}

// A notice is on the client's terminal also where a pinentry would ask there,
// and then no program is needed for it.
func TestInformOnTerminal(t *testing.T) {
	none := New(Options{Ways: []Way{Pinentry}, Environ: []string{"PATH=/nowhere", "GNUPGHOME=/nowhere"}})
	text, dir := scripts(t, "exit 1", "", Options{Ways: []Way{Pinentry}, Environ: []string{x11}})
	if err := errors.Join(
		os.Rename(filepath.Join(dir, "pinentry"), filepath.Join(dir, "pinentry-curses")),
		os.Symlink("pinentry-curses", filepath.Join(dir, "pinentry")),
	); err != nil {
		t.Fatal(err)
	}
	for name, prompter := range map[string]*Prompter{"terminal": onTerminals(), "no display": none, "text only": text} {
		p := ptytest.New(t)
		prompter.Inform(t.Context(), agent.Notice{Question: clientOn(p)})
		p.WaitFor("The TPM is locked")
		if !p.Echoes() {
			t.Errorf("%s: the terminal was left without echo", name)
		}
	}
}

// Nobody at the terminal: the question ends after the limit.
func TestClientTerminalTimeout(t *testing.T) {
	p := ptytest.New(t)
	prompter := New(Options{Ways: []Way{Terminal, Askpass}, Askpass: "/bin/false", Require: Force, Timeout: 50 * time.Millisecond})
	if got := <-askPIN(t.Context(), prompter, clientOn(p)); !errors.Is(got.err, agent.ErrNoAnswer) || errors.Is(got.err, agent.ErrNoPrompt) {
		t.Errorf("got %q, %v", got.pin, got.err)
	}
	if !p.Echoes() {
		t.Error("the terminal was left without echo")
	}
}

func TestProcess(t *testing.T) {
	p := process{peer.Stat{Terminal: 34817, Group: 7, Foreground: 7}}
	if p.terminal() != unix.Mkdev(136, 1) || !p.inForeground() {
		t.Errorf("terminal %#x, in the foreground: %t", p.terminal(), p.inForeground())
	}
	for _, p := range []peer.Stat{{Terminal: 34817, Group: 7, Foreground: 8}, {Group: -1, Foreground: -1}} {
		if (process{p}).inForeground() {
			t.Errorf("%+v is in the foreground", p)
		}
	}
	self, err := readProcess(os.Getpid())
	if err != nil || self.Group != unix.Getpgrp() {
		t.Errorf("got %+v, %v", self, err)
	}
}

func TestOwnedBy(t *testing.T) {
	for status, own := range map[string]bool{
		"Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t1\t1\t1\t1\n": true,
		"Name:\tx\nUid:\t7\t0\t7\t7\n":                   false,
		"Uid:\t8\t8\t8\t8\n":                             false,
		"Uid:\t7\t7\t7\n":                                false,
		"Name:\tUid:\t7\t7\t7\t7\n":                      false,
		"":                                               false,
	} {
		if ownedBy([]byte(status), 7) != own {
			t.Errorf("%q: not %t", status, own)
		}
	}
}

func TestDevicePath(t *testing.T) {
	wants := map[uint64]string{unix.Mkdev(136, 0): "/dev/pts/0", unix.Mkdev(136, 300): "/dev/pts/300"}
	if _, err := os.Stat("/sys/dev/char"); err == nil { // not in every container
		wants[unix.Mkdev(1, 3)] = "/dev/null"
	}
	for device, want := range wants {
		if got, err := devicePath(device); err != nil || got != want {
			t.Errorf("got %q, %v; want %s", got, err, want)
		}
	}
	if got, err := devicePath(unix.Mkdev(4000, 1)); err == nil {
		t.Errorf("got %q", got)
	}
}
