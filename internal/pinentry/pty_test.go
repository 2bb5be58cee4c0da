package pinentry

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pty is a terminal with somebody at it.
type pty struct {
	t      *testing.T
	person *os.File
	path   string
	seen   bytes.Buffer
}

func newPTY(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	p := &pty{t: t, person: master}
	var n int
	p.ioctl(func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		if err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
			return err
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	p.path = fmt.Sprintf("/dev/pts/%d", n)
	// Held open, or what is written between two prompts ends in EIO.
	hold, err := os.OpenFile(p.path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close() })
	return p
}

func (p *pty) ioctl(f func(fd int) error) {
	p.t.Helper()
	raw, err := p.person.SyscallConn()
	if err == nil {
		var inner error
		err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
		if err == nil {
			err = inner
		}
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// shell gives the terminal to a session, as a terminal that people use has one.
func (p *pty) shell() {
	p.t.Helper()
	tty, err := os.OpenFile(p.path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer tty.Close()
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.Stdin = tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// waitFor reads until the screen shows text.
func (p *pty) waitFor(text string) {
	p.t.Helper()
	if err := p.person.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 4096)
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

// termios is the terminal's state.
func (p *pty) termios() (state unix.Termios) {
	p.t.Helper()
	p.ioctl(func(fd int) error {
		now, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			state = *now
		}
		return err
	})
	return state
}

func (p *pty) terminal() Terminal {
	return Terminal{Name: p.path, Type: "xterm", LCCtype: "C.UTF-8", LCMessages: "C"}
}
