// Package prompt asks the person in front of the machine for a PIN, or whether
// a key may be used. It implements agent.Prompter in two ways: the program that
// SSH_ASKPASS names, run as OpenSSH runs it, and the terminal in which
// `tpm-agent serve` runs.
//
// A prompt ends with its context, which is the client's connection: a dialog
// for somebody who hung up leaves the screen, and the terminal gets its echo
// back.
package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
)

// ErrNoPrompt is wrapped when there is nobody who could be asked. Its text says
// what to set.
var ErrNoPrompt = fmt.Errorf("%w: set SSH_ASKPASS (it needs DISPLAY or WAYLAND_DISPLAY, "+
	"or SSH_ASKPASS_REQUIRE=force), or run tpm-agent serve in a terminal", agent.ErrNoPrompt)

// maxAnswer is the longest answer that is taken, in octets, as OpenSSH's
// clients do. A PIN is far shorter; what is longer is a program gone wrong.
const maxAnswer = 1024

// Require says when the askpass program is used, by SSH_ASKPASS_REQUIRE.
type Require string

// The values of SSH_ASKPASS_REQUIRE.
const (
	Auto   Require = ""       // askpass where there is a display, else the terminal
	Never  Require = "never"  // the terminal only
	Prefer Require = "prefer" // as Auto; OpenSSH's clients would ask the terminal first without it
	Force  Require = "force"  // askpass only, even without a display
)

// Options says which ways of asking there are. The zero value has none.
type Options struct {
	Askpass  string        // the program; empty: none
	Require  Require       // when to use it
	Display  bool          // a display is there for it
	Environ  []string      // its environment; nil: that of this process
	Terminal string        // the device to ask on, such as /dev/tty; empty: none
	Grace    time.Duration // from SIGTERM to SIGKILL for an askpass that does not end; 0: two seconds
}

// FromEnviron reads the options from an environment as os.Environ returns it:
// SSH_ASKPASS, SSH_ASKPASS_REQUIRE, DISPLAY and WAYLAND_DISPLAY, as in ssh(1).
// The terminal is /dev/tty. A value of SSH_ASKPASS_REQUIRE that OpenSSH does
// not know is an error.
func FromEnviron(environ []string) (Options, error) {
	o := Options{
		Askpass:  lookup(environ, "SSH_ASKPASS"),
		Require:  Require(lookup(environ, "SSH_ASKPASS_REQUIRE")),
		Display:  lookup(environ, "DISPLAY") != "" || lookup(environ, "WAYLAND_DISPLAY") != "",
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

// Prompter asks for PINs and for consent. It is safe for concurrent use:
// dialogs of different keys may be open at once, the terminal is asked by one
// at a time.
type Prompter struct {
	options Options
	tty     chan struct{} // holds a token while the terminal is in use
}

var _ agent.Prompter = (*Prompter)(nil)

// New returns a Prompter for the ways in o.
func New(o Options) *Prompter {
	if o.Grace == 0 {
		o.Grace = 2 * time.Second
	}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	return &Prompter{options: o, tty: make(chan struct{}, 1)}
}

// AuthValue asks for the PIN of the key in p and returns its octets, without a
// newline. The caller wipes them. An empty answer is an empty PIN; refusing is
// agent.ErrRefused.
func (p *Prompter) AuthValue(ctx context.Context, ask agent.AuthPrompt) ([]byte, error) {
	pin, err := p.ask(ctx, question{text: wording(ask)})
	if err != nil {
		return nil, fmt.Errorf("asking for the PIN of %s: %w", plain(ask.Name), err)
	}
	return pin, nil
}

// question is what somebody is asked.
type question struct {
	text    string
	consent bool // yes or no: may be seen on the screen, unlike a PIN
}

// ask chooses the way: askpass where it may be used, else the terminal.
func (p *Prompter) ask(ctx context.Context, q question) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o := p.options
	switch {
	case p.useAskpass():
		return p.askpass(ctx, q)
	case o.Require == Force:
		return nil, fmt.Errorf("SSH_ASKPASS_REQUIRE=force, but SSH_ASKPASS is not set: %w", ErrNoPrompt)
	case o.Terminal != "":
		return p.terminal(ctx, q)
	}
	return nil, ErrNoPrompt
}

// useAskpass says whether the askpass program is what asks.
func (p *Prompter) useAskpass() bool {
	o := p.options
	return o.Askpass != "" && (o.Require == Force || o.Require != Never && o.Display)
}

// answer turns what was read into a PIN: one line, its end cut off. A NUL is
// refused because the TPM drops zero octets from the end of an auth value, so
// that two PINs would be one.
func answer(read []byte) ([]byte, error) {
	read = bytes.TrimSuffix(read, []byte("\n"))
	read = bytes.TrimSuffix(read, []byte("\r"))
	if bytes.IndexByte(read, 0) >= 0 {
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
