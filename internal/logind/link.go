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

// rules select the signals that we want. Where a rule names a well-known sender,
// the bus passes on only signals of its owner. A signal that is sent to us directly
// needs no rule.
var rules = [...]string{
	"type='signal',sender='" + busName + "',interface='" + busName + "',member='NameOwnerChanged',arg0='" + loginName + "'",
	"type='signal',sender='" + loginName + "',interface='" + manager + "',member='PrepareForSleep',path='" + string(loginPath) + "'",
	"type='signal',sender='" + loginName + "',interface='" + session + "',member='Lock'",
	"type='signal',sender='" + loginName + "',interface='" + properties + "',member='PropertiesChanged',arg0='" + session + "'",
}

// link is one connection to the bus, and the logind on it.
//
// It makes one call at a time and handles signals while it waits for the answer.
// Handling a signal makes no such call: it notes what must be asked in fresh and
// locked, and settle asks.
type link struct {
	*watcher
	*bus
	err error // why the link is of no more use

	fresh  bool                         // a logind has come that was not looked at
	locked map[dbus.ObjectPath]struct{} // sessions, of any user, that were just locked

	inhibiting uint32   // the serial of a call of Inhibit that has no answer
	inhibitor  *os.File // makes the machine wait for us before it sleeps
}

// connect watches over one connection until that fails or ctx ends.
func (w *watcher) connect(ctx context.Context) error {
	b, err := dialBus(ctx, w.path)
	if err != nil {
		return err
	}
	defer b.close()
	defer context.AfterFunc(ctx, func() { b.conn.Close() })()
	l := newLink(w, b)
	defer l.setOwner("")
	l.begin()
	l.run()
	return l.err
}

func newLink(w *watcher, b *bus) *link {
	return &link{watcher: w, bus: b, locked: make(map[dbus.ObjectPath]struct{})}
}

// begin greets the bus, subscribes to the signals, and then looks for logind, so
// that no change in between is missed.
func (l *link) begin() {
	if _, err := l.call(busName, busPath, busName+".Hello"); err != nil {
		l.err = fmt.Errorf("greeting the bus: %w", err)
		return
	}
	for _, rule := range rules {
		if _, err := l.call(busName, busPath, busName+".AddMatch", rule); err != nil {
			l.err = fmt.Errorf("subscribing to signals of the bus: %w", err)
			return
		}
	}
	l.logBack()
	body, _ := l.call(busName, busPath, busName+".GetNameOwner", loginName)
	owner, ok := first[string](body)
	if !ok && l.err == nil {
		l.Log.Info("there is no logind: PINs are not forgotten when the machine sleeps or the screen is locked, until there is one")
	}
	l.setOwner(owner)
}

// run handles messages until the link is of no more use.
func (l *link) run() {
	for l.err == nil {
		l.settle()
		if m := l.receive(); m != nil {
			l.handle(m)
		}
	}
}

// settle asks logind what the signals since the last time left open.
func (l *link) settle() {
	for l.err == nil && (l.fresh || len(l.locked) > 0) {
		if l.fresh {
			l.fresh = false
			l.look()
		}
		for path := range l.locked {
			delete(l.locked, path)
			l.checkLocked(path)
		}
	}
}

// receive returns the next message, or nil when the link is of no more use.
func (l *link) receive() *dbus.Message {
	m, err := l.bus.receive()
	if err != nil {
		l.err = err
	}
	return m
}

// call calls a method and returns the values in the answer. An error is a refusal,
// unless it is also in l.err.
func (l *link) call(to string, path dbus.ObjectPath, method string, args ...any) ([]any, error) {
	serial, err := l.send(newCall(to, path, method, args...))
	if err != nil {
		l.err = err
		return nil, err
	}
	l.conn.SetReadDeadline(time.Now().Add(patience))
	defer l.conn.SetReadDeadline(time.Time{})
	for to == busName || to == l.owner {
		m := l.receive()
		if m == nil {
			return nil, l.err
		}
		// The bus answers for a logind that hangs up.
		if from := header[string](m, dbus.FieldSender); answered(m) != serial || from != to && from != busName {
			l.handle(m)
			continue
		}
		if err := failure(m); err != nil {
			l.Log.Debug("the bus or logind refuses", "method", method, "cause", err)
			return nil, err
		}
		return m.Body, nil
	}
	return nil, errors.New("logind has gone")
}

// get asks logind for a property. It returns nil if it gets none.
func (l *link) get(path dbus.ObjectPath, iface, name string) any {
	body, _ := l.call(l.owner, path, properties+".Get", iface, name)
	v, _ := first[dbus.Variant](body)
	return v.Value()
}

// handle handles a message that call does not wait for.
func (l *link) handle(m *dbus.Message) {
	switch from := header[string](m, dbus.FieldSender); {
	case l.inhibiting != 0 && answered(m) == l.inhibiting:
		l.inhibited(m)
	case m.Type != dbus.TypeSignal:
		// An answer that is too late, or a call of a method, of which we have none.
	case from == busName:
		l.ownerChanged(m)
	case from == l.owner:
		l.signal(m)
	}
}

// name returns the interface and the member of a signal.
func name(m *dbus.Message) string {
	return header[string](m, dbus.FieldInterface) + "." + header[string](m, dbus.FieldMember)
}

// ownerChanged handles a signal of the bus.
func (l *link) ownerChanged(m *dbus.Message) {
	if name(m) != busName+".NameOwnerChanged" || len(m.Body) != 3 || m.Body[0] != loginName {
		return
	}
	owner, _ := m.Body[2].(string)
	l.setOwner(owner)
}

// setOwner notes that logind has come or gone.
func (l *link) setOwner(owner string) {
	if owner == l.owner {
		return
	}
	if l.owner != "" {
		l.slept = slept()
		l.release()
		clear(l.locked)
	}
	l.owner, l.fresh = owner, owner != ""
	if l.fresh {
		l.Log.Debug("watching for sleep and locked screens", "logind", owner)
		l.inhibit()
	}
}
