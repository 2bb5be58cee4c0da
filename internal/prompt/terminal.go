package prompt

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
)

// terminalWay asks on a terminal: that of the client, where somebody waits for
// it; else the agent's own.
type terminalWay struct{ *Prompter }

func (w terminalWay) pin(ctx context.Context, q question) (pin []byte, err error) {
	question := q.text
	if strings.Contains(question, "\n") { // the last line is no question
		question += "\nPIN"
	}
	err = w.withTTY(ctx, q, func(ctx context.Context, t *tty) error {
		pin, err = t.ask(ctx, "\r\n"+question+": ", false)
		return err
	})
	return pin, err
}

// lastTry wants the whole word: y is typed too easily.
func (w terminalWay) lastTry(ctx context.Context, q question) error {
	return w.shown(ctx, q, goOn, func(said []byte) error {
		if !SaysYes(said) {
			return agent.ErrRefused
		}
		return nil
	})
}

func (w terminalWay) confirm(ctx context.Context, q question) (grant agent.Grant, err error) {
	err = w.shown(ctx, q, "y once, p this process, m 15 minutes, l until locked [y/p/m/l/N] ", func(said []byte) error {
		if grant = meantGrant(said); grant == agent.GrantNo {
			return agent.ErrRefused
		}
		return nil
	})
	if err != nil {
		return agent.GrantNo, err
	}
	return grant, nil
}

// meantGrant is what somebody has typed. Return alone, with which one gets past
// a question, is a no.
func meantGrant(said []byte) agent.Grant {
	said = bytes.TrimSpace(said)
	for _, grant := range []struct {
		word string
		agent.Grant
	}{
		{"y", agent.GrantOnce},
		{"yes", agent.GrantOnce},
		{"p", agent.GrantProcess},
		{"m", agent.GrantMinutes},
		{"l", agent.GrantUntilLocked},
	} {
		if bytes.EqualFold(said, []byte(grant.word)) {
			return grant.Grant
		}
	}
	return agent.GrantNo
}

// SaysYes says whether the answer is the word yes. Answers stay octets that are
// wiped, and are not made strings: where a yes is wanted somebody may type a PIN.
func SaysYes(said []byte) bool {
	return bytes.EqualFold(bytes.TrimSpace(said), []byte("yes"))
}

// inform writes and asks nothing, so it does not wait for its reader.
func (w terminalWay) inform(ctx context.Context, q question) error {
	return w.withTTY(ctx, q, func(ctx context.Context, t *tty) error { return t.tell(ctx, q.text) })
}

// shown asks what may be seen on the screen, and has it judged.
func (w terminalWay) shown(ctx context.Context, q question, choice string, judge func(said []byte) error) error {
	return w.withTTY(ctx, q, func(ctx context.Context, t *tty) error {
		line, err := t.ask(ctx, "\r\n"+q.text+"\n"+choice, true)
		if err == nil {
			err = judge(line)
		}
		clear(line)
		return err
	})
}

// withTTY calls ask with a terminal that nobody else uses.
func (w terminalWay) withTTY(ctx context.Context, q question, ask func(context.Context, *tty) error) error {
	err := w.withClientTTY(ctx, q, func(ctx context.Context, t *clientTTY) error { return ask(ctx, t.tty) })
	var passed *unusableError
	if !errors.As(err, &passed) || w.options.Terminal == "" {
		return err
	}
	own := w.withOwnTTY(ctx, ask)
	if errors.As(own, new(*unusableError)) {
		return unusable("%w, and %w", passed.cause, own)
	}
	return own
}

// withClientTTY calls ask with the client's terminal, in its turn.
func (p *Prompter) withClientTTY(ctx context.Context, q question, ask func(context.Context, *clientTTY) error) error {
	t, err := openClientTTY(q.Question)
	if err != nil {
		return &unusableError{err}
	}
	defer t.close()
	leave, err := p.turns.take(ctx, t.device)
	if err != nil {
		return err
	}
	defer leave()
	if err := t.ready(); err != nil {
		return &unusableError{err}
	}
	ctx, done := p.limit(ctx)
	defer done()
	ctx, stop := t.watch(ctx)
	defer stop()
	if err = ask(ctx, t); errors.Is(err, errVanished) {
		return errTaken
	}
	return err
}

// withOwnTTY calls ask with the agent's own terminal, in its turn.
func (p *Prompter) withOwnTTY(ctx context.Context, ask func(context.Context, *tty) error) error {
	t, err := openTTY(p.options.Terminal)
	if err != nil {
		return unusable("the agent has no terminal (%w)", err)
	}
	defer t.close()
	leave, err := p.turns.take(ctx, t.device)
	if err != nil {
		return err
	}
	defer leave()
	// A shell under `serve -- CMD` gives the terminal to its jobs.
	if ours, foreground := t.ours(); ours && !foreground {
		return unusable("the agent's terminal, %s, is in use by another program", t.path)
	}
	if err := t.free(); err != nil {
		return unusable("the agent's terminal: %w", err)
	}
	ctx, done := p.limit(ctx)
	defer done()
	return ask(ctx, t)
}
