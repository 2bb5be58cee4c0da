package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

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

// askpassWay asks by the program that SSH_ASKPASS names, run as OpenSSH runs it:
// with the question as its argument, and SSH_ASKPASS_PROMPT saying what kind of
// question it is.
type askpassWay struct{ *Prompter }

var errNoAskpass = errors.New("SSH_ASKPASS is not set, and no ssh-askpass is installed")

// The values of SSH_ASKPASS_PROMPT, as in ssh(1).
const (
	hintSecret  = ""
	hintConfirm = "confirm" // a yes or a no
	hintNone    = "none"    // nothing is asked
)

func (w askpassWay) pin(ctx context.Context, q question) ([]byte, error) {
	return w.ask(ctx, q, hintSecret)
}

func (w askpassWay) lastTry(ctx context.Context, q question) error {
	said, err := w.ask(ctx, q, hintConfirm)
	defer clear(said) // a program that knows only PINs may have asked for one
	if err == nil && !meansYes(said) {
		err = agent.ErrRefused
	}
	return err
}

// confirm has a yes and a no, and no choice of grants.
func (w askpassWay) confirm(ctx context.Context, q question) (agent.Grant, error) {
	if err := w.lastTry(ctx, q); err != nil {
		return agent.GrantNo, err
	}
	return agent.GrantOnce, nil
}

// inform shows a text without buttons, or with one that says that it was read.
func (w askpassWay) inform(ctx context.Context, q question) error {
	said, err := w.ask(ctx, q, hintNone)
	clear(said)
	if errors.Is(err, agent.ErrRefused) {
		return nil
	}
	return err
}

// meansYes judges what a program printed that ended well. Nothing, or yes, is a
// yes: OpenSSH's agent takes it so, and askpass programs with two buttons print
// nothing.
func meansYes(said []byte) bool {
	if end := bytes.IndexAny(said, "\r\n"); end >= 0 {
		said = said[:end]
	}
	return len(said) == 0 || bytes.EqualFold(said, []byte("yes"))
}

// ask runs the program. What it prints is the answer, and any exit status but 0
// is a refusal.
func (w askpassWay) ask(ctx context.Context, q question, hint string) ([]byte, error) {
	environ, display := w.display(q.Question)
	switch o := w.options; {
	case o.Require == Never:
		return nil, unusable("SSH_ASKPASS_REQUIRE=never")
	case o.Askpass == "":
		return nil, &unusableError{errNoAskpass}
	case !display && o.Require != Force:
		return nil, unusable("%w", errNoDisplay)
	}
	// For a PIN the hint must not be there, whoever started the agent.
	environ = setenv(environ, "SSH_ASKPASS_PROMPT", hint)
	said, complaint, err := w.run(ctx, environ, w.options.Askpass, q.text)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, w.refusal(exit, complaint)
	}
	if err != nil {
		return nil, err
	}
	return answer(said)
}

// refusal is an exit status. Why is what the program has to say: a window that
// could not be opened has asked nobody.
func (w askpassWay) refusal(exit *exec.ExitError, complaint string) error {
	switch {
	case complaint == "":
		return fmt.Errorf("%w: %s: %w", agent.ErrRefused, w.options.Askpass, exit)
	case strings.Contains(complaint, "open display") || strings.Contains(complaint, "connect to display"):
		return unusable("%s: %w: %s", w.options.Askpass, exit, complaint)
	}
	return fmt.Errorf("%w: %s: %w: %s", agent.ErrRefused, w.options.Askpass, exit, complaint)
}
