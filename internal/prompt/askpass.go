package prompt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
)

// systemAskpass finds the askpass program that a distribution installs for
// OpenSSH, which its clients use when SSH_ASKPASS is not set.
func systemAskpass() string {
	for _, path := range []string{"/usr/bin/ssh-askpass", "/usr/libexec/openssh/ssh-askpass", "/usr/lib/ssh/ssh-askpass"} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	return ""
}

var errTooLong = errors.New("the answer is longer than " + strconv.Itoa(maxAnswer) + " octets")

// askpass runs the program with the question as its argument; what it prints
// is the answer, and any exit status but 0 is a refusal. It runs in a session of its
// own, so that it can be ended with all that it started, and so that it cannot
// meddle with the agent's terminal.
func (p *Prompter) askpass(ctx context.Context, q question) ([]byte, error) {
	closeOnExec()
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	out := &answerBuffer{overflow: func() { stop(errTooLong) }}
	var complaint complaintBuffer

	cmd := exec.CommandContext(running, p.options.Askpass, q.text)
	cmd.Env = q.environ(p.options.Environ)
	cmd.Stdout = out
	cmd.Stderr = &complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = p.options.Grace

	err := cmd.Run()
	if running.Err() != nil {
		killGroup(cmd.Process)
		out.wipe()
		return nil, context.Cause(running)
	}
	if err != nil {
		out.wipe()
		return nil, p.askpassError(err, complaint.text())
	}
	return answer(out.buf[:out.n])
}

// askpassError tells a refusal (it ran and said no) from a program that cannot
// be used. What it printed on stderr is part of the reason: "cannot open
// display" is what one needs to read.
func (p *Prompter) askpassError(err error, complaint string) error {
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && complaint != "":
		return fmt.Errorf("%w: %s: %w: %s", agent.ErrRefused, p.options.Askpass, err, complaint)
	case errors.As(err, &exit):
		return fmt.Errorf("%w: %s: %w", agent.ErrRefused, p.options.Askpass, err)
	}
	return fmt.Errorf("running SSH_ASKPASS: %w", err)
}

// killGroup ends what a program left behind that did not go when it was told.
func killGroup(p *os.Process) {
	if p != nil {
		_ = syscall.Kill(-p.Pid, syscall.SIGKILL)
	}
}

// closeOnExec marks every descriptor from 3 on, so that the child gets none of
// them: Go marks its own, but not those that the agent was started with. It
// asks the kernel and not /proc/self/fd, which a process that may not be traced
// (PR_SET_DUMPABLE) cannot read.
func closeOnExec() {
	if unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		limit.Cur = 1024
	}
	for fd := 3; fd < int(min(limit.Cur, 1<<16)); fd++ { // before Linux 5.11
		unix.CloseOnExec(fd)
	}
}

// answerBuffer takes the answer straight from the pipe, so that no copy of a
// PIN stays behind in a buffer of somebody else.
type answerBuffer struct {
	buf      [maxAnswer + 2]byte // room for the newline, and for one octet too many
	n        int
	overflow func()
}

// ReadFrom fills the buffer; a program that prints more than it holds is ended.
func (b *answerBuffer) ReadFrom(r io.Reader) (int64, error) {
	start := b.n
	for b.n < len(b.buf) {
		n, err := r.Read(b.buf[b.n:])
		b.n += n
		if err == io.EOF {
			return int64(b.n - start), nil
		}
		if err != nil {
			return int64(b.n - start), err
		}
	}
	b.overflow()
	return int64(b.n - start), errTooLong
}

// Write makes answerBuffer an io.Writer for os/exec, which prefers ReadFrom.
func (b *answerBuffer) Write(data []byte) (int, error) {
	n := copy(b.buf[b.n:], data)
	b.n += n
	if b.n == len(b.buf) {
		b.overflow()
		return n, errTooLong
	}
	return n, nil
}

func (b *answerBuffer) wipe() { clear(b.buf[:]) }

// complaintBuffer keeps the beginning of what a program prints on stderr and
// lets the rest go by.
type complaintBuffer struct{ head []byte }

func (b *complaintBuffer) Write(data []byte) (int, error) {
	b.head = append(b.head, data[:min(len(data), 256-len(b.head))]...)
	return len(data), nil
}

// text is the first line, made harmless.
func (b *complaintBuffer) text() string {
	first, _, _ := strings.Cut(strings.TrimSpace(string(b.head)), "\n")
	return plain(first)
}
