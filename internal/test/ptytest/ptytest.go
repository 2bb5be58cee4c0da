// Package ptytest runs programs on a pseudo-terminal, reads their screen and
// types.
package ptytest

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a wait for text lasts. Programs may be slow on a busy
// machine.
const patience = time.Minute

// Terminal is a pseudo-terminal of 24 lines and 80 columns, together with the
// person in front of it. Its errors end the test, so only the test's own
// goroutine may use it.
type Terminal struct {
	t      testing.TB
	person *os.File
	hold   *os.File
	screen []byte // what has been shown
	waited int    // how much of it waits have found
}

// New opens a terminal. It is closed at the end of the test.
func New(t testing.TB) *Terminal {
	t.Helper()
	heedHangUps(t)
	p := &Terminal{t: t, person: open(t, "/dev/ptmx")}
	var n int
	p.control(func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		if err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
			return err
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	// Without an open descriptor, reading between two programs fails with EIO.
	p.hold = open(t, fmt.Sprintf("/dev/pts/%d", n))
	return p
}

// heedHangUps makes programs end with their terminal, as those of a login do.
// Tests started by nohup ignore SIGHUP, and the programs they start would
// inherit that. They do not inherit a signal that is caught. (signal.Ignored is
// no help: it returns false once a signal has been caught.)
func heedHangUps(t testing.TB) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(c) })
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Path returns the path of the terminal's device.
func (p *Terminal) Path() string { return p.hold.Name() }

// Run starts a program in the foreground of the terminal, as leader of a process
// session of its own. It is killed at the end of the test.
func (p *Terminal) Run(cmd *exec.Cmd) *exec.Cmd {
	p.t.Helper()
	// A new descriptor: passing one on would make Go's deadlines ineffective.
	terminal := open(p.t, p.Path())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	err := cmd.Start()
	terminal.Close()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// WaitFor waits until the terminal shows text, after what the previous wait
// found. It returns what was shown in between.
func (p *Terminal) WaitFor(text string) (before string) {
	p.t.Helper()
	if err := p.person.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		if before, _, found := strings.Cut(string(p.screen[p.waited:]), text); found {
			p.waited += len(before) + len(text)
			return before
		}
		n, err := p.person.Read(buf)
		p.screen = append(p.screen, buf[:n]...)
		if err != nil {
			p.t.Fatalf("waiting for %q: %v; seen %q", text, err, p.screen)
		}
	}
}

// Seen returns everything that the terminal has shown so far, including what no
// wait has found. The next wait begins here.
func (p *Terminal) Seen() string {
	p.t.Helper()
	// Output arrives in order, but with a delay. Once a mark has arrived, so has
	// everything that was written before it.
	const mark = "[all that came before]"
	if err := p.hold.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.hold.WriteString(mark); err != nil {
		p.t.Fatal(err)
	}
	p.WaitFor(mark)
	p.waited -= len(mark)
	p.screen = slices.Delete(p.screen, p.waited, p.waited+len(mark))
	return string(p.screen[:p.waited])
}

// Type types text, which may contain control characters.
func (p *Terminal) Type(text string) {
	p.t.Helper()
	if _, err := p.person.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// HangUp takes the terminal away from its programs, as a closed window or a lost
// connection does.
func (p *Terminal) HangUp() { p.person.Close() }

// Echoes reports whether the terminal shows what is typed.
func (p *Terminal) Echoes() bool {
	p.t.Helper()
	return p.Settings().Lflag&unix.ECHO != 0
}

// Settings returns the terminal's settings; see termios(3).
func (p *Terminal) Settings() (now unix.Termios) {
	p.t.Helper()
	p.Change(func(s *unix.Termios) { now = *s })
	return now
}

// Change changes the terminal's settings, as another program on it would.
func (p *Terminal) Change(change func(*unix.Termios)) {
	p.t.Helper()
	p.control(func(fd int) error {
		state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		before := *state
		if change(state); *state == before {
			return nil
		}
		return unix.IoctlSetTermios(fd, unix.TCSETS, state)
	})
}

func (p *Terminal) control(f func(fd int) error) {
	p.t.Helper()
	raw, err := p.person.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil || inner != nil {
		p.t.Fatal(err, inner)
	}
}
