// Package askpass asks with the program in SSH_ASKPASS, and runs it as OpenSSH
// does: with the question as its argument, and the kind of question in
// SSH_ASKPASS_PROMPT.
package askpass

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt/way"
)

// Require is when the program is used, as in SSH_ASKPASS_REQUIRE.
type Require string

// The values of SSH_ASKPASS_REQUIRE.
const (
	Auto   Require = ""       // in its turn, if there is a display
	Never  Require = "never"  // not at all
	Prefer Require = "prefer" // before all other ways, if there is a display
	Force  Require = "force"  // before all other ways, even without a display
)

// FromEnviron returns the program in SSH_ASKPASS, or one that is installed, and
// SSH_ASKPASS_REQUIRE, as in ssh(1). A value that OpenSSH does not know is an
// error.
func FromEnviron(environ []string) (program string, require Require, err error) {
	program, require = way.Lookup(environ, "SSH_ASKPASS"), Require(way.Lookup(environ, "SSH_ASKPASS_REQUIRE"))
	switch require {
	case Auto, Never, Prefer, Force:
	default:
		return "", "", fmt.Errorf("SSH_ASKPASS_REQUIRE=%s: must be never, prefer or force", way.Plain(string(require)))
	}
	// Distributions install one of these for OpenSSH.
	for _, path := range []string{"/usr/bin/ssh-askpass", "/usr/libexec/openssh/ssh-askpass", "/usr/lib/ssh/ssh-askpass"} {
		if _, err := exec.LookPath(path); err == nil && program == "" {
			program = path
		}
	}
	return program, require, nil
}

type askpass struct {
	way.Settings
	program string
	require Require
}

// New returns the way to ask with a program, "" for none.
func New(s way.Settings, program string, require Require) way.Way {
	return askpass{s, program, require}
}

func (askpass) Name() string { return "askpass" }

func (w askpass) Installed() error {
	if w.program == "" {
		return errors.New("SSH_ASKPASS is not set, and no ssh-askpass is installed")
	}
	_, err := exec.LookPath(w.program)
	return err
}

// Ask asks for consent with a yes and a no, which is for one time only.
func (w askpass) Ask(ctx context.Context, q way.Question) (way.Answer, error) {
	switch q.Kind {
	case way.PIN:
		pin, err := w.run(ctx, q, "")
		return way.Answer{PIN: pin}, err
	case way.Notice: // shown without buttons, or with one to close it
		_, err := w.run(ctx, q, "none")
		if errors.Is(err, ask.ErrRefused) {
			err = nil
		}
		return way.Answer{}, err
	}
	line, err := w.run(ctx, q, "confirm")
	defer clear(line) // a program that knows only PINs may have asked for one
	switch {
	case err != nil:
		return way.Answer{}, err
	case !meansYes(line):
		return way.Answer{}, ask.ErrRefused
	}
	return way.Answer{Grant: ask.GrantOnce}, nil
}

// meansYes judges the output of a program that was successful. As for OpenSSH's
// agent, an empty line and the word yes are a yes: programs with two buttons
// print nothing.
func meansYes(said []byte) bool {
	if end := bytes.IndexAny(said, "\r\n"); end >= 0 {
		said = said[:end]
	}
	return len(said) == 0 || bytes.EqualFold(said, []byte("yes"))
}

// run runs the program. Any exit status but 0 is a refusal. The hint is one of
// ssh(1), or empty to ask for a secret, whatever the agent's environment says.
func (w askpass) run(ctx context.Context, q way.Question, hint string) ([]byte, error) {
	environ, display := w.Display(q.Question)
	err := w.Installed()
	switch {
	case w.require == Never:
		return nil, way.Unusable("SSH_ASKPASS_REQUIRE=never")
	case err != nil:
		return nil, way.Unusable("%w", err)
	case !display && w.require != Force:
		return nil, way.Unusable("%w", way.ErrNoDisplay)
	}
	said, err := w.Run(ctx, way.Program{
		Path: w.program, Args: []string{q.Whole()}, Environ: way.Setenv(environ, "SSH_ASKPASS_PROMPT", hint),
	})
	exit, exited := errors.AsType[*way.ExitError](err)
	switch {
	case !exited:
		return said, err
	case strings.Contains(exit.Complaint, "open display"), strings.Contains(exit.Complaint, "connect to display"):
		return nil, way.Unusable("%s: %w", w.program, err) // the user was not asked
	}
	return nil, fmt.Errorf("%w: %s: %w", ask.ErrRefused, w.program, err)
}
