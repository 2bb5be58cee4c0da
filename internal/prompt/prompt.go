// Package prompt asks the user for a PIN, or for consent to use a key. It has a
// list of ways to do so, which are tried in order: a pinentry, the program in
// SSH_ASKPASS, the client's terminal or the agent's own, and
// systemd-ask-password. A way that cannot be used is skipped; once the user was
// asked, the answer counts, even if there was none.
//
// A prompt ends with its context, which is the client's connection: the dialog
// leaves the screen, and the terminal gets its echo back. It also ends after a
// time limit.
package prompt

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt/askpass"
	"github.com/tpm-agent/tpm-agent/internal/prompt/tty"
	"github.com/tpm-agent/tpm-agent/internal/prompt/way"
)

// Options says how to ask.
type Options struct {
	Ways     []string        // the names of those to try, in order; nil: all
	Askpass  string          // the program for askpass; "": none
	Require  askpass.Require // when to use it
	Environ  []string        // of the programs that are run; nil: that of this process
	Terminal string          // the agent's own, such as /dev/tty; "": none
	Timeout  time.Duration   // for one dialog; 0: two minutes
	Grace    time.Duration   // from SIGTERM to SIGKILL for a program that does not end; 0: two seconds
	Log      *slog.Logger    // for the ways that were skipped; nil: none
}

// FromEnviron reads the options from an environment as os.Environ returns it. A
// value of SSH_ASKPASS_REQUIRE that OpenSSH does not know is an error.
func FromEnviron(environ []string) (Options, error) {
	o := Options{Environ: environ, Terminal: "/dev/tty"}
	var err error
	o.Askpass, o.Require, err = askpass.FromEnviron(environ)
	return o, err
}

// Missing returns the ways in o.Ways that are not installed, with what is missing.
func (o Options) Missing() (missing []string) {
	if o.Ways == nil {
		return nil
	}
	for _, w := range o.chosen() {
		if err := w.Installed(); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", w.Name(), err))
		}
	}
	return missing
}

// Prompter asks for PINs and consent. It is safe for concurrent use: dialogs for
// different keys may be open at once, but one at a time on one terminal.
type Prompter struct {
	ways []way.Way
	log  *slog.Logger
}

var _ ask.Prompter = (*Prompter)(nil)

// New returns a Prompter for the ways in o.
func New(o Options) *Prompter {
	if o.Grace == 0 {
		o.Grace = 2 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Prompter{o.chosen(), o.Log}
}

// AuthValue asks for the PIN of a key and returns its octets, without a newline.
// The caller wipes them. An empty answer is an empty PIN; a refusal is
// [ask.ErrRefused].
func (p *Prompter) AuthValue(ctx context.Context, about ask.AuthPrompt) ([]byte, error) {
	answer, err := p.ask(ctx, way.Question{Question: about.Question, Kind: way.PIN, Error: wrongPIN(about), Text: enterPIN(about)})
	if err != nil {
		return nil, fmt.Errorf("asking for the PIN of %s: %w", way.Plain(about.Name), err)
	}
	return answer.PIN, nil
}

// LastTry asks whether to risk the try that would lock the TPM.
func (p *Prompter) LastTry(ctx context.Context, about ask.AuthPrompt) error {
	_, err := p.ask(ctx, way.Question{Question: about.Question, Kind: way.LastTry, Text: lastTry(about)})
	if err != nil {
		return fmt.Errorf("asking whether to risk a lockout of the TPM: %w", err)
	}
	return nil
}

// Confirm asks whether a key may be used. A no is [ask.ErrRefused]; without an
// explicit yes there is always an error.
func (p *Prompter) Confirm(ctx context.Context, about ask.ConfirmPrompt) (ask.Grant, error) {
	answer, err := p.ask(ctx, way.Question{Question: about.Question, Kind: way.Consent, Text: consent(about)})
	if err != nil {
		return ask.GrantNo, fmt.Errorf("asking whether key %s may be used: %w", keyName(about.Name, about.Comment), err)
	}
	return answer.Grant, nil
}

// Inform tells the user something without asking anything. The text stays until
// it is read, or ctx ends, or the time is over.
func (p *Prompter) Inform(ctx context.Context, n ask.Notice) {
	q := way.Question{Question: n.Question, Kind: way.Notice, Text: notice(n, time.Now())}
	if _, err := p.ask(ctx, q); err != nil && ctx.Err() == nil {
		p.log.Debug("the user was not told", "what", q.Text, "cause", err)
	}
}

// ReadPIN asks for a PIN on the terminal at path: see [tty.ReadPIN].
func ReadPIN(ctx context.Context, path, text string) ([]byte, error) {
	return tty.ReadPIN(ctx, path, text)
}

// SaysYes reports whether a line is the word yes.
func SaysYes(line []byte) bool { return way.SaysYes(line) }
