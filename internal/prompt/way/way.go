// Package way defines a way of asking the user, and holds what the ways share:
// how to run a program that asks, where the user's display is, and which text
// may be shown.
package way

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// MaxAnswer is the longest answer that is accepted, in octets, as in OpenSSH's
// clients. A longer one comes from a broken program.
const MaxAnswer = 1024

// ErrTooLong is the error for a longer answer.
var ErrTooLong = fmt.Errorf("the answer is longer than %d octets", MaxAnswer)

// Way is a way of asking the user.
type Way interface {
	// Name is the name of the way in --prompt.
	Name() string

	// Installed returns an error that says what is missing on this machine.
	Installed() error

	// Ask shows q until it is answered or ctx ends. If the way cannot be used
	// now for this question, it returns an [UnusableError], and the next way is
	// tried. Any other error is final.
	Ask(ctx context.Context, q Question) (Answer, error)
}

// Kind is what a question asks for.
type Kind int

// The kinds of questions.
const (
	PIN     Kind = iota // Answer.PIN
	LastTry             // an explicit yes, which is an answer without an error
	Consent             // Answer.Grant
	Notice              // nothing: the text is shown
)

// Question is a question in words. The texts are lines that [Printable] would
// not change.
type Question struct {
	ask.Question
	Kind  Kind
	Error string // what was wrong with the last answer, or ""
	Text  string // everything else
}

// Whole returns the error and the text.
func (q Question) Whole() string {
	if q.Error == "" {
		return q.Text
	}
	return q.Error + "\n" + q.Text
}

// Answer is what the user answered. The caller wipes the PIN.
type Answer struct {
	PIN   []byte
	Grant ask.Grant
}

// Settings apply to all ways.
type Settings struct {
	Environ []string      // of the programs that are run
	Timeout time.Duration // for one dialog
	Grace   time.Duration // from SIGTERM to SIGKILL for a program that does not end
}

// Limit returns a context that ends after the time for one dialog.
func (s Settings) Limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("%w within %v", ask.ErrNoAnswer, s.Timeout))
}

// UnusableError says why a way could not be used. The user was not asked.
type UnusableError struct{ cause error }

// Unusable returns an [UnusableError] with a formatted cause.
func Unusable(format string, args ...any) error {
	return &UnusableError{fmt.Errorf(format, args...)}
}

func (e *UnusableError) Error() string { return e.cause.Error() }
func (e *UnusableError) Unwrap() error { return e.cause }

// GoOn ends a question on a terminal that needs an explicit yes.
const GoOn = "Type yes to go on, anything else to stop: "

// SaysYes reports whether a line is the word yes. It does not make a string of
// the line, since the user may have typed a PIN.
func SaysYes(line []byte) bool {
	return bytes.EqualFold(bytes.TrimSpace(line), []byte("yes"))
}

// Yes turns a line into consent for one time if it is the word yes, and into
// [ask.ErrRefused] otherwise. It wipes the line and passes on err.
func Yes(line []byte, err error) (Answer, error) {
	defer clear(line)
	switch {
	case err != nil:
		return Answer{}, err
	case !SaysYes(line):
		return Answer{}, ask.ErrRefused
	}
	return Answer{Grant: ask.GrantOnce}, nil
}

// Line removes the end of a line. It wipes and refuses a line that is too long,
// or has a NUL in it: the TPM ignores zero octets at the end of an auth value, so
// that two PINs would be the same.
func Line(read []byte) (line []byte, err error) {
	line = bytes.TrimSuffix(read, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) > MaxAnswer:
		err = ErrTooLong
	case slices.Contains(line, 0): // unlike bytes.IndexByte, it leaves nothing in vector registers
		err = errors.New("the answer has a NUL octet in it, which a PIN cannot have")
	default:
		return line, nil
	}
	clear(read)
	return nil, err
}

// Client returns the process that caused a question. It returns an error unless
// that is a process of this user on this machine: then what /proc says about
// it is as reliable as the user's own programs.
func Client(q ask.Question) (peer.Process, error) {
	switch {
	case q.Peer.PID <= 0:
		return peer.Process{}, errors.New("the client is not known")
	case q.Use.Forwarded:
		return peer.Process{}, errors.New("the request was forwarded from another machine")
	}
	client, ok := peer.LookAt(q.Peer.PID)
	switch {
	case !ok:
		return client, errors.New("the client has gone")
	case q.Peer.UID != os.Geteuid() || int(client.UID) != os.Geteuid():
		return client, errors.New("the client belongs to another user")
	}
	return client, nil
}
