package tty

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

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// terminal is an open terminal.
type terminal struct {
	file   *os.File
	path   string
	device uint32 // its number, as the kernel packs it

	// job is set if this process is a job of the shell that has the terminal:
	// it is stopped in the background like other jobs. An agent is not, since
	// everyone would have to wait for it.
	job bool
}

// open opens a terminal without making it the controlling one.
func open(path string) (*terminal, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{file: file, path: path}
	err = t.control(func(fd int) error {
		t.device, err = unix.IoctlGetUint32(fd, unix.TIOCGDEV)
		return err
	})
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s is not a terminal: %w", path, err)
	}
	return t, nil
}

func (t *terminal) close() { _ = t.file.Close() }

// control runs f on the descriptor. File.Fd would make it blocking, and a
// blocked read does not end when the client goes away.
func (t *terminal) control(f func(fd int) error) error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// state returns the terminal's settings.
func (t *terminal) state() (state *unix.Termios, err error) {
	err = t.control(func(fd int) error {
		state, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	return state, err
}

// set changes the settings and drops what was typed ahead. Unlike TCSETSF it
// does not wait for output: a terminal that was stopped by Ctrl-S may never show
// it.
func (t *terminal) set(state *unix.Termios) error {
	return t.control(func(fd int) error {
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, state); err != nil {
			return err
		}
		return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH)
	})
}

// free returns an error unless the terminal takes whole lines and shows them.
// Otherwise it is in use, by an editor or an ssh that takes single keys, or by a
// program that asks for a password.
func (t *terminal) free() error {
	state, err := t.state()
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", t.path, err)
	case state.Lflag&unix.ICANON == 0, state.Lflag&unix.ECHO == 0:
		return fmt.Errorf("%s is in use by another program", t.path)
	}
	return nil
}

// inBackground reports whether this is the agent's controlling terminal with
// another process group in the foreground. Then the agent cannot read there.
func (t *terminal) inBackground() bool {
	var foreground int
	err := t.control(func(fd int) (err error) {
		foreground, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	// Seen from another PID namespace, a group has the number 0.
	return err == nil && foreground != unix.Getpgrp() && foreground != 0
}

// errVanished is why a question ends when its terminal hangs up.
var errVanished = fmt.Errorf("%w: the terminal has gone", ask.ErrNoAnswer)

// ask writes text and reads a line, which is shown while it is typed if echo is
// set. The read ends with ctx. The terminal is then as it was.
func (t *terminal) ask(ctx context.Context, text string, echo bool) (line []byte, err error) {
	if !t.job {
		signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
	}
	asking, restore, err := t.setEcho(echo)
	if err != nil {
		return nil, fmt.Errorf("setting up %s: %w", t.path, err)
	}
	defer restore()
	if t.job {
		defer t.askAgain(asking, text)()
	}
	defer t.endWith(ctx)()
	if _, err = io.WriteString(t.file, text); err == nil {
		defer t.write("\r\n")
		line, err = t.readLine(ctx)
	}
	if _, gone := t.state(); err != nil && gone != nil {
		err = errVanished
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		clear(line)
		return nil, err
	}
	return prompt.Line(line)
}

// endWith ends reads and writes when ctx ends, unless the function that it
// returns is called before.
func (t *terminal) endWith(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { _ = t.file.SetDeadline(time.Unix(1, 0)) })
}

// Tell writes text, as far as it can before ctx ends.
func (t *terminal) Tell(ctx context.Context, text string) error {
	defer t.endWith(ctx)()
	_, err := io.WriteString(t.file, "\r\n"+text+"\r\n")
	return err
}

// askAgain asks again each time the job continues after it was stopped by
// Ctrl-Z: meanwhile the shell has turned on the echo for itself.
func (t *terminal) askAgain(asking *unix.Termios, text string) (stop func()) {
	continued, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(continued, syscall.SIGCONT)
	var asker sync.WaitGroup
	asker.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-continued:
				// In the background, this stops the job again.
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

// setEcho turns the echo on or off and drops what was typed before the question.
// restore puts the terminal back as it was, unless another program has changed
// the settings since: a shell whose job has ended, for its next line.
func (t *terminal) setEcho(echo bool) (asking *unix.Termios, restore func(), err error) {
	before, err := t.state()
	if err != nil {
		return nil, nil, err
	}
	settings := *before
	asking = &settings
	asking.Lflag &^= unix.ECHO
	asking.Lflag |= unix.ICANON | unix.ISIG
	if echo {
		asking.Lflag |= unix.ECHO
	}
	asking.Iflag |= unix.ICRNL
	return asking, func() {
		if now, err := t.state(); err == nil && *now == *asking {
			_ = t.set(before)
		}
	}, t.set(asking)
}

// write writes text for at most a second: the terminal may be stopped.
func (t *terminal) write(text string) {
	_ = t.file.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = io.WriteString(t.file, text)
}

// readLine reads to the end of a line. An end of file is how the user says no.
func (t *terminal) readLine(ctx context.Context) ([]byte, error) {
	if t.inBackground() && !t.job {
		return t.readAside(ctx)
	}
	buf := make([]byte, 0, prompt.MaxAnswer+len("\n"))
	for len(buf) < cap(buf) {
		n, err := t.file.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case n > 0 && buf[len(buf)-1] == '\n':
			return buf, nil
		case errors.Is(err, io.EOF):
			return buf, ask.ErrRefused
		case err != nil:
			return buf, fmt.Errorf("reading from the terminal: %w", err)
		}
	}
	return buf, prompt.ErrTooLong
}

// readAside has another program read the line. The kernel does not let the
// agent read from its own terminal in the background, as under `serve -- bash`;
// it does let a program in another session.
func (t *terminal) readAside(ctx context.Context) ([]byte, error) {
	file, err := os.OpenFile(t.path, os.O_RDONLY|unix.O_NOCTTY, 0) // for itself, since it waits in read
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p, err := prompt.Program{Path: "head", Args: []string{"-n", "1"}, Stdin: file}.Start(ctx)
	if err != nil {
		return nil, err
	}
	line := make([]byte, prompt.MaxAnswer+len("\n")+1)
	n, _ := io.ReadFull(p.Out, line)
	switch err := p.End(); {
	case err != nil:
		return line, err
	case n == 0:
		return line, ask.ErrRefused
	}
	return line[:n], nil
}

// ReadPIN asks for a PIN on the terminal at path, such as /dev/tty, without echo
// and until ctx ends. text is the whole question. A job in the background is
// stopped like other programs, and asks again when it continues. At an end of
// file ReadPIN returns [ask.ErrRefused].
func ReadPIN(ctx context.Context, path, text string) ([]byte, error) {
	t, err := open(path)
	if err != nil {
		return nil, err
	}
	defer t.close()
	t.job = true
	return t.ask(ctx, text, false)
}
