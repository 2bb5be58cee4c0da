// Package pinentry asks the user through a pinentry, the program by which GnuPG
// asks for PINs: a dialog on the desktop, or a screen in the terminal. It is a
// client of the protocol that pinentry(1) describes, which is Assuan's, over the
// program's standard input and output.
//
// A dialog ends with its context. The program runs in a session of its own and
// is ended with all that it started.
package pinentry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The sentinel errors of a dialog that brought no answer.
var (
	// ErrCancelled is wrapped when somebody was asked and declined: a button, an
	// escape key, a window that was closed.
	ErrCancelled = errors.New("cancelled")
	// ErrTimeout is wrapped when nobody answered in Dialog.Timeout.
	ErrTimeout = errors.New("nobody answered in time")
	// ErrUnusable is wrapped when the program cannot ask here: it has no display
	// and no terminal, or it cannot be started, or it crashes. Another way to
	// ask may be tried.
	ErrUnusable = errors.New("cannot ask here")
	// ErrProtocol is wrapped when the program says what a pinentry does not say.
	ErrProtocol = errors.New("not the protocol of a pinentry")
)

// Dialog is what a pinentry shows, and where. Texts are UTF-8 and may have
// several lines; control characters in them are not passed on, and what does
// not fit in a line of the protocol, about 980 octets, is cut off with dots.
type Dialog struct {
	Title       string // of the window
	Description string // what is asked, and why
	Prompt      string // in front of the field for the PIN
	Error       string // what was wrong with the last PIN; most programs show it with GetPIN only

	// OK, NotOK and Cancel are the texts of the buttons, "" for "OK" and
	// "Cancel". An underscore makes the letter after it the button's key, two
	// stand for one. There is a button in the middle if NotOK has a text and
	// the program is known to tell it from Cancel. It is shown by Confirm only.
	OK, NotOK, Cancel string

	// KeyInfo tells dialogs of one key from those of another, for programs that
	// keep passwords: gpg-agent sends "s/" and a hexadecimal key grip for keys
	// of SSH. They are never told that they may keep one.
	KeyInfo string
	// Timeout is for how long the dialog is shown, in whole seconds that are
	// rounded up. 0: until somebody answers.
	Timeout time.Duration
	// Owner is the process that wants the PIN, which programs name in the title.
	// 0: none is named.
	Owner int
	// Terminal is where programs ask that find no display.
	Terminal Terminal
	// Display is the X display, "" for none; Environ may have more ways.
	Display string
	// Environ is the program's environment; nil: that of this process.
	Environ []string
	// Grace is for how long the program may take to end, and then, between
	// SIGTERM and SIGKILL; 0: two seconds.
	Grace time.Duration
}

// Terminal is a terminal as its user sees it.
type Terminal struct {
	Name       string // the device, such as /dev/pts/3; "": none
	Type       string // TERM
	LCCtype    string // LC_CTYPE, which says how the terminal's characters are encoded
	LCMessages string // LC_MESSAGES
}

// Button is the answer to Confirm.
type Button int

// The buttons other than Cancel, which is ErrCancelled.
const (
	ButtonOK Button = iota + 1
	ButtonNotOK
)

// GetPIN asks for a PIN and returns its octets: none for an empty answer, at
// most 1024, and no NUL. The caller wipes them.
func GetPIN(ctx context.Context, program string, d Dialog) ([]byte, error) {
	var pin []byte
	err := run(ctx, program, d, func(t *talk) (err error) {
		pin, err = t.getPIN()
		return err
	})
	if err != nil {
		clear(pin[:cap(pin)])
		return nil, err
	}
	return pin, nil
}

// Confirm asks which button is pressed.
func Confirm(ctx context.Context, program string, d Dialog) (Button, error) {
	var button Button
	err := run(ctx, program, d, func(t *talk) (err error) {
		button, err = t.confirm()
		return err
	})
	if err != nil {
		return 0, err
	}
	return button, nil
}

// Message shows something, with one button, until that is pressed.
func Message(ctx context.Context, program string, d Dialog) error {
	return run(ctx, program, d, (*talk).message)
}

// run starts the program, sets up the dialog, lets ask do the rest, and ends
// the program.
func run(ctx context.Context, program string, d Dialog, ask func(*talk) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.Grace == 0 {
		d.Grace = 2 * time.Second
	}
	p, err := start(ctx, program, d)
	if err == nil {
		err = p.end(p.dialog(d, ask))
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}
