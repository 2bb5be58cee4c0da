package pinentry

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

var (
	errNoTerminal = errors.New("there is no terminal to ask on")
	errHungUp     = fmt.Errorf("%w: the terminal has hung up", ErrUnusable)
)

// terminal is where a program may ask, as it was before.
type terminal struct {
	device  *os.File
	before  unix.Termios
	watched chan struct{} // closed when the watch is over; nil: there is none
}

// openTerminal opens the terminal to see whether it can be used, and to put it
// back in order after a program that was ended while it asked there.
func openTerminal(path string) (*terminal, error) {
	if path == "" {
		return nil, errNoTerminal
	}
	device, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{device: device}
	before, err := t.state()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), device.Close())
	}
	t.before = *before
	return t, nil
}

func (t *terminal) state() (state *unix.Termios, err error) {
	err = t.control(func(fd int) (err error) {
		state, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	return state, err
}

// control runs f on the descriptor, which File.Fd would make blocking.
func (t *terminal) control(f func(fd int) error) error {
	raw, err := t.device.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// watch calls gone when the terminal hangs up. pinentry-curses would go on
// reading from it, in a loop that keeps a processor busy.
func (t *terminal) watch(gone func()) {
	raw, err := t.device.SyscallConn()
	if err != nil {
		return
	}
	t.watched = make(chan struct{})
	go func() {
		defer close(t.watched)
		// Waits for something to happen there, and reads nothing.
		if raw.Read(func(fd uintptr) bool { return hungUp(int32(fd)) }) == nil {
			gone()
		}
	}()
}

func hungUp(fd int32) bool {
	state := []unix.PollFd{{Fd: fd}}
	n, err := unix.Poll(state, 0)
	return err == nil && n > 0 && state[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// close closes the terminal; if the program was ended while it asked, the
// terminal gets its echo back. pinentry-tty does not do that itself.
func (t *terminal) close(restore bool) {
	if t == nil {
		return
	}
	if t.watched != nil {
		_ = t.device.SetReadDeadline(time.Unix(1, 0))
		<-t.watched
	}
	if restore && t.leftSilent() {
		_ = t.control(func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, &t.before) })
	}
	_ = t.device.Close()
}

// leftSilent says whether the terminal is as pinentry-tty sets it up, and not
// in a state of somebody else: a shell that has it again must not be disturbed.
func (t *terminal) leftSilent() bool {
	now, err := t.state()
	if err != nil || t.before.Lflag&unix.ECHO == 0 || now.Lflag&unix.ECHO != 0 {
		return false
	}
	const silenced = unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL | unix.ICANON | unix.ISIG
	same := *now
	same.Lflag = now.Lflag&^silenced | t.before.Lflag&silenced
	same.Cc[unix.VMIN], same.Cc[unix.VTIME] = t.before.Cc[unix.VMIN], t.before.Cc[unix.VTIME]
	return same == t.before
}
