// Package pinentry asks with a pinentry, the dialog program of GnuPG: in a
// window if there is a display, or else on the client's terminal. It speaks
// Assuan with the program, as pinentry(1) describes.
package pinentry

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/prompt/tty"
)

// patience is how long a program may take before it shows a dialog. A slow
// machine that has just started its desktop needs some of it.
const patience = 30 * time.Second

type pinentry struct {
	prompt.Settings
	terminals *tty.Terminals
}

// New returns the way to ask with a pinentry. On terminals it takes turns with
// other questions.
func New(s prompt.Settings, t *tty.Terminals) prompt.Way { return pinentry{s, t} }

func (pinentry) Name() string { return "pinentry" }

func (w pinentry) Installed() error {
	_, err := find(w.Environ)
	return err
}

func (w pinentry) Ask(ctx context.Context, q prompt.Question) (answer prompt.Answer, err error) {
	environ, noDisplay := w.Display(q.Question)
	path, err := find(environ)
	if err != nil && (noDisplay == nil || q.Kind != prompt.Notice) {
		return answer, prompt.Unusable("%w", err)
	}
	terminalOnly := isTerminalOnly(path)
	if noDisplay == nil && !terminalOnly {
		ctx, done := w.Limit(ctx)
		defer done()
		return w.run(ctx, path, environ, q, nil)
	}
	err = w.terminals.OnClient(ctx, q.Question, func(limited context.Context, c *tty.Client) error {
		if q.Kind == prompt.Notice { // a dialog would have to be closed
			return c.Tell(limited, q.Whole())
		}
		defer c.Tidying(ctx)()
		answer, err = w.run(limited, path, environ, q, c)
		return err
	})
	passed, unusable := errors.AsType[*prompt.UnusableError](err)
	switch {
	case unusable && terminalOnly:
		err = prompt.Unusable("%s asks on terminals only, and %w", path, passed)
	case unusable:
		err = prompt.Unusable("%w, and %w", noDisplay, passed)
	}
	return answer, err
}

// isTerminalOnly reports whether a pinentry cannot open a window.
func isTerminalOnly(path string) bool {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	return slices.Contains(terminalFlavours, strings.TrimPrefix(filepath.Base(path), "pinentry-"))
}

// run runs the program for one dialog, on a terminal unless c is nil.
func (w pinentry) run(ctx context.Context, path string, environ []string, q prompt.Question, c *tty.Client) (answer prompt.Answer, err error) {
	p, err := prompt.Program{Path: path, Environ: environ, Grace: w.Grace}.Start(ctx)
	if err != nil {
		return answer, err
	}
	d := &dialog{conn: &conn{in: p.In, out: p.Out}, Question: q, terminal: c}
	patient := p.StopAfter(patience, fmt.Errorf("it showed nothing within %v", patience))
	if err = d.setUp(w.Timeout); !patient.Stop() {
		err = errEnded
	}
	if err == nil {
		answer, err = d.ask()
	}
	if errors.Is(err, errProtocol) {
		p.Stop(err)
	}
	_, _ = p.In.WriteString("BYE\n")
	timer := p.StopAfter(w.Grace, errors.New("it did not exit"))
	status := p.End()
	timer.Stop()
	clear(d.buf[:])
	switch {
	case err == nil:
		return answer, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, errEnded) && status != nil:
		err = prompt.Unusable("%s: %w, %w", path, err, status)
	case errors.Is(err, errEnded), errors.Is(err, errProtocol):
		err = prompt.Unusable("%s: %w", path, err)
	}
	return prompt.Answer{}, err
}

// dialog is a dialog with a program that has been started.
type dialog struct {
	*conn
	prompt.Question
	terminal *tty.Client // nil: in a window
	middle   bool        // there is a third button
}

// The flavours of pinentry, as they are named by the programs themselves and by
// their files.
var (
	terminalFlavours = []string{"curses", "tty"}

	// middleFlavours show a third button and tell it from Cancel. With another
	// program, a no could be taken for what the third button means.
	middleFlavours = []string{"curses", "gtk2", "qt", "qt4", "qt5", "tty"}
)

