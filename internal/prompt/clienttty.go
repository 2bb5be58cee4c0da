package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/pinentry"
)

// watchEvery is how soon it is seen that a client has left the foreground of
// the terminal on which somebody is asked for it.
const watchEvery = 100 * time.Millisecond

// errTaken is why a question ends on a terminal that its client has left.
var errTaken = fmt.Errorf("%w: %w", agent.ErrNoAnswer, agent.ErrLeft)

// clientTTY is the terminal of a client, on which somebody sits and waits for
// it.
type clientTTY struct {
	*tty
	client process
}

// openClientTTY finds the controlling terminal of the client that asks, and
// opens it. It is an error if the client has none, or is not in the foreground.
func openClientTTY(q agent.Question) (*clientTTY, error) {
	if err := ownClient(q); err != nil {
		return nil, err
	}
	client, err := readProcess(q.Peer.PID)
	switch {
	case err != nil:
		return nil, errors.New("the client has gone")
	case client.Terminal == 0:
		return nil, errors.New("the client has no terminal")
	case !client.inForeground():
		return nil, errors.New("the client is in the background of its terminal")
	}
	path, err := devicePath(client.terminal())
	if err != nil {
		return nil, err
	}
	if err := sameDevice(client, path); err != nil {
		return nil, err
	}
	t, err := openTTY(path)
	if err != nil {
		return nil, err
	}
	if err := t.owned(client.terminal()); err != nil {
		t.close()
		return nil, err
	}
	return &clientTTY{t, client}, nil
}

// devicePath is where a terminal's device is.
func devicePath(device uint64) (string, error) {
	major, minor := unix.Major(device), unix.Minor(device)
	if major == 136 { // UNIX98 pseudo-terminals
		return fmt.Sprintf("/dev/pts/%d", minor), nil
	}
	uevent, err := os.ReadFile(fmt.Sprintf("/sys/dev/char/%d:%d/uevent", major, minor))
	if err != nil {
		return "", fmt.Errorf("the terminal %d:%d is not known here", major, minor)
	}
	for line := range strings.Lines(string(uevent)) {
		name, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME=")
		if found && !strings.Contains(name, "..") {
			return "/dev/" + name, nil
		}
	}
	return "", fmt.Errorf("the terminal %d:%d has no device", major, minor)
}

// sameDevice checks that what a path names here is what it names for the
// client: a container has a /dev/pts of its own, which numbers terminals anew.
func sameDevice(client process, path string) error {
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", client.PID, path))
	switch {
	case errors.Is(err, os.ErrPermission):
		return errors.New("the client may not be looked at")
	case err != nil:
		return errors.New("the client's terminal is not on this machine's /dev")
	}
	if ours, err := os.Stat(path); err != nil || !os.SameFile(ours, theirs) {
		return errors.New("the client's terminal is not on this machine's /dev")
	}
	return nil
}

// owned checks that what was opened is a device of this number that belongs to
// the user.
func (t *tty) owned(device uint64) error {
	info, err := t.file.Stat()
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || info.Mode().Type() != os.ModeDevice|os.ModeCharDevice || stat.Rdev != device:
		return fmt.Errorf("%s is not the client's terminal", t.path)
	case int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to another user", t.path)
	}
	return nil
}

// described is the terminal as a pinentry wants to know it: of which type it is,
// and how it encodes characters, is in the client's environment.
func (t *clientTTY) described() pinentry.Terminal {
	environ, _ := clientEnviron(t.client.PID)
	term := lookup(environ, "TERM")
	if !wordOnly(term) {
		term = ""
	}
	return pinentry.Terminal{
		Name:       t.path,
		Type:       term,
		LCCtype:    locale(environ, "LC_CTYPE"),
		LCMessages: locale(environ, "LC_MESSAGES"),
	}
}

// locale is what setlocale(3) takes a category's locale from.
func locale(environ []string, category string) string {
	for _, name := range []string{"LC_ALL", category, "LANG"} {
		if value := lookup(environ, name); value != "" && wordOnly(value) {
			return value
		}
	}
	return ""
}

// wordOnly says whether a value is a name, and no path: it ends up in those of
// files that a program reads.
func wordOnly(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-+._@", r)
	})
}

// ready says whether the client still has its terminal for itself.
func (t *clientTTY) ready() error {
	if err := t.present(); err != nil {
		return err
	}
	return t.free()
}

// present says whether the client is still there, in the foreground.
func (t *clientTTY) present() error {
	now, err := readProcess(t.client.PID)
	if err != nil || now.Start != t.client.Start || now.Terminal != t.client.Terminal || !now.inForeground() {
		return errTaken
	}
	return nil
}

// watch returns a context that ends when the client leaves the foreground, as
// by Ctrl-Z: what is typed then is for the shell.
func (t *clientTTY) watch(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := t.present(); err != nil {
					cancel(err)
					return
				}
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-over
	}
}

// leaveScreen ends what a program has switched on that draws on the whole screen:
// a screen of its own, keys that send other things, colours, no cursor. Terminals
// do not show what they do not know of it.
const leaveScreen = "\x1b[?1049l\x1b[?1l\x1b>\x1b[m\x1b[?25h"

// tidying returns what puts the terminal in order behind a program that has asked
// there and could not do that itself, because it was killed. It does nothing when
// nobody waits for the answer (ctx) or the client is not there any more, for then
// somebody else may have set up the terminal.
func (t *clientTTY) tidying(ctx context.Context) func() {
	before, err := t.state()
	if err != nil {
		return func() {}
	}
	return func() {
		now, err := t.state()
		if err != nil || *now == *before || ctx.Err() != nil || t.present() != nil {
			return
		}
		_ = t.set(before)
		if now.Oflag != before.Oflag { // which it is for drawing only
			t.write(leaveScreen)
		}
	}
}
