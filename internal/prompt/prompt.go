// Package prompt asks the person in front of the machine for a PIN, or whether
// a key may be used. It implements agent.Prompter in several ways, which are
// tried in order: a pinentry, the program that SSH_ASKPASS names, the terminal
// of the client that asks or the agent's own, and systemd-ask-password. A way
// that cannot be used here and now is passed over; once somebody was asked, the
// answer counts, and so does none.
//
// A prompt ends with its context, which is the client's connection: a dialog
// for somebody who hung up leaves the screen, and the terminal gets its echo
// back. It also ends after a limit.
package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/pinentry"
)

// maxAnswer is the longest answer that is taken, in octets, as OpenSSH's
// clients do. A PIN is far shorter; what is longer is a program gone wrong.
const maxAnswer = 1024

// defaultTimeout is how long a dialog waits for somebody.
const defaultTimeout = 2 * time.Minute

// grace is from SIGTERM to SIGKILL for a program that does not end.
const grace = 2 * time.Second

// Require says when the askpass program is used, by SSH_ASKPASS_REQUIRE.
type Require string

// The values of SSH_ASKPASS_REQUIRE.
const (
	Auto   Require = ""       // where there is a display, in its turn
	Never  Require = "never"  // not at all
	Prefer Require = "prefer" // where there is a display, before all other ways
	Force  Require = "force"  // even without a display, before all other ways
)

// Options says how to ask.
type Options struct {
	Ways     []Way         // those to try, in order; nil: all, as the environment has it
	Askpass  string        // the program for [Askpass]; empty: none
	Require  Require       // when to use it
	Environ  []string      // of the programs that are run; nil: that of this process
	Terminal string        // the agent's own, such as /dev/tty; empty: none
	Timeout  time.Duration // the limit of a dialog; 0: defaultTimeout
	Grace    time.Duration // from SIGTERM to SIGKILL for a program that does not end; 0: two seconds
	Log      *slog.Logger  // what ways were passed over, for debugging; nil: not logged
}

// FromEnviron reads the options from an environment as os.Environ returns it:
// SSH_ASKPASS and SSH_ASKPASS_REQUIRE, as in ssh(1). The terminal is /dev/tty.
// A value of SSH_ASKPASS_REQUIRE that OpenSSH does not know is an error.
func FromEnviron(environ []string) (Options, error) {
	o := Options{
		Askpass:  lookup(environ, "SSH_ASKPASS"),
		Require:  Require(lookup(environ, "SSH_ASKPASS_REQUIRE")),
		Environ:  environ,
		Terminal: "/dev/tty",
	}
	switch o.Require {
	case Auto, Never, Prefer, Force:
	default:
		return Options{}, fmt.Errorf("SSH_ASKPASS_REQUIRE=%s: must be never, prefer or force", plain(string(o.Require)))
	}
	if o.Askpass == "" {
		o.Askpass = systemAskpass()
	}
	return o, nil
}

// Missing names the ways among those that were asked for by name whose program
// is not installed, with what is missing.
func (o Options) Missing() []string {
	var missing []string
	for _, way := range o.Ways {
		if err := o.installed(way); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", way, err))
		}
	}
	return missing
}

func (o Options) installed(way Way) (err error) {
	switch way {
	case Pinentry:
		_, err = pinentry.Find(o.Environ)
	case Askpass:
		if o.Askpass == "" {
			return errNoAskpass
		}
		_, err = exec.LookPath(o.Askpass)
	case Systemd:
		_, err = exec.LookPath(systemdProgram)
	}
	return err
}

// Prompter asks for PINs and for consent. It is safe for concurrent use:
// dialogs of different keys may be open at once, but one at a time on one
// terminal.
type Prompter struct {
	options Options
	ways    map[Way]way
	turns   turns
}

var _ agent.Prompter = (*Prompter)(nil)

// New returns a Prompter for the ways in o.
func New(o Options) *Prompter {
	if o.Grace == 0 {
		o.Grace = grace
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.Ways == nil {
		o.Ways = order(o.Require)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Prompter{options: o}
	p.ways = map[Way]way{
		Pinentry: pinentryWay{p},
		Askpass:  askpassWay{p},
		Terminal: terminalWay{p},
		Systemd:  systemdWay{p},
	}
	return p
}

// AuthValue asks for the PIN of the key in p and returns its octets, without a
// newline. The caller wipes them. An empty answer is an empty PIN; refusing is
// agent.ErrRefused.
func (p *Prompter) AuthValue(ctx context.Context, ask agent.AuthPrompt) (pin []byte, err error) {
	q := question{Question: ask.Question, text: wording(ask), retry: ask.Retry}
	ask.Retry = false
	q.first = wording(ask)
	err = p.try(ctx, func(w way) error {
		pin, err = w.pin(ctx, q)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("asking for the PIN of %s: %w", plain(ask.Name), err)
	}
	return pin, nil
}

// LastTry asks whether to risk the try that would lock the TPM.
func (p *Prompter) LastTry(ctx context.Context, ask agent.AuthPrompt) error {
	q := question{Question: ask.Question, text: lastTry(ask)}
	err := p.try(ctx, func(w way) error { return w.lastTry(ctx, q) })
	if err != nil {
		return fmt.Errorf("asking whether to risk a lockout of the TPM: %w", err)
	}
	return nil
}

// Confirm asks whether the key in p may be used. What is not a yes is an error:
// agent.ErrRefused for a no.
func (p *Prompter) Confirm(ctx context.Context, ask agent.ConfirmPrompt) (grant agent.Grant, err error) {
	q := question{Question: ask.Question, text: consent(ask)}
	err = p.try(ctx, func(w way) error {
		grant, err = w.confirm(ctx, q)
		return err
	})
	if err != nil {
		return agent.GrantNo, fmt.Errorf("asking whether key %s may be used: %w", keyName(ask.Name, ask.Comment), err)
	}
	return grant, nil
}

// Inform tells the user something, where there is a way to do so without asking
// anything. It stays until it is read, or ctx ends, or the limit is over.
func (p *Prompter) Inform(ctx context.Context, n agent.Notice) {
	q := question{Question: n.Question, text: notice(n)}
	err := p.try(ctx, func(w way) error { return w.inform(ctx, q) })
	if err != nil && ctx.Err() == nil {
		p.options.Log.Debug("nobody was told", "what", q.text, "cause", err)
	}
}

// limit bounds the time for one dialog.
func (p *Prompter) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, p.options.Timeout, fmt.Errorf("%w within %v", agent.ErrNoAnswer, p.options.Timeout))
}

// answer turns what was read into a PIN: one line, its end cut off. A NUL is
// refused because the TPM drops zero octets from the end of an auth value, so
// that two PINs would be one.
func answer(read []byte) ([]byte, error) {
	read = bytes.TrimSuffix(read, []byte("\n"))
	read = bytes.TrimSuffix(read, []byte("\r"))
	if slices.Contains(read, 0) { // bytes.IndexByte would leave 16 octets in a register
		clear(read)
		return nil, errors.New("the answer has a NUL octet in it, which a PIN cannot have")
	}
	return read, nil
}

// lookup returns the last value of name, the one that counts.
func lookup(environ []string, name string) (value string) {
	for _, entry := range environ {
		if rest, ok := strings.CutPrefix(entry, name+"="); ok {
			value = rest
		}
	}
	return value
}

// setenv returns environ with one value for name, or none if that is empty.
func setenv(environ []string, name, value string) []string {
	own := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		return strings.HasPrefix(entry, name+"=")
	})
	if value != "" {
		own = append(own, name+"="+value)
	}
	return own
}
