package pinentry

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The reasons in libgpg-error's codes that mean more than "it did not work".
const (
	reasonTimeout        = 62
	reasonCancelled      = 99
	reasonNotConfirmed   = 114
	reasonFullyCancelled = 198
)

// talk is the dialogue with a pinentry that has greeted us.
type talk struct {
	*conn
	d        Dialog
	flavour  string // "gnome3", "curses", "gtk2:curses"; "" if it does not say
	terminal error  // why there is no terminal
	display  bool   // there is an X display, perhaps
	middle   bool   // there is a button for NotOK
}

// setUp sends what the dialog shows, and where. Programs need not know all of
// it: what they refuse they do without, as with gpg-agent, but nobody is asked
// without being told what.
func (t *talk) setUp() error {
	if err := t.askFlavour(); err != nil {
		return err
	}
	if err := t.canAsk(); err != nil {
		return err
	}
	for _, line := range slices.Concat(t.options(), t.texts()) {
		err := t.command(line)
		f, refused := errors.AsType[*failure](err)
		switch {
		case refused && strings.HasPrefix(line, "SETDESC"):
			return fmt.Errorf("%w: %w", ErrUnusable, f)
		case err != nil && !refused:
			return err
		}
	}
	return nil
}

// askFlavour asks which pinentry this is. Old ones do not know.
func (t *talk) askFlavour() error {
	if err := t.send("GETINFO flavor"); err != nil {
		return err
	}
	name, err := t.answer(make([]byte, 0, maxLine))
	if _, refused := errors.AsType[*failure](err); err != nil && !refused {
		return err
	}
	t.flavour = string(name)
	return nil
}

// canAsk refuses what would look like a cancel: pinentry-tty answers so when it
// has no terminal.
func (t *talk) canAsk() error {
	if t.shownBy() == "tty" && t.terminal != nil {
		return fmt.Errorf("%w: %w", ErrUnusable, t.terminal)
	}
	return nil
}

// tellsNotOK says whether the program shows a button for NotOK and answers it
// with another error than its Cancel button and its window's close button.
// With a program that does not, a no could be taken for what NotOK means.
func (t *talk) tellsNotOK() bool {
	return slices.Contains([]string{"curses", "gtk2", "qt", "qt4", "qt5", "tty"}, t.shownBy())
}

// takesEscapeForOK says whether the program takes the escape key, or closing
// its window, for a yes. pinentry-fltk does, to 1.3.2 at least.
func (t *talk) takesEscapeForOK() bool { return t.shownBy() == "fltk" }

// shown escapes a text for the program. FLTK draws symbols for what follows an
// at sign, or nothing, and drops the rest of the text: two stand for one.
func (t *talk) shown(text string) string {
	if t.shownBy() == "fltk" {
		text = strings.ReplaceAll(text, "@", "@@")
	}
	return escape(text)
}

// onTerminal says whether the program asks on the terminal.
func (t *talk) onTerminal() bool {
	return t.shownBy() == "curses" || t.shownBy() == "tty"
}

// shownBy is the flavour that shows the dialog: a program for desktops says
// "gtk2:curses" where it has no display, but for pinentry-fltk.
func (t *talk) shownBy() string {
	if t.flavour == "fltk" && !t.display {
		return "curses"
	}
	return t.flavour[strings.LastIndexByte(t.flavour, ':')+1:]
}

// options says where to ask, in OPTION lines. The keyboard is not grabbed, so
// that two dialogs can be open at once; this is gpg-agent's default, too.
func (t *talk) options() []string {
	lines := []string{"OPTION no-grab"}
	add := func(name, value string) {
		if value != "" {
			lines = append(lines, "OPTION "+name+"="+oneLine(value))
		}
	}
	if t.terminal == nil {
		add("ttyname", t.d.Terminal.Name)
		add("ttytype", t.d.Terminal.Type)
	}
	add("lc-ctype", t.d.Terminal.LCCtype)
	add("lc-messages", t.d.Terminal.LCMessages)
	if t.d.Owner != 0 {
		host, _ := os.Hostname()
		add("owner", fmt.Sprintf("%d/%d %s", t.d.Owner, os.Getuid(), host))
	}
	// Without them pinentry-tty has no key for Cancel.
	add("default-ok", "_OK")
	add("default-cancel", "_Cancel")
	return lines
}

// texts says what to show.
func (t *talk) texts() []string {
	lines := []string{"SETKEYINFO --clear"}
	if t.d.KeyInfo != "" {
		lines[0] = "SETKEYINFO " + oneLine(t.d.KeyInfo)
	}
	if seconds := wholeSeconds(t.d.Timeout); seconds > 0 {
		lines = append(lines, "SETTIMEOUT "+strconv.Itoa(seconds))
	}
	if t.d.Title != "" {
		lines = append(lines, "SETTITLE "+escape(t.d.Title))
	}
	for _, text := range []struct{ command, value string }{
		{"SETDESC", t.d.Description},
		{"SETPROMPT", t.d.Prompt},
		{"SETERROR", t.d.Error},
		{"SETOK", t.d.OK},
		{"SETCANCEL", t.d.Cancel},
	} {
		if text.value != "" {
			lines = append(lines, text.command+" "+t.shown(text.value))
		}
	}
	return lines
}

func wholeSeconds(d time.Duration) int {
	return int((d + time.Second - 1) / time.Second)
}

// oneLine keeps the value of an option in its line. Options are not decoded by
// the program, so that there is no way to escape anything.
func oneLine(value string) string {
	return strings.ReplaceAll(escape(value), "%25", "%")
}

func (t *talk) getPIN() ([]byte, error) {
	t.secret = true
	if err := t.send("GETPIN"); err != nil {
		return nil, err
	}
	pin, err := t.answer(make([]byte, 0, maxPIN))
	if errors.Is(err, errTooMuch) {
		err = fmt.Errorf("%w: a PIN longer than %d octets", ErrProtocol, maxPIN)
	}
	return pin, judge(err)
}

func (t *talk) confirm() (Button, error) {
	if t.takesEscapeForOK() {
		return 0, fmt.Errorf("%w: this pinentry takes the escape key for a yes", ErrUnusable)
	}
	if t.d.NotOK != "" && t.tellsNotOK() {
		err := t.command("SETNOTOK", t.shown(t.d.NotOK))
		if _, refused := errors.AsType[*failure](err); err != nil && !refused {
			return 0, err
		}
		t.middle = err == nil
	}
	err := t.command("CONFIRM")
	if f, ok := errors.AsType[*failure](err); ok && t.middle && f.reason() == reasonNotConfirmed {
		return ButtonNotOK, nil
	}
	return ButtonOK, judge(err)
}

// message uses the form that the oldest programs know, too.
func (t *talk) message() error {
	return judge(t.command("CONFIRM --one-button"))
}

// judge says what the program's answer to the question means. An error for
// which no person can be the cause comes from a program that cannot ask.
func judge(err error) error {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		return err
	}
	switch f.reason() {
	case reasonCancelled, reasonFullyCancelled, reasonNotConfirmed:
		return ErrCancelled
	case reasonTimeout:
		return ErrTimeout
	}
	return fmt.Errorf("%w: %w", ErrUnusable, f)
}
