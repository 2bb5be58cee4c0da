package way

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is a program that asks the user. It runs in a session of its own, so
// that it cannot meddle with the agent's terminal and can be ended together
// with everything that it started. It inherits no descriptors.
type Program struct {
	Path    string
	Args    []string
	Environ []string
	Stdin   *os.File      // nil: a pipe, Process.In
	Grace   time.Duration // from SIGTERM to SIGKILL; 0: no SIGKILL
}

// Process is a running Program.
type Process struct {
	In, Out *os.File // its standard input, if that is a pipe, and output

	cmd       *exec.Cmd
	running   context.Context // ends when the program has to
	stop      context.CancelCauseFunc
	wake      func() bool // undoes the end of reads and writes with running
	complaint complaint
}

// Start starts the program. When ctx ends it gets SIGTERM, and SIGKILL if it does
// not end.
func (p Program) Start(ctx context.Context) (*Process, error) {
	r := &Process{}
	r.running, r.stop = context.WithCancelCause(ctx)
	r.cmd = exec.CommandContext(r.running, p.Path, p.Args...)
	r.cmd.Env, r.cmd.Stderr = p.Environ, &r.complaint
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	r.cmd.Cancel = func() error { return syscall.Kill(-r.cmd.Process.Pid, syscall.SIGTERM) }
	r.cmd.WaitDelay = p.Grace
	if err := r.start(p.Stdin); err != nil {
		r.stop(nil)
		r.close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, Unusable("%w", err)
	}
	r.wake = context.AfterFunc(r.running, func() {
		_ = r.In.SetWriteDeadline(time.Unix(1, 0))
		_ = r.Out.SetReadDeadline(time.Unix(1, 0))
	})
	return r, nil
}

// start connects the program to pipes and starts it.
func (p *Process) start(stdin *os.File) (err error) {
	if stdin == nil {
		if stdin, p.In, err = os.Pipe(); err != nil {
			return err
		}
		defer stdin.Close()
	}
	var stdout *os.File
	if p.Out, stdout, err = os.Pipe(); err != nil {
		return err
	}
	defer stdout.Close()
	p.cmd.Stdin, p.cmd.Stdout = stdin, stdout
	closeOnExec()
	return p.cmd.Start()
}

// closeOnExec marks the descriptors that this process inherited; Go marks all
// others. It cannot ask /proc/self/fd, which an undumpable process cannot read.
func closeOnExec() {
	if unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	for fd := 3; fd < 1024; fd++ { // before Linux 5.11
		unix.CloseOnExec(fd)
	}
}

// Stop tells the program to end, for a cause that End returns.
func (p *Process) Stop(cause error) { p.stop(cause) }

// StopAfter calls Stop after a time, unless the timer is stopped first.
func (p *Process) StopAfter(limit time.Duration, cause error) *time.Timer {
	return time.AfterFunc(limit, func() { p.stop(cause) })
}

// End closes the program's input and waits for its end. It returns the cause if
// the program was stopped, or an [ExitError]. What a stopped program started is
// killed; what another one left running may be a service for others.
func (p *Process) End() error {
	_ = p.In.Close()
	err := p.cmd.Wait()
	if p.running.Err() != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		err = context.Cause(p.running)
	} else if status, ok := errors.AsType[*exec.ExitError](err); ok {
		first, _, _ := strings.Cut(strings.TrimSpace(string(p.complaint)), "\n")
		err = &ExitError{Plain(first), status}
	}
	p.wake()
	p.stop(nil)
	p.close()
	return err
}

func (p *Process) close() {
	_ = p.In.Close() // closing nil is an error, no more
	_ = p.Out.Close()
}

// complaint keeps the first octets that are written to it.
type complaint []byte

func (c *complaint) Write(data []byte) (int, error) {
	*c = append(*c, data[:min(len(data), maxPlain-len(*c))]...)
	return len(data), nil
}

// ExitError says that a program failed or was killed.
type ExitError struct {
	Complaint string // the first line of its standard error
	status    *exec.ExitError
}

func (e *ExitError) Error() string {
	if e.Complaint == "" {
		return e.status.Error()
	}
	return e.status.Error() + ": " + e.Complaint
}

// Output runs a program that prints the answer. The caller wipes it.
func (p Program) Output(ctx context.Context) ([]byte, error) {
	r, err := p.Start(ctx)
	if err != nil {
		return nil, err
	}
	_ = r.In.Close()
	// The answer is read into one buffer of known size, so that no copies of a
	// PIN stay behind.
	buf := make([]byte, MaxAnswer+len("\r\n")+1)
	n, err := io.ReadFull(r.Out, buf)
	if err == nil {
		r.Stop(ErrTooLong)
	}
	if err := r.End(); err != nil {
		clear(buf)
		return nil, err
	}
	return buf[:n], nil
}

// Run runs a program that prints the answer, for at most the time of one dialog.
// It returns a [Line], which the caller wipes.
func (s Settings) Run(ctx context.Context, p Program) ([]byte, error) {
	ctx, done := s.Limit(ctx)
	defer done()
	p.Grace = s.Grace
	said, err := p.Output(ctx)
	if err != nil {
		return nil, err
	}
	return Line(said)
}
