// Package logind watches systemd-logind (or elogind) for the moments at which
// secrets are to be forgotten: the machine is about to sleep, or the user's
// screen gets locked.
//
// Of the user, all sessions count, whatever their kind, and whenever they
// start: who runs as a service of the user manager is in none of them, and what
// one session has been trusted with is used from the others.
//
// It is all done by one goroutine that waits for the bus and polls nothing.
package logind

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"
)

// Options say what to watch.
type Options struct {
	// Address is the bus's, in the form of DBUS_SYSTEM_BUS_ADDRESS. Empty, it
	// is the place where every system has it. Only unix sockets are dialled.
	Address string

	// UID is the user whose sessions are watched.
	UID int

	// Log gets what hinders the watch. What is forgotten, the caller tells.
	Log *slog.Logger
}

// The waits between attempts to get back to a bus that went away.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = 2 * time.Minute
)

// Watch calls forget, with a reason that a user understands, when the machine
// is about to sleep and when a session of the user is locked; one call at a
// time. The machine waits for the call to return before it sleeps, as long as
// logind lets it (InhibitDelayMaxSec=, commonly 5 s), if the user may ask for
// that.
//
// A bus or a logind that goes away is waited for. What happened meanwhile (a
// sleep, a screen that is now locked) makes for a call when it is back. Watch
// returns nil when ctx ends, and where there is no system bus or none that may
// be used: it logs that. An error is an address that cannot be understood.
func Watch(ctx context.Context, o Options, forget func(reason string)) error {
	places, err := parseAddress(o.Address)
	if err != nil {
		return err
	}
	w := &watcher{Options: o, places: places, forget: forget, asleep: sleptSoFar().most}
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		begun := time.Now()
		err := w.once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case !w.reached && out(err):
			o.Log.Info("no system bus can be used: PINs are not forgotten when the machine sleeps or the screen is locked", "cause", err)
			return nil
		case time.Since(begun) > longestWait:
			wait = firstWait
		}
		w.lost(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// out reports whether err says that there is no bus, or none for us, rather
// than one that has gone for a while.
func out(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}

// lost logs that the bus has gone, once.
func (w *watcher) lost(err error) {
	level := slog.LevelInfo
	if w.without {
		level = slog.LevelDebug
	}
	w.without = true
	w.Log.Log(context.Background(), level, "the system bus cannot be used: nothing is forgotten when the machine sleeps or the screen is locked, until it is back", "cause", err)
}

// back logs that the bus is there again.
func (w *watcher) back() {
	if w.without {
		w.Log.Info("the system bus is back")
	}
	w.reached, w.without = true, false
}
