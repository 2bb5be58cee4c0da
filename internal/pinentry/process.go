package pinentry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/child"
)

// patience is for how long a program may take to greet us and to take what it
// is told, before it shows anything. A slow machine that has just started its
// desktop needs some of it.
const patience = 30 * time.Second

// process is a pinentry that runs.
type process struct {
	cmd       *exec.Cmd
	running   context.Context // ends when the program has to
	stop      context.CancelCauseFunc
	wake      func() bool // undoes the wake-up of readers at the end of running
	in, out   *os.File
	complaint child.Complaint
	tty       *terminal
	noTTY     error
	grace     time.Duration
}

// start starts the program.
func start(ctx context.Context, program string, d Dialog) (*process, error) {
	p := &process{grace: d.Grace}
	p.running, p.stop = context.WithCancelCause(ctx)
	p.cmd = child.Command(p.running, d.Grace, program, arguments(d)...)
	p.cmd.Args[0] = filepath.Base(program) // as gpg-agent does
	p.cmd.Env = environ(d)
	p.cmd.Stderr = &p.complaint
	p.tty, p.noTTY = openTerminal(d.Terminal.Name)
	if err := p.launch(); err != nil {
		p.stop(nil)
		p.tty.close(false)
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	p.wake = context.AfterFunc(p.running, func() {
		_ = p.out.SetReadDeadline(time.Unix(1, 0))
		_ = p.in.SetWriteDeadline(time.Unix(1, 0))
	})
	return p, nil
}

// launch connects the program to two pipes.
func (p *process) launch() error {
	stdin, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		return errors.Join(err, in.Close())
	}
	defer stdout.Close()
	p.cmd.Stdin, p.cmd.Stdout = stdin, stdout
	if err := child.Start(p.cmd); err != nil {
		return errors.Join(err, in.Close(), out.Close())
	}
	p.in, p.out = in, out
	return nil
}

func arguments(d Dialog) []string {
	if d.Display == "" {
		return nil
	}
	return []string{"--display", d.Display}
}

// environ is the environment of the program. Libraries behind it look for the
// display there.
func environ(d Dialog) []string {
	env := d.Environ
	if env == nil {
		env = os.Environ()
	}
	if d.Display != "" {
		env = append(env[:len(env):len(env)], "DISPLAY="+d.Display) // the last one counts
	}
	return env
}

// dialog goes through a dialog from the greeting on.
func (p *process) dialog(d Dialog, ask func(*talk) error) error {
	t := &talk{conn: newConn(p.in, p.out), d: d, terminal: p.noTTY, display: lookup(p.cmd.Env, "DISPLAY") != ""}
	defer t.wipe()
	patient := p.within(patience, fmt.Errorf("%w: no answer within %v", ErrUnusable, patience))
	defer patient.Stop()
	if _, err := t.answer(nil); err != nil {
		return greeting(err)
	}
	if err := t.setUp(); err != nil {
		return err
	}
	if p.tty != nil && t.onTerminal() {
		p.tty.watch(func() { p.stop(errHungUp) })
	}
	if !patient.Stop() {
		return context.Cause(p.running)
	}
	if d.Timeout > 0 {
		// Programs that know no timeout are ended by us.
		limit := time.Duration(wholeSeconds(d.Timeout))*time.Second + p.grace
		defer p.within(limit, ErrTimeout).Stop()
	}
	return ask(t)
}

// greeting says what the first line means if it is not OK.
func greeting(err error) error {
	if f, ok := errors.AsType[*failure](err); ok {
		return fmt.Errorf("%w: %w", ErrUnusable, f)
	}
	return err
}

// within stops the program after limit.
func (p *process) within(limit time.Duration, cause error) *time.Timer {
	return time.AfterFunc(limit, func() { p.stop(cause) })
}

// end ends the program after a dialog that ended in err, and returns what that
// means: the program's end is the reason for an answer that did not come.
func (p *process) end(err error) error {
	if errors.Is(err, ErrProtocol) {
		p.stop(err)
	}
	if err == nil || errors.Is(err, ErrCancelled) {
		_, _ = p.in.WriteString("BYE\n")
	}
	_ = p.in.Close()
	lastWord := p.within(p.grace, errNotGone)
	status := child.Wait(p.running, p.cmd)
	lastWord.Stop()
	cause := context.Cause(p.running)
	p.wake()
	p.stop(nil)
	_ = p.out.Close()
	p.tty.close(cause != nil)
	switch {
	case err == nil || !closed(err) && !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case cause != nil && cause != errNotGone:
		return cause
	}
	return fmt.Errorf("%w: %s", ErrUnusable, p.lastWords(status))
}

var errNotGone = errors.New("did not end")

// lastWords says how a program ended that should have answered.
func (p *process) lastWords(status error) string {
	words := "ended without an answer"
	if exit, ok := errors.AsType[*exec.ExitError](status); ok {
		words += ", " + exit.Error()
	}
	if complaint := strings.TrimSpace(p.complaint.Line()); complaint != "" {
		words += ": " + harmless(complaint)
	}
	return words
}

func isBrokenPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }
