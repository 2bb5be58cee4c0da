package logind

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// Names of the bus itself, and of logind (org.freedesktop.login1(5)).
const (
	busName = "org.freedesktop.DBus"
	busPath = dbus.ObjectPath("/org/freedesktop/DBus")

	loginName  = "org.freedesktop.login1"
	loginPath  = dbus.ObjectPath("/org/freedesktop/login1")
	manager    = loginName + ".Manager"
	session    = loginName + ".Session"
	properties = "org.freedesktop.DBus.Properties"
)

// rules are the signals that we want. For the sender's well-known name the bus
// passes on only what its owner sends. What somebody sends to us directly comes
// without any rule.
var rules = [...]string{
	"type='signal',sender='" + busName + "',interface='" + busName + "',member='NameOwnerChanged',arg0='" + loginName + "'",
	"type='signal',sender='" + loginName + "',interface='" + manager + "',member='PrepareForSleep',path='" + string(loginPath) + "'",
	"type='signal',sender='" + loginName + "',interface='" + session + "',member='Lock'",
	"type='signal',sender='" + loginName + "',interface='" + properties + "',member='PropertiesChanged',arg0='" + session + "'",
}

const (
	// mostPending is how many answers are outstanding at a time. A dbus-daemon
	// allows 128.
	mostPending = 16

	// mostWaiting is how many calls wait for that: a screen lock for every
	// session of a large machine, and some more. Who lets it come to that does
	// not answer any more.
	mostWaiting = 4096

	// mostLocked is how many locked sessions are kept in mind. It takes
	// sessions that end while they are locked to get there.
	mostLocked = 1024
)

// watcher is what lasts from one connection to the next.
type watcher struct {
	Options
	places []string // where the bus may be: unix sockets
	forget func(reason string)

	reached bool          // the bus was, at some time
	without bool          // it has been told that the bus has gone
	denied  bool          // it has been told that the machine does not wait for us
	looked  bool          // the sessions were looked at, at some time
	asleep  time.Duration // how long the machine had slept at most when logind was last watched

	// locked are the sessions, of any user, of which the last that was heard is
	// that LockedHint is true. That is told once.
	locked map[dbus.ObjectPath]bool
}

// link is one connection to the bus, and the logind on it.
type link struct {
	*watcher
	bus     *bus
	owner   string // the unique name of logind; "": there is none
	pending map[uint32]request
	waiting []request
	err     error // why the link is of no more use

	inhibitor *os.File // makes the machine wait for us before it sleeps
	sleeping  bool     // it has told that it is about to
}

// request is a call without an answer so far.
type request struct {
	*dbus.Message
	to     string
	method string
	done   func(*message)
}

// once watches over one connection, until that fails or ctx ends.
func (w *watcher) once(ctx context.Context) error {
	b, err := dial(ctx, w.places)
	if err != nil {
		return err
	}
	defer b.conn.Close()
	stop := context.AfterFunc(ctx, func() { b.conn.Close() })
	defer stop()
	if err := b.open(); err != nil {
		return err
	}
	l := &link{watcher: w, bus: b, pending: make(map[uint32]request)}
	defer l.setOwner("")
	w.back()
	l.begin()
	for l.err == nil {
		m, err := b.receive()
		if err != nil {
			return err
		}
		l.handle(m)
		m.close()
	}
	return l.err
}

// begin asks for the signals first and for logind then, so that no change is
// missed between.
func (l *link) begin() {
	for _, rule := range rules {
		l.call(busName, busPath, busName+".AddMatch", nil, rule)
	}
	l.call(busName, busPath, busName+".GetNameOwner", func(m *message) {
		owner, ok := first[string](m.Body)
		if !ok {
			l.Log.Info("there is no logind: nothing is forgotten when the machine sleeps or the screen is locked, until there is")
		}
		l.setOwner(owner)
	}, loginName)
}

