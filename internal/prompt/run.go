package prompt

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/tpm-agent/tpm-agent/internal/child"
)

var errTooLong = errors.New("the answer is longer than " + strconv.Itoa(maxAnswer) + " octets")

// run runs a program that asks and prints the answer, within the limit of a
// dialog. complaint is what it has to say of its end, made harmless. Who gets
// said wipes it; with an error there is nothing to wipe. A program that cannot
// be started is unusable.
func (p *Prompter) run(ctx context.Context, environ []string, program string, args ...string) (said []byte, complaint string, err error) {
	limited, done := p.limit(ctx)
	defer done()
	running, stop := context.WithCancelCause(limited)
	defer stop(nil)
	out := &answerBuffer{overflow: func() { stop(errTooLong) }}
	var complaints child.Complaint

	cmd := child.Command(running, p.options.Grace, program, args...)
	cmd.Env = environ
	cmd.Stdout = out
	cmd.Stderr = &complaints
	if err := child.Start(cmd); err != nil {
		if running.Err() != nil {
			return nil, "", context.Cause(running)
		}
		return nil, "", unusable("%w", err)
	}
	err = child.Wait(running, cmd)
	if running.Err() != nil {
		err = context.Cause(running)
	}
	if err != nil {
		out.wipe()
		return nil, plain(complaints.Line()), err
	}
	return out.buf[:out.n], "", nil
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
