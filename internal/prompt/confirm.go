package prompt

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
)

// Confirm asks whether the key in p may be used, and returns nil if somebody
// said yes. Everything else is an error: ErrRefused for a no, which on the
// terminal is every answer but y and yes.
func (p *Prompter) Confirm(ctx context.Context, ask agent.ConfirmPrompt) error {
	said, err := p.ask(ctx, question{text: consent(ask), consent: true})
	if err == nil && !p.meansYes(said) {
		err = ErrRefused
	}
	clear(said) // a program that knows only PINs may have asked for one
	if err != nil {
		return fmt.Errorf("asking whether key %s may be used: %w", keyName(ask.Name, ask.Comment), err)
	}
	return nil
}

// meansYes judges an answer. A program that ends well and prints nothing, or
// yes, has been told yes: OpenSSH's agent takes it so, and askpass programs
// with two buttons print nothing. On the terminal, where one gets past a
// question by pressing return, nothing is a no.
func (p *Prompter) meansYes(said []byte) bool {
	line := string(said)
	if end := bytes.IndexAny(said, "\r\n"); end >= 0 {
		line = line[:end]
	}
	if p.useAskpass() {
		return line == "" || strings.EqualFold(line, "yes")
	}
	line = strings.TrimSpace(line)
	return strings.EqualFold(line, "y") || strings.EqualFold(line, "yes")
}

// environ is the environment for askpass. SSH_ASKPASS_PROMPT=confirm, as in
// ssh(1), makes it show two buttons; for a PIN it must not be there, whoever
// started the agent.
func (q question) environ(environ []string) []string {
	const hint = "SSH_ASKPASS_PROMPT="
	own := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		return strings.HasPrefix(entry, hint)
	})
	if q.consent {
		own = append(own, hint+"confirm")
	}
	return own
}
