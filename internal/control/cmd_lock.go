package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// Lock makes the agent forget PINs and consent.
func Lock(ctx context.Context, sys *term.System, socket string) error {
	c, err := Dial(ctx, sys, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.exchange(ctx, forgetRequest(), agentPatience)
	if err != nil {
		return err
	}
	n, err := parseForgetAnswer(answer)
	switch {
	case errors.Is(err, ErrNotOwner):
		return term.Hint(fmt.Errorf("forgetting PINs: the agent at %s does not know how, or not over this connection", term.Plain(c.path)),
			"is it tpm-agent? (--socket PATH chooses another.) One that is reached through ssh -A does not do this")
	case err != nil:
		return c.failed(ctx, err)
	}
	fmt.Fprintln(sys.Stderr, forgotten(n))
	fmt.Fprintln(sys.Stderr, "The agent signs as before, and asks again. (ssh-add -x locks it altogether.)")
	return nil
}

func forgotten(pins int) string {
	switch pins {
	case 0:
		return "No PIN was remembered. Consent that was given for a time is forgotten."
	case 1:
		return "1 PIN forgotten, and all consent that was given for a time."
	}
	return fmt.Sprintf("%d PINs forgotten, and all consent that was given for a time.", pins)
}
