package prompt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/child"
)

// tty is an open terminal.
type tty struct {
	file   *os.File
	path   string
	device uint64 // its number, also where path is /dev/tty

	// job: this process is a job of the shell that has the terminal, and is
	// stopped in the background like others. An agent is not: when it stops it
	// does so for everybody.
	job bool
}

// openTTY opens a terminal, without making it the controlling one and without
// waiting for a line to be connected.
func openTTY(path string) (*tty, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &tty{file: file, path: path}
	err = t.control(func(fd int) error {
		number, err := unix.IoctlGetUint32(fd, unix.TIOCGDEV)
		t.device = deviceNumber(number)
		return err
	})
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s is no terminal: %w", path, err)
	}
	return t, nil
}

func (t *tty) close() { _ = t.file.Close() }

// control runs f on the descriptor. File.Fd would make it blocking, and a
// blocked read cannot be woken when the client goes away.
func (t *tty) control(f func(fd int) error) error { return control(t.file, f) }

func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// state are the terminal's settings.
func (t *tty) state() (state *unix.Termios, err error) {
	err = t.control(func(fd int) error {
		state, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	return state, err
}

// set changes the settings, and drops what was typed ahead. It does not wait
// until all is written that was to be, as TCSETSF does: on a terminal that was
// stopped by Ctrl-S that can be never.
func (t *tty) set(state *unix.Termios) error {
	return t.control(func(fd int) error {
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, state); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH)
	})
}

// free says whether the terminal takes whole lines and shows them. One that
// does not is in use: by an editor or an ssh that takes single keys, or by a
// program that asks for a password itself.
func (t *tty) free() error {
	state, err := t.state()
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", t.path, err)
	case state.Lflag&unix.ICANON == 0, state.Lflag&unix.ECHO == 0:
		return fmt.Errorf("%s is in use by another program", t.path)
	}
	return nil
}

// ours says whether it is the agent's controlling terminal, and whether the
// agent is in its foreground: only then it may read there.
func (t *tty) ours() (ours, foreground bool) {
	err := t.control(func(fd int) error {
		group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		// In a PID namespace of its own, a group from outside is 0.
		foreground = group == unix.Getpgrp() || group == 0
		return err
	})
	return err == nil, foreground
}

// gone says whether somebody has hung up.
func (t *tty) gone() bool {
	_, err := t.state()
	return err != nil
}

// errVanished is why a question ends whose terminal is not there any more.
var errVanished = fmt.Errorf("%w: the terminal has gone", agent.ErrNoAnswer)

// ask writes text and reads a line, which is shown if echo says so. When ctx
// ends, the read ends, and the terminal is as it was.
func (t *tty) ask(ctx context.Context, text string, echo bool) (line []byte, err error) {
	if !t.job {
		signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
	}
	asking, restore, err := t.setEcho(echo)
	if err != nil {
		return nil, err
	}
	defer restore()
	if t.job {
		defer t.askAgain(asking, text)()
	}
	defer context.AfterFunc(ctx, func() { _ = t.file.SetDeadline(time.Unix(1, 0)) })()
	if _, err = io.WriteString(t.file, text); err == nil {
		defer t.newLine()
		line, err = t.readLine(ctx)
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil && t.gone():
		err = errVanished
	}
	if err != nil {
		clear(line)
		return nil, err
	}
	return answer(line)
}

// tell writes lines, as far as it can before ctx ends.
func (t *tty) tell(ctx context.Context, lines string) error {
	defer context.AfterFunc(ctx, func() { _ = t.file.SetDeadline(time.Unix(1, 0)) })()
	_, err := io.WriteString(t.file, "\r\n"+lines+"\r\n")
	return err
}

// askAgain asks once more each time that the job goes on after having been stopped
// (Ctrl-Z): the shell has set up the terminal for itself meanwhile, with echo.
func (t *tty) askAgain(asking *unix.Termios, text string) (stop func()) {
	continued, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(continued, syscall.SIGCONT)
	var asker sync.WaitGroup
	asker.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-continued:
				// From the background this stops the job again.
				if t.set(asking) == nil {
					_, _ = io.WriteString(t.file, text)
				}
			}
		}
	})
	return func() {
		signal.Stop(continued)
		close(done)
		asker.Wait()
	}
}

// setEcho turns the echo on or off, drops what was typed ahead of the question,
// and returns the settings, and what puts the terminal back as it was, unless
// somebody else has set it up anew: a shell whose job has ended, for its own next
// line.
func (t *tty) setEcho(echo bool) (asking *unix.Termios, restore func(), err error) {
	before, err := t.state()
	if err != nil {
		return nil, nil, fmt.Errorf("setting up %s: %w", t.path, err)
	}
	settings := *before
	asking = &settings
	asking.Lflag &^= unix.ECHO
	asking.Lflag |= unix.ICANON | unix.ISIG
	if echo {
		asking.Lflag |= unix.ECHO
	}
	asking.Iflag |= unix.ICRNL
	if err := t.set(asking); err != nil {
		return nil, nil, fmt.Errorf("setting up %s: %w", t.path, err)
	}
	return asking, func() {
		if now, err := t.state(); err == nil && *now == *asking {
			_ = t.set(before)
		}
	}, nil
}

// newLine ends the line of a question.
func (t *tty) newLine() { t.write("\r\n") }

// write does not wait for long: nobody may look any more.
func (t *tty) write(text string) {
	_ = t.file.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(t.file, text)
}

// readLine reads a line, until ctx ends.
func (t *tty) readLine(ctx context.Context) ([]byte, error) {
	if ours, foreground := t.ours(); ours && !foreground && !t.job {
		return t.readAside(ctx)
	}
	return readLine(t.file)
}

// readAside reads a line by a process that is not of our session. The kernel
// lets us read from our own terminal in its foreground only; who has started
// the agent in the background and asks from the same terminal means that one.
func (t *tty) readAside(ctx context.Context) ([]byte, error) {
	// Opened once more: the other process needs one on which it can wait.
	fd, err := unix.Open(t.path, unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), t.path)
	defer file.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	reading, stop := context.WithCancel(ctx)
	cat := child.Command(reading, grace, "cat")
	cat.Stdin, cat.Stdout = file, in
	err = child.Start(cat)
	in.Close()
	if err != nil {
		stop()
		return nil, unusable("reading from %s: %w", t.path, err)
	}
	defer func() {
		stop()
		_ = child.Wait(reading, cat)
	}()
	defer context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Unix(1, 0)) })()
	return readLine(out)
}

// readLine reads to the end of a line. A terminal gives whole lines; an end of
// file before one is how a person says no.
func readLine(file *os.File) ([]byte, error) {
	buf := make([]byte, 0, maxAnswer+1)
	for len(buf) < cap(buf) {
		n, err := file.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n > 0 && buf[len(buf)-1] == '\n' {
			return buf, nil
		}
		if errors.Is(err, io.EOF) {
			return buf, agent.ErrRefused
		}
		if err != nil {
			return buf, fmt.Errorf("reading from the terminal: %w", err)
		}
	}
	return buf, errTooLong
}

// ReadPIN asks for a PIN on the terminal at path, such as /dev/tty, as
// [Prompter] does: without echo, and until ctx ends. A job in the background is
// stopped, as by other programs, and asks again when it goes on. text is the
// whole question.
// It returns agent.ErrRefused at an end of file.
func ReadPIN(ctx context.Context, path, text string) ([]byte, error) {
	t, err := openTTY(path)
	if err != nil {
		return nil, err
	}
	defer t.close()
	t.job = true
	return t.ask(ctx, text, false)
}
