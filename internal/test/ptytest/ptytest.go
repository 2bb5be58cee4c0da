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

// patience is how long the person waits for a text: a program that is late on a
// busy machine is not wrong.
const patience = time.Minute

// Terminal is a pseudo-terminal of 24 lines and 80 columns, and the person in
// front of it. What goes wrong with it ends the test, so it is used by the test's
// own goroutine only.
type Terminal struct {
	t      testing.TB
	person *os.File
	hold   *os.File
	screen []byte // all that was shown and read
	waited int    // as much of it as waits have found
}

// New opens a terminal, which lasts as long as the test.
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
	// Held open, or what is read between two programs ends in EIO.
	p.hold = open(t, fmt.Sprintf("/dev/pts/%d", n))
	return p
}

// heedHangUps has programs end with their terminal, as those of a login do. Tests
// that were started by nohup, with SIGHUP ignored, would hand that down; a signal
// that is caught is not ignored by the programs that are started. (signal.Ignored
// does not tell, once a signal was caught for a while.)
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

// Path names the terminal's device.
func (p *Terminal) Path() string { return p.hold.Name() }

// Run starts a program on the terminal, as the leader of a session that it
// belongs to and in its foreground. It is killed at the end of the test.
func (p *Terminal) Run(cmd *exec.Cmd) *exec.Cmd {
	p.t.Helper()
	// Of its own: Go's deadlines are lost where a descriptor is passed on.
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

// WaitFor waits until the screen shows text, after what the last wait found. It
// returns what came between the two.
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

// Seen returns all that the terminal has shown until now, whether somebody
// waited for it or not. The next wait begins here.
func (p *Terminal) Seen() string {
	p.t.Helper()
	// What is shown comes to the person in order, but some time later. Behind a
	// mark nothing is on its way any more.
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

// Type types text, which may have control characters in it.
func (p *Terminal) Type(text string) {
	p.t.Helper()
	if _, err := p.person.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// HangUp takes the terminal away from the programs on it, as a window that is
// closed or a line that is cut does.
func (p *Terminal) HangUp() { p.person.Close() }

// Echoes says whether the terminal shows what is typed.
func (p *Terminal) Echoes() bool {
	p.t.Helper()
	return p.Settings().Lflag&unix.ECHO != 0
}

// Settings are the terminal's; see termios(3).
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
