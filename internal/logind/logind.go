// Package logind watches systemd-logind (or elogind) for the moments at which
// secrets must be forgotten: the machine is about to sleep, or the user's screen
// is locked.
//
// All of the user's login sessions count, whatever their kind and whenever they
// start. A service of the user manager belongs to none of them, and a PIN that was
// given in one is used from the others.
//
// One goroutine does all of this. It waits for the bus and never polls.
package logind

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"
)

// Options are the arguments of Watch.
type Options struct {
	// Address is the address of the system bus, in the form of
	// DBUS_SYSTEM_BUS_ADDRESS. If it is empty, Watch uses the standard one. Only
	// unix sockets are supported; of several the first is used.
	Address string

	// UID is the user whose login sessions are watched.
	UID int

	// Log receives what hinders the watch. The caller logs what is forgotten.
	Log *slog.Logger
}

// The shortest and the longest wait before the next attempt to reach the bus.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = 2 * time.Minute
)

// Watch calls forget, with a reason to show to the user, when the machine is
// about to sleep and when one of the user's login sessions is locked. It makes
// one call at a time. If logind permits, the machine does not sleep before the
// call returns or logind's InhibitDelayMaxSec= (usually 5 s) is over.
//
// If the bus or logind goes away, Watch waits for it. When it is back, Watch calls
// forget if the machine has slept since, or if the screen is locked. Watch returns
// nil when ctx ends, and when there is no system bus or none that it may use,
// which it logs. It returns an error only for a bad address.
func Watch(ctx context.Context, o Options, forget func(reason string)) error {
	path, err := socketPath(o.Address)
	if err != nil {
		return err
	}
	w := &watcher{Options: o, path: path, forget: forget, slept: slept()}
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		begun := time.Now()
		err := w.connect(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case !w.reached && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
			o.Log.Info("no system bus can be used: PINs are not forgotten when the machine sleeps or the screen is locked", "cause", err)
			return nil
		case time.Since(begun) > longestWait:
			wait = firstWait
		}
		w.logLost(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// watcher is the state that outlasts a connection.
type watcher struct {
	Options
	path   string // the bus's socket
	forget func(reason string)

	reached bool          // the bus could be used at least once
	lost    bool          // the loss of the bus has been logged
	denied  bool          // a refused inhibitor has been logged
	looked  bool          // logind has been watched at least once
	slept   time.Duration // how long the machine had slept when logind was last watched
}

// logLost logs the loss of the bus, at level Info once.
func (w *watcher) logLost(err error) {
	level := slog.LevelInfo
	if w.lost {
		level = slog.LevelDebug
	}
	w.lost = true
	w.Log.Log(context.Background(), level, "the system bus cannot be used: PINs are not forgotten when the machine sleeps or the screen is locked, until it is back", "cause", err)
}

// logBack logs the return of the bus.
func (w *watcher) logBack() {
	if w.lost {
		w.Log.Info("the system bus is back")
	}
	w.reached, w.lost = true, false
}
