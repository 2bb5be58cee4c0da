package prompt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/child"
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
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	out := &answerBuffer{overflow: func() { stop(errTooLong) }}
	var complaint child.Complaint

	cmd := child.Command(running, p.options.Grace, p.options.Askpass, q.text)
	cmd.Env = q.environ(p.options.Environ)
	cmd.Stdout = out
	cmd.Stderr = &complaint

	err := child.Start(cmd)
	if err == nil {
		err = child.Wait(running, cmd)
	}
	if running.Err() != nil {
		out.wipe()
		return nil, context.Cause(running)
	}
	if err != nil {
		out.wipe()
		return nil, p.askpassError(err, plain(complaint.Line()))
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
