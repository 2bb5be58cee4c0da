package prompt

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
)

// Confirm asks whether the key in p may be used. What is not a yes is an error:
// agent.ErrRefused for a no, which on the terminal is every answer but y and yes.
func (p *Prompter) Confirm(ctx context.Context, ask agent.ConfirmPrompt) (agent.Grant, error) {
	said, err := p.ask(ctx, question{text: consent(ask), consent: true})
	if err == nil && !p.meansYes(said) {
		err = agent.ErrRefused
	}
	clear(said) // a program that knows only PINs may have asked for one
	if err != nil {
		return agent.GrantNo, fmt.Errorf("asking whether key %s may be used: %w", keyName(ask.Name, ask.Comment), err)
	}
	return agent.GrantOnce, nil
}

// LastTry asks whether to risk the try that would lock the TPM.
func (p *Prompter) LastTry(ctx context.Context, ask agent.AuthPrompt) error {
	said, err := p.ask(ctx, question{text: lastTry(ask), consent: true})
	if err == nil && !p.meansYes(said) {
		err = agent.ErrRefused
	}
	clear(said)
	if err != nil {
		return fmt.Errorf("asking whether to risk a lockout of the TPM: %w", err)
	}
	return nil
}

// Inform tells nothing yet: there is no way to.
func (p *Prompter) Inform(context.Context, agent.Notice) {}

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