// setUp greets the program and tells it what to show, and where.
func (d *dialog) setUp(timeout time.Duration) error {
	if _, err := d.answer(nil); err != nil {
		return judge(err)
	}
	flavour, err := d.flavour()
	if err != nil {
		return err
	}
	switch {
	case d.terminal == nil && slices.Contains(terminalFlavours, flavour):
		return prompt.Unusable("the pinentry finds no display") // and pinentry-tty would say cancelled
	case d.Kind == prompt.Consent && flavour == "fltk":
		return prompt.Unusable("pinentry-fltk takes the Escape key for a yes")
	}
	lines := append([]string{
		"OPTION no-grab", // several dialogs may be open
		fmt.Sprintf("SETTIMEOUT %d", (timeout+time.Second-1)/time.Second),
		"SETTITLE tpm-agent",
	}, d.place()...)
	for _, line := range append(lines, d.texts(flavour)...) {
		err := d.command(line)
		_, refused := errors.AsType[*failure](err)
		switch {
		case refused && strings.HasPrefix(line, "SETDESC"):
			return judge(err)
		case err != nil && !refused: // programs need not know everything
			return err
		case strings.HasPrefix(line, "SETNOTOK"):
			d.middle = err == nil
		}
	}
	return nil
}

// flavour returns which pinentry shows the dialog, "" for an old one that does
// not tell. "gtk2:curses" is one for desktops that does not find a display.
func (d *dialog) flavour() (string, error) {
	name, err := d.commandData("GETINFO flavor", make([]byte, 0, maxLine))
	if _, refused := errors.AsType[*failure](err); refused {
		return "", nil
	}
	return string(name[slices.Index(name, ':')+1:]), err
}

// place tells where the terminal is and how it encodes characters.
func (d *dialog) place() []string {
	if d.terminal == nil {
		return nil
	}
	term, ctype, messages := d.terminal.Locale()
	return []string{
		"OPTION ttyname=" + d.terminal.Path(),
		"OPTION ttytype=" + term,
		"OPTION lc-ctype=" + ctype,
		"OPTION lc-messages=" + messages,
	}
}

// texts tells what to show. An underscore makes the letter after it the key of a
// button.
func (d *dialog) texts(flavour string) (lines []string) {
	add := func(command, text string) { lines = append(lines, withText(command, d.shown(text, flavour))) }
	description := d.Text
	switch d.Kind {
	case prompt.PIN:
		add("SETPROMPT", "PIN:")
	case prompt.LastTry:
		// Return presses the first button. Therefore the yes has to be typed.
		description += "\n\nType yes to go on."
		add("SETPROMPT", "yes:")
		add("SETOK", "_Go on")
		add("SETCANCEL", "_Stop")
	case prompt.Consent:
		add("SETOK", "_Allow once")
		add("SETCANCEL", "_Deny")
		if slices.Contains(middleFlavours, flavour) {
			add("SETNOTOK", "15 _minutes")
		}
	}
	if d.Error != "" {
		add("SETERROR", d.Error)
	}
	add("SETDESC", description)
	return lines
}

// shown changes a text for programs that would not show it. pinentry-curses
// fails if the terminal lacks a character; FLTK draws symbols in place of what
// follows an at sign, unless that is doubled.
func (d *dialog) shown(text, flavour string) string {
	switch {
	case d.terminal == nil && flavour == "fltk":
		return strings.ReplaceAll(text, "@", "@@")
	case d.terminal != nil && !d.terminal.IsUTF8():
		return strings.NewReplacer("→", "->", "…", "...").Replace(text)
	}
	return text
}

// ask shows the dialog.
func (d *dialog) ask() (answer prompt.Answer, err error) {
	switch d.Kind {
	case prompt.Notice:
		return answer, judge(d.command("CONFIRM --one-button")) // old programs know no MESSAGE
	case prompt.Consent:
		err := d.command("CONFIRM")
		if f, failed := errors.AsType[*failure](err); failed && d.middle && f.reason == reasonNotConfirmed {
			return prompt.Answer{Grant: ask.GrantMinutes}, nil
		}
		return prompt.Answer{Grant: ask.GrantOnce}, judge(err)
	}
	room := make([]byte, prompt.MaxAnswer)
	line, err := d.commandData("GETPIN", room[:0])
	if err = judge(err); err == nil {
		line, err = prompt.Line(line)
	}
	if err != nil {
		clear(room)
		return answer, err
	}
	if d.Kind == prompt.LastTry {
		return prompt.Yes(line, nil)
	}
	return prompt.Answer{PIN: line}, nil
}

// The reasons of libgpg-error that come from the user.
const (
	reasonTimeout        = 62
	reasonCancelled      = 99
	reasonNotConfirmed   = 114
	reasonFullyCancelled = 198
)

// judge turns a program's error into the meaning of it. If the user cannot have
// caused it, the program cannot ask.
func judge(err error) error {
	f, failed := errors.AsType[*failure](err)
	if !failed {
		return err
	}
	switch f.reason {
	case reasonCancelled, reasonFullyCancelled, reasonNotConfirmed:
		return fmt.Errorf("%w: %w", ask.ErrRefused, f)
	case reasonTimeout:
		return fmt.Errorf("%w: %w", ask.ErrNoAnswer, f)
	}
	return prompt.Unusable("%w", f)
}
