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
	"github.com/tpm-agent/tpm-agent/internal/prompt"
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
	program, require = prompt.Lookup(environ, "SSH_ASKPASS"), Require(prompt.Lookup(environ, "SSH_ASKPASS_REQUIRE"))
	switch require {
	case Auto, Never, Prefer, Force:
	default:
		return "", "", fmt.Errorf("SSH_ASKPASS_REQUIRE=%s: must be never, prefer or force", prompt.Plain(string(require)))
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
	prompt.Settings
	program string
	require Require
}

// New returns the way to ask with a program, "" for none.
func New(s prompt.Settings, program string, require Require) prompt.Way {
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

// Ask runs the program. Any exit status but 0 is a refusal, except of a notice.
// Consent is a yes or a no, for one time only.
func (w askpass) Ask(ctx context.Context, q prompt.Question) (prompt.Answer, error) {
	environ, noDisplay := w.Display(q.Question)
	err := w.Installed()
	switch {
	case w.require == Never:
		return prompt.Answer{}, prompt.Unusable("SSH_ASKPASS_REQUIRE=never")
	case err != nil:
		return prompt.Answer{}, prompt.Unusable("%w", err)
	case noDisplay != nil && w.require != Force:
		return prompt.Answer{}, prompt.Unusable("%w", noDisplay)
	}
	// The hints of ssh(1). There is none for a secret, whatever the agent's
	// environment says. A notice has no buttons, or one to close it.
	hint := map[prompt.Kind]string{prompt.LastTry: "confirm", prompt.Consent: "confirm", prompt.Notice: "none"}[q.Kind]
	said, err := w.Run(ctx, prompt.Program{
		Path: w.program, Args: []string{q.Whole()}, Environ: prompt.Setenv(environ, "SSH_ASKPASS_PROMPT", hint),
	})
	exit, exited := errors.AsType[*prompt.ExitError](err)
	switch {
	case exited && (strings.Contains(exit.Complaint, "open display") || strings.Contains(exit.Complaint, "connect to display")):
		return prompt.Answer{}, prompt.Unusable("%s: %w", w.program, err) // the user was not asked
	case exited && q.Kind != prompt.Notice:
		return prompt.Answer{}, fmt.Errorf("%w: %s: %w", ask.ErrRefused, w.program, err)
	case err != nil && !exited, q.Kind == prompt.PIN:
		return prompt.Answer{PIN: said}, err
	}
	defer clear(said) // a program that knows only PINs may have asked for one
	switch {
	case q.Kind == prompt.Notice:
		return prompt.Answer{}, nil
	case !meansYes(said):
		return prompt.Answer{}, ask.ErrRefused
	}
	return prompt.Answer{Grant: ask.GrantOnce}, nil
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
