// Package tty asks on a terminal: on the client's, where the user waits for it,
// or else on the agent's own.
package tty

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// Terminals is the way to ask on terminals. One question is on a terminal at a
// time.
type Terminals struct {
	prompt.Settings
	own   string // the agent's own terminal, "" for none
	turns turns
}

// New returns the way to ask on terminals; own is the agent's, such as /dev/tty.
func New(s prompt.Settings, own string) *Terminals { return &Terminals{Settings: s, own: own} }

// Name returns the name of the way.
func (w *Terminals) Name() string { return "terminal" }

// Installed returns nil: nothing has to be installed.
func (w *Terminals) Installed() error { return nil }

// Ask asks on the client's terminal, or on the agent's own.
func (w *Terminals) Ask(ctx context.Context, q prompt.Question) (answer prompt.Answer, err error) {
	err = w.OnClient(ctx, q.Question, func(ctx context.Context, c *Client) error {
		answer, err = c.put(ctx, q)
		return err
	})
	passed, ok := errors.AsType[*prompt.UnusableError](err)
	if !ok || w.own == "" {
		return answer, err
	}
	err = w.onOwn(ctx, func(ctx context.Context, t *terminal) error {
		answer, err = t.put(ctx, q)
		return err
	})
	if own, ok := errors.AsType[*prompt.UnusableError](err); ok {
		err = prompt.Unusable("%w, and %w", passed, own)
	}
	return answer, err
}

// put asks q on the terminal.
func (t *terminal) put(ctx context.Context, q prompt.Question) (prompt.Answer, error) {
	text := "\r\n" + q.Whole()
	switch q.Kind {
	case prompt.PIN:
		if strings.Contains(q.Whole(), "\n") { // the last line is not the question
			text += "\nPIN"
		}
		pin, err := t.ask(ctx, text+": ", false)
		return prompt.Answer{PIN: pin}, err
	case prompt.LastTry: // y is typed too easily
		return prompt.Yes(t.ask(ctx, text+"\n"+prompt.GoOn, true))
	case prompt.Consent:
		line, err := t.ask(ctx, text+"\ny once, p this process, m 15 minutes, l until locked [y/p/m/l/N] ", true)
		defer clear(line)
		grant := meantGrant(line)
		if err == nil && grant == ask.GrantNo {
			err = ask.ErrRefused
		}
		return prompt.Answer{Grant: grant}, err
	}
	return prompt.Answer{}, t.Tell(ctx, q.Whole())
}

// meantGrant returns the consent that was typed. Return alone is a no, since
// users press it to skip a question.
func meantGrant(line []byte) ask.Grant {
	line = bytes.TrimSpace(line)
	for _, grant := range []struct {
		word string
		ask.Grant
	}{
		{"y", ask.GrantOnce},
		{"yes", ask.GrantOnce},
		{"p", ask.GrantProcess},
		{"m", ask.GrantMinutes},
		{"l", ask.GrantUntilLocked},
	} {
		if bytes.EqualFold(line, []byte(grant.word)) {
			return grant.Grant
		}
	}
	return ask.GrantNo
}

// OnClient calls f with the client's terminal, in its turn, for at most the time
// of one dialog.
func (w *Terminals) OnClient(ctx context.Context, q ask.Question, f func(context.Context, *Client) error) error {
	c, err := openClient(q)
	if err != nil {
		return prompt.Unusable("%w", err)
	}
	return w.inTurn(ctx, c.terminal, c.usable, func(ctx context.Context) error {
		ctx, stop := c.watch(ctx)
		defer stop()
		err := f(ctx, c)
		if errors.Is(err, errVanished) {
			return errLeft
		}
		return err
	})
}

// onOwn calls f with the agent's own terminal, in its turn, for at most the time
// of one dialog.
func (w *Terminals) onOwn(ctx context.Context, f func(context.Context, *terminal) error) error {
	t, err := open(w.own)
	if err != nil {
		return prompt.Unusable("the agent has no terminal (%w)", err)
	}
	usable := func() error {
		// A shell under `serve -- CMD` gives the terminal to its jobs.
		if t.inBackground() {
			return fmt.Errorf("the agent's terminal, %s, is in use by another program", t.path)
		}
		return t.free()
	}
	return w.inTurn(ctx, t, usable, func(ctx context.Context) error { return f(ctx, t) })
}

// inTurn waits until other questions have left the terminal and calls f if it is
// usable. It closes the terminal.
func (w *Terminals) inTurn(ctx context.Context, t *terminal, usable func() error, f func(context.Context) error) error {
	defer t.close()
	leave, err := w.turns.take(ctx, t.device)
	if err != nil {
		return err
	}
	defer leave()
	if err := usable(); err != nil {
		return prompt.Unusable("%w", err)
	}
	ctx, done := w.Limit(ctx)
	defer done()
	return f(ctx)
}
