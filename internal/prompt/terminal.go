package prompt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
)

// terminal asks on the terminal, one prompt at a time.
func (p *Prompter) terminal(ctx context.Context, q question) ([]byte, error) {
	select {
	case p.tty <- struct{}{}:
		defer func() { <-p.tty }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	tty, err := os.OpenFile(p.options.Terminal, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoPrompt, err)
	}
	defer tty.Close()
	if err := inForeground(tty); err != nil {
		return nil, err
	}
	if q.consent {
		return askTerminal(ctx, tty, "\r\n"+q.text+" [y/N] ", true)
	}
	return askTerminal(ctx, tty, "\r\n"+q.text+": ", false)
}

// ReadPIN asks for a PIN on the terminal at path, such as /dev/tty, as
// [Prompter] does: without echo, and until ctx ends. text is the whole question.
// It returns agent.ErrRefused at an end of file.
func ReadPIN(ctx context.Context, path, text string) ([]byte, error) {
	tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer tty.Close()
	return askTerminal(ctx, tty, text, false)
}

// inForeground checks that what is typed would reach us. A shell that runs
// under `serve -- CMD` gives the terminal to its jobs; reading would then take
// their input, or stop the agent by SIGTTIN, which is why that is ignored.
func inForeground(tty *os.File) error {
	signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
	var group int
	err := control(tty, func(fd int) (err error) {
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	// A terminal that is not our controlling one has no say in this.
	if err == nil && group != 0 && group != unix.Getpgrp() {
		return fmt.Errorf("%s is in use by another program: %w", tty.Name(), ErrNoPrompt)
	}
	return nil
}

// askTerminal writes text and reads a line, which is shown if echo says so.
// When ctx ends, the read ends, and the terminal is as it was.
func askTerminal(ctx context.Context, tty *os.File, text string, echo bool) ([]byte, error) {
	restore, err := setEcho(tty, echo)
	if err != nil {
		return nil, err
	}
	defer restore()
	if _, err := io.WriteString(tty, text); err != nil {
		return nil, fmt.Errorf("writing to %s: %w", tty.Name(), err)
	}
	defer fmt.Fprint(tty, "\r\n")
	wake := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	defer wake()
	line, err := readLine(tty)
	if ctx.Err() != nil {
		clear(line)
		return nil, ctx.Err()
	}
	if err != nil {
		clear(line)
		return nil, err
	}
	return answer(line)
}

// readLine reads to the end of a line. The terminal gives whole lines; an end
// of file before one is how a person says no.
func readLine(tty *os.File) ([]byte, error) {
	buf := make([]byte, 0, maxAnswer+1)
	for len(buf) < cap(buf) {
		n, err := tty.Read(buf[len(buf):cap(buf)])
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

// setEcho turns the echo on or off, drops what was typed ahead of the question,
// and returns what puts the terminal back as it was.
func setEcho(tty *os.File, echo bool) (restore func(), err error) {
	var before *unix.Termios
	err = control(tty, func(fd int) (err error) {
		if before, err = unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return err
		}
		asking := *before
		asking.Lflag &^= unix.ECHO
		asking.Lflag |= unix.ICANON | unix.ISIG
		if echo {
			asking.Lflag |= unix.ECHO
		}
		asking.Iflag |= unix.ICRNL
		return unix.IoctlSetTermios(fd, unix.TCSETSF, &asking)
	})
	if err != nil {
		return nil, fmt.Errorf("setting up %s: %w", tty.Name(), err)
	}
	return func() {
		_ = control(tty, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETSF, before) })
	}, nil
}

// control runs f on the descriptor. File.Fd would make it blocking, and a
// blocked read cannot be woken when the client goes away.
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
