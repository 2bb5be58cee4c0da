package tty

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// watchEvery is how often a question checks that its client is still in the
// foreground of the terminal.
const watchEvery = 100 * time.Millisecond

// errLeft is why a question ends on a terminal that its client has left.
var errLeft = fmt.Errorf("%w: %w", ask.ErrNoAnswer, ask.ErrLeft)

// Client is the terminal of a client, in front of which the user waits.
type Client struct {
	*terminal
	client peer.Process
}

// openClient opens the controlling terminal of the client. It is an error if the
// client has none, or is not in its foreground.
func openClient(q ask.Question) (*Client, error) {
	client, err := prompt.Client(q)
	switch {
	case err != nil:
		return nil, err
	case client.Terminal == 0:
		return nil, errors.New("the client has no terminal")
	case !inForeground(client):
		return nil, errors.New("the client is in the background of its terminal")
	}
	path, err := devicePath(client.Terminal)
	if err != nil {
		return nil, err
	}
	// A container has a /dev/pts of its own, with numbers of its own.
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", client.PID, path))
	if ours, ourErr := os.Stat(path); err != nil || ourErr != nil || !os.SameFile(ours, theirs) {
		return nil, errors.New("the client's terminal is not in this machine's /dev")
	}
	t, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := t.belongsTo(client); err != nil {
		t.close()
		return nil, err
	}
	return &Client{t, client}, nil
}

// inForeground reports whether what is typed on a process's terminal is for it.
func inForeground(p peer.Process) bool { return p.Terminal != 0 && p.Group == p.Foreground }

// devicePath returns the device file of a terminal, given its number as the
// kernel packs it: the minor number in the bits 31..20 and 7..0, the major number
// in 19..8.
func devicePath(device uint32) (string, error) {
	major, minor := device>>8&0xfff, device&0xff|device>>12&0xfff00
	if major == 136 { // a pseudo-terminal
		return fmt.Sprintf("/dev/pts/%d", minor), nil
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/char/%d:%d", major, minor))
	if err != nil {
		return "", fmt.Errorf("the terminal %d:%d has no device here", major, minor)
	}
	return filepath.Join("/dev", filepath.Base(link)), nil
}

// belongsTo checks that what was opened is the client's terminal and belongs to
// the user.
func (t *terminal) belongsTo(client peer.Process) error {
	var stat unix.Stat_t
	err := t.control(func(fd int) error { return unix.Fstat(fd, &stat) })
	switch {
	case err != nil:
		return err
	case t.device != client.Terminal:
		return fmt.Errorf("%s is not the client's terminal", t.path)
	case int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to another user", t.path)
	}
	return nil
}

// usable returns an error unless the client has its terminal for itself.
func (c *Client) usable() error {
	if err := c.present(); err != nil {
		return err
	}
	return c.free()
}

// present returns errLeft unless the client is still there, in the foreground.
func (c *Client) present() error {
	now, ok := peer.LookAt(c.client.PID)
	if !ok || now.Start != c.client.Start || now.Terminal != c.client.Terminal || !inForeground(now) {
		return errLeft
	}
	return nil
}

// watch returns a context that ends when the client leaves the foreground, for
// example by Ctrl-Z: what is typed then is for the shell.
func (c *Client) watch(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-tick.C:
				if err := c.present(); err != nil {
					cancel(err)
				}
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-over
	}
}

// Path returns the terminal's device.
func (c *Client) Path() string { return c.path }

// Locale returns the type of the terminal, and its locales, which tell how it
// encodes characters. They are in the client's environment, and "" if not.
func (c *Client) Locale() (term, ctype, messages string) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.client.PID))
	environ := strings.Split(string(data), "\x00")
	// first returns the first value. It must be a name and not a path, since
	// programs make names of files from it.
	first := func(names ...string) string {
		for _, name := range names {
			if value := prompt.Lookup(environ, name); value != "" && !strings.ContainsFunc(value, notInNames) {
				return value
			}
		}
		return ""
	}
	return first("TERM"), first("LC_ALL", "LC_CTYPE", "LANG"), first("LC_ALL", "LC_MESSAGES", "LANG")
}

// IsUTF8 reports whether the client's locale encodes characters in UTF-8.
func (c *Client) IsUTF8() bool {
	_, ctype, _ := c.Locale()
	ctype = strings.ToUpper(ctype)
	return strings.HasSuffix(ctype, "UTF-8") || strings.HasSuffix(ctype, "UTF8")
}

func notInNames(r rune) bool {
	return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-+._@", r)
}

// leaveScreen ends what a program that draws on the whole screen has switched
// on: a second screen, other key codes, colours, an invisible cursor. Terminals
// ignore what they do not know.
const leaveScreen = "\x1b[?1049l\x1b[?1l\x1b>\x1b[m\x1b[?25h"

// Tidying returns a function that puts the terminal in order after a program that
// asked there and was killed.
func (c *Client) Tidying(ctx context.Context) func() {
	before, err := c.state()
	if err != nil {
		return func() {}
	}
	return func() {
		now, err := c.state()
		switch {
		case err != nil || *now == *before:
		case onlySilent(*now, *before):
			_ = c.set(before)
		case ctx.Err() == nil && c.present() == nil: // or a shell may have the terminal again
			_ = c.set(before)
			if now.Oflag != before.Oflag { // a change that only drawing needs
				c.write(leaveScreen)
			}
		}
	}
}

// onlySilent reports whether the terminal is as pinentry-tty sets it up: without
// echo, perhaps reading single keys, and otherwise as before. No shell does that.
func onlySilent(now, before unix.Termios) bool {
	const silenced = unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL | unix.ICANON | unix.ISIG
	if now.Lflag&unix.ECHO != 0 {
		return false
	}
	now.Lflag = now.Lflag&^silenced | before.Lflag&silenced
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = before.Cc[unix.VMIN], before.Cc[unix.VTIME]
	return now == before
}