// call calls a method, in its turn. done gets the answer; instead of an error it
// gets one with nothing in it.
func (l *link) call(to string, path dbus.ObjectPath, method string, done func(*message), args ...any) {
	if len(l.waiting) >= mostWaiting {
		l.err = errors.New("too many calls have no answer")
		return
	}
	l.waiting = append(l.waiting, request{call(to, path, method, args...), to, method, done})
	l.proceed()
}

// proceed makes the calls whose turn has come. Those to a logind that is not
// there any more are left out.
func (l *link) proceed() {
	for len(l.waiting) > 0 && len(l.pending) < mostPending && l.err == nil {
		r := l.waiting[0]
		l.waiting = l.waiting[1:]
		if r.to != busName && r.to != l.owner {
			continue
		}
		serial, err := l.bus.send(r.Message)
		if err != nil {
			l.err = err
			return
		}
		l.pending[serial] = r
	}
}

// get asks logind for a property.
func (l *link) get(path dbus.ObjectPath, iface, name string, done func(value any)) {
	l.call(l.owner, path, properties+".Get", func(m *message) {
		if v, ok := first[dbus.Variant](m.Body); ok {
			done(v.Value())
		}
	}, iface, name)
}

// handle does what a message asks for. Calls of our methods, of which there are
// none, get no answer.
func (l *link) handle(m *message) {
	switch m.Type {
	case dbus.TypeSignal:
		l.signal(m)
	case dbus.TypeMethodReply, dbus.TypeError:
		l.answer(m)
	}
}

// answer goes to the call that it belongs to. The bus answers for those who
// leave it.
func (l *link) answer(m *message) {
	r, ok := l.pending[m.answers()]
	sender := m.text(dbus.FieldSender)
	if !ok || sender != r.to && sender != busName {
		return
	}
	delete(l.pending, m.answers())
	if err := m.failure(); err != nil {
		l.refused(r.method, err)
		m = &message{Message: new(dbus.Message)}
	}
	if r.done != nil && (r.to == l.owner || r.to == busName) {
		r.done(m)
	}
	l.proceed()
}

// refused logs what has been refused, and goes on without it, if that can be.
func (l *link) refused(method string, err error) {
	switch {
	case method == manager+".Inhibit" && !l.denied:
		l.denied = true
		l.Log.Info("the machine will not wait before it sleeps: PINs may be forgotten only when it wakes up", "cause", err)
	case method == busName+".AddMatch":
		l.err = fmt.Errorf("asking the bus for signals: %w", err)
	default:
		l.Log.Debug("logind or the bus refuses", "method", method, "cause", err)
	}
}

// signal does what a signal asks for, if it comes from whom it should.
func (l *link) signal(m *message) {
	name := m.text(dbus.FieldInterface) + "." + m.text(dbus.FieldMember)
	switch sender := m.text(dbus.FieldSender); {
	case sender == busName:
		if about, ok := first[string](m.Body); ok && about == loginName && name == busName+".NameOwnerChanged" && len(m.Body) == 3 {
			owner, _ := m.Body[2].(string)
			l.setOwner(owner)
		}
	case sender == "" || sender != l.owner:
		// The bus has let it pass for another's.
	case name == manager+".PrepareForSleep":
		if begins, ok := first[bool](m.Body); ok {
			l.prepare(begins)
		}
	case name == session+".Lock":
		l.ifOurs(m.path(), l.screenLocked)
	case name == properties+".PropertiesChanged":
		l.changed(m)
	}
}

// setOwner takes notice of a logind that has come or gone.
func (l *link) setOwner(owner string) {
	if owner == l.owner {
		return
	}
	if l.owner != "" {
		l.asleep = sleptSoFar().most
		l.sleeping = false
		l.release()
	}
	l.owner, l.bus.trusted = owner, owner
	if owner != "" {
		l.Log.Debug("watching for sleep and locked screens", "logind", owner)
		l.inhibit()
		l.look()
	}
}

// first is the first value of a message.
func first[T any](body []any) (value T, ok bool) {
	if len(body) > 0 {
		value, ok = body[0].(T)
	}
	return value, ok
}
