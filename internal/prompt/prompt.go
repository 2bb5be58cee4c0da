// Package prompt asks the user for a PIN, or for consent to use a key. It has a
// list of ways to do so, which are tried in order: a pinentry, the program in
// SSH_ASKPASS, the client's terminal or the agent's own, and
// systemd-ask-password. A way that cannot be used is skipped; once the user was
// asked, the answer counts, even if there was none.
//
// A prompt ends with its context, which is the client's connection: the dialog
// leaves the screen, and the terminal gets its echo back. It also ends after a
// time limit.
//
// Each way is a package of its own. This one holds what they share: how to run a
// program that asks, where the user's display is, and which text may be shown.
package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
)

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

// Kind is the kind of a question.
type Kind int

// The kinds of questions.
const (
	PIN     Kind = iota // Answer.PIN
	LastTry             // an explicit yes, which is an answer without an error
	Consent             // Answer.Grant
	Notice              // nothing: the text is shown
)

// Question is a question in words: lines of visible text.
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

// Answer is the answer of the user. The caller wipes the PIN.
type Answer struct {
	PIN   []byte
	Grant ask.Grant
}

// UnusableError says why a way could not be used. The user was not asked.
type UnusableError struct{ cause error }

// Unusable returns an [UnusableError] with a formatted cause.
func Unusable(format string, args ...any) error {
	return &UnusableError{fmt.Errorf(format, args...)}
}

func (e *UnusableError) Error() string { return e.cause.Error() }
func (e *UnusableError) Unwrap() error { return e.cause }

// Prompter asks for PINs and consent. It is safe for concurrent use: dialogs for
// different keys may be open at once, but one at a time on one terminal.
type Prompter struct {
	ways []Way
	log  *slog.Logger
}

var _ ask.Prompter = (*Prompter)(nil)

// New returns a Prompter that tries the ways in this order. It logs which ones it
// skips.
func New(ways []Way, log *slog.Logger) *Prompter { return &Prompter{ways, log} }

// AuthValue asks for the PIN of a key and returns its octets, without a newline.
// The caller wipes them. An empty answer is an empty PIN; a refusal is
// [ask.ErrRefused].
func (p *Prompter) AuthValue(ctx context.Context, about ask.AuthPrompt) ([]byte, error) {
	answer, err := p.ask(ctx, enterPIN(about))
	if err != nil {
		return nil, fmt.Errorf("asking for the PIN of %s: %w", Plain(about.Name), err)
	}
	return answer.PIN, nil
}

// LastTry asks whether to risk the try that would lock the TPM.
func (p *Prompter) LastTry(ctx context.Context, about ask.AuthPrompt) error {
	_, err := p.ask(ctx, Question{Question: about.Question, Kind: LastTry, Text: lastTry(about)})
	if err != nil {
		return fmt.Errorf("asking whether to risk a lockout of the TPM: %w", err)
	}
	return nil
}

// Confirm asks whether a key may be used. A no is [ask.ErrRefused]; without an
// explicit yes there is always an error.
func (p *Prompter) Confirm(ctx context.Context, about ask.ConfirmPrompt) (ask.Grant, error) {
	answer, err := p.ask(ctx, Question{Question: about.Question, Kind: Consent, Text: consent(about)})
	if err != nil {
		return ask.GrantNo, fmt.Errorf("asking whether key %s may be used: %w", strings.Join(keyWords(about.Name, about.Comment), " "), err)
	}
	return answer.Grant, nil
}

// Inform tells the user something without asking anything. The text stays until
// it is read, or ctx ends, or the time is over.
func (p *Prompter) Inform(ctx context.Context, n ask.Notice) {
	q := Question{Question: n.Question, Kind: Notice, Text: notice(n, time.Now())}
	if _, err := p.ask(ctx, q); err != nil && ctx.Err() == nil {
		p.log.Debug("the user was not told", "what", q.Text, "cause", err)
	}
}

// ask asks in one way after the other, until one was usable. If none was, the
// error names each way with its cause, and what helps.
func (p *Prompter) ask(ctx context.Context, q Question) (Answer, error) {
	if len(p.ways) == 0 {
		return Answer{}, fmt.Errorf("%w: serve --prompt none turns prompts off", ask.ErrNoPrompt)
	}
	failed := ask.ErrNoPrompt
	for _, w := range p.ways {
		if ctx.Err() != nil {
			break
		}
		answer, err := w.Ask(ctx, q)
		unusable, ok := errors.AsType[*UnusableError](err)
		if !ok {
			return answer, err
		}
		p.log.Debug("skipped a way to ask", "way", w.Name(), "cause", unusable)
		failed = fmt.Errorf("%w; %s: %w", failed, w.Name(), unusable)
	}
	if ctx.Err() != nil {
		return Answer{}, context.Cause(ctx)
	}
	var hints []string
	if p.has("pinentry") || p.has("askpass") {
		hints = append(hints, "DISPLAY or WAYLAND_DISPLAY for the agent, with a pinentry or SSH_ASKPASS")
	}
	if p.has("terminal") {
		hints = append(hints, "a terminal in which the client runs and nothing else reads")
	}
	if len(hints) > 0 {
		failed = fmt.Errorf("%w; what helps: %s", failed, strings.Join(hints, ", or "))
	}
	return Answer{}, failed
}

func (p *Prompter) has(name string) bool {
	return slices.ContainsFunc(p.ways, func(w Way) bool { return w.Name() == name })
}

// MaxAnswer is the longest answer that is accepted, in octets, as in OpenSSH's
// clients. A longer one comes from a broken program.
const MaxAnswer = 1024

// ErrTooLong is the error for a longer answer.
var ErrTooLong = fmt.Errorf("the answer is longer than %d octets", MaxAnswer)

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
