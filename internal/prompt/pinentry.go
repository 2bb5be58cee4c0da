package prompt

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/pinentry"
)

// pinentryWay asks by the dialog program of GnuPG: in a window where there is a
// display, else on the terminal of the client.
type pinentryWay struct{ *Prompter }

func (w pinentryWay) pin(ctx context.Context, q question) (pin []byte, err error) {
	d := pinentry.Dialog{Description: q.text, Prompt: "PIN:"}
	if q.retry { // has a place of its own
		d.Description, d.Error = q.first, "Wrong PIN."
	}
	err = w.show(ctx, q, d, func(ctx context.Context, program string, d pinentry.Dialog) error {
		pin, err = pinentry.GetPIN(ctx, program, d)
		return err
	})
	return pin, err
}

// lastTry wants a yes to be typed. Return presses the first button of a pinentry,
// and not all of them have one for a go that return does not press.
func (w pinentryWay) lastTry(ctx context.Context, q question) error {
	d := pinentry.Dialog{Description: q.text + "\n\nType yes to go on.", Prompt: "yes:", OK: "_Go on", Cancel: "_Stop"}
	var said []byte
	err := w.show(ctx, q, d, func(ctx context.Context, program string, d pinentry.Dialog) (err error) {
		d.KeyInfo = "" // it is not the PIN that is asked for
		said, err = pinentry.GetPIN(ctx, program, d)
		return err
	})
	defer clear(said) // but somebody may have typed it
	if err == nil && !SaysYes(said) {
		err = agent.ErrRefused
	}
	return err
}

// choice is a dialog with one grant, or two, or one and more.
type choice struct {
	ok, notOK     string
	onOK, onNotOK agent.Grant // GrantNo: goes on to the next dialog
	question      string
}

// choices are the dialogs of a consent, one after the other, and the keys for their
// buttons: that which asks for more must not give the most. A pinentry has no
// more than three buttons, and one of them says no.
func choices() []choice {
	return []choice{
		{ok: "_Allow once", onOK: agent.GrantOnce, notOK: "_Longer…"},
		{ok: "This _process", onOK: agent.GrantProcess, notOK: "_Longer…", question: "Allow it for as long as the process that asks runs, or longer?"},
		{ok: "15 _minutes", onOK: agent.GrantMinutes, notOK: "_Until locked", onNotOK: agent.GrantUntilLocked, question: "Allow it for 15 minutes, or until the agent is locked?"},
	}
}

func (w pinentryWay) confirm(ctx context.Context, q question) (agent.Grant, error) {
	for _, c := range choices() {
		text := q.text
		if c.question != "" {
			text += "\n\n" + c.question
		}
		button, err := w.press(ctx, q, pinentry.Dialog{Description: text, OK: c.ok, NotOK: c.notOK, Cancel: "_Deny"})
		switch {
		case err != nil:
			return agent.GrantNo, err
		case button == pinentry.ButtonOK:
			return c.onOK, nil
		case c.onNotOK != agent.GrantNo:
			return c.onNotOK, nil
		}
	}
	return agent.GrantNo, agent.ErrRefused
}

// inform shows a window, or writes to the client's terminal: a dialog there would
// have to be closed, and the client ends as soon as it has its answer. For that
// no program has to be looked for.
func (w pinentryWay) inform(ctx context.Context, q question) error {
	onTerminal := func() error {
		return w.withClientTTY(ctx, q, func(ctx context.Context, t *clientTTY) error { return t.tell(ctx, q.text) })
	}
	if _, display := w.display(q.Question); !display {
		return onTerminal()
	}
	d, program, window, err := w.prepare(q)
	switch {
	case err != nil:
		return err
	case !window:
		return onTerminal()
	}
	d.Description = q.text
	return w.judge(w.within(ctx, func(ctx context.Context) error { return pinentry.Message(ctx, program, d) }))
}

func (w pinentryWay) press(ctx context.Context, q question, d pinentry.Dialog) (button pinentry.Button, err error) {
	err = w.show(ctx, q, d, func(ctx context.Context, program string, d pinentry.Dialog) error {
		button, err = pinentry.Confirm(ctx, program, d)
		return err
	})
	return button, err
}

// show calls ask with a dialog that has been told where to appear.
func (w pinentryWay) show(ctx context.Context, q question, d pinentry.Dialog, ask func(context.Context, string, pinentry.Dialog) error) error {
	where, program, window, err := w.prepare(q)
	if err != nil {
		return err
	}
	where.Description, where.Prompt, where.Error = d.Description, d.Prompt, d.Error
	where.OK, where.NotOK, where.Cancel = d.OK, d.NotOK, d.Cancel
	if window {
		return w.judge(w.within(ctx, func(ctx context.Context) error { return ask(ctx, program, where) }))
	}
	err = w.withClientTTY(ctx, q, func(limited context.Context, t *clientTTY) error {
		where.Terminal = t.described()
		defer t.tidying(ctx)()
		return w.judge(ask(limited, program, where))
	})
	var passed *unusableError
	switch {
	case errors.As(err, &passed) && textOnly(program):
		return unusable("%s asks on terminals only, and %w", program, passed.cause)
	case errors.As(err, &passed):
		return unusable("%w, and %w", errNoDisplay, passed.cause)
	}
	return err
}

// within bounds a dialog that is not on a terminal.
func (p *Prompter) within(ctx context.Context, f func(context.Context) error) error {
	ctx, done := p.limit(ctx)
	defer done()
	return f(ctx)
}

// prepare finds the program, and says whether it would open a window.
func (w pinentryWay) prepare(q question) (d pinentry.Dialog, program string, window bool, err error) {
	environ, window := w.display(q.Question)
	program, err = pinentry.Find(environ)
	if err != nil {
		return d, "", false, &unusableError{err}
	}
	if textOnly(program) {
		window = false
	}
	return pinentry.Dialog{
		Title:   "tpm-agent",
		KeyInfo: plain(q.Fingerprint),
		Timeout: w.options.Timeout,
		Owner:   max(q.Peer.PID, 0),
		Display: lookup(environ, "DISPLAY"),
		Environ: environ,
		Grace:   w.options.Grace,
	}, program, window, nil
}

// textOnly says whether a pinentry knows terminals only.
func textOnly(program string) bool {
	if target, err := filepath.EvalSymlinks(program); err == nil {
		program = target
	}
	return slices.Contains([]string{"pinentry-curses", "pinentry-tty"}, filepath.Base(program))
}

// judge puts the end of a dialog into the agent's words.
func (w pinentryWay) judge(err error) error {
	switch {
	case errors.Is(err, pinentry.ErrCancelled):
		return fmt.Errorf("%w: %w", agent.ErrRefused, err)
	case errors.Is(err, pinentry.ErrTimeout):
		return fmt.Errorf("%w: %w", agent.ErrNoAnswer, err)
	case errors.Is(err, pinentry.ErrUnusable), errors.Is(err, pinentry.ErrProtocol):
		return &unusableError{err}
	}
	return err
}
