package logind

import (
	"os"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// signal handles a signal of logind.
func (l *link) signal(m *dbus.Message) {
	path := header[dbus.ObjectPath](m, dbus.FieldPath)
	switch name(m) {
	case manager + ".PrepareForSleep":
		if begins, ok := first[bool](m.Body); ok {
			l.prepare(begins)
		}
	case session + ".Lock":
		l.locked[path] = struct{}{}
	case properties + ".PropertiesChanged":
		if len(m.Body) != 3 || m.Body[0] != session {
			return
		}
		values, _ := m.Body[1].(map[string]dbus.Variant)
		if values["LockedHint"].Value() == true {
			l.locked[path] = struct{}{}
		}
	}
}

// prepare calls forget before the machine sleeps, then lets it sleep. When the
// machine is awake again, it makes the next sleep wait again.
func (l *link) prepare(begins bool) {
	if !begins {
		l.inhibit()
		return
	}
	l.forget("the machine is about to sleep")
	l.release()
}

// inhibit asks logind to make the machine wait for us before it sleeps.
// `systemd-inhibit --list` shows the text. The answer is not waited for, because
// logind may have to ask polkit first. If the call cannot be sent, the connection
// is broken, and the next read fails.
func (l *link) inhibit() {
	if l.inhibitor != nil {
		return
	}
	l.inhibiting, _ = l.send(newCall(l.owner, loginPath, manager+".Inhibit",
		"sleep", "tpm-agent", "PINs are forgotten before the computer sleeps", "delay"))
}

// inhibited takes the inhibitor from the answer to Inhibit.
func (l *link) inhibited(m *dbus.Message) {
	l.inhibiting = 0
	if err := failure(m); err != nil {
		if !l.denied {
			l.Log.Info("the machine will not wait before it sleeps: PINs may be forgotten only when it wakes up", "cause", err)
		}
		l.denied = true
		return
	}
	if fd := l.take(); fd >= 0 {
		l.inhibitor = os.NewFile(uintptr(fd), "inhibitor")
	}
}

// release lets the machine sleep. An inhibitor that is still to come will be too
// late, and is not taken.
func (l *link) release() {
	l.inhibiting = 0
	if l.inhibitor != nil {
		l.inhibitor.Close()
		l.inhibitor = nil
	}
}

// look looks for what was missed while the bus or logind was away. The first time
// a locked screen does not count: a PIN that was given while it was locked was
// given from elsewhere.
func (l *link) look() {
	if slept() > l.slept+time.Second {
		l.forget("the machine has slept")
	}
	if l.get(loginPath, manager, "PreparingForSleep") == true {
		l.prepare(true)
	}
	again := l.looked
	l.looked = true
	if again && l.screenLocked() {
		l.forget(screenReason)
	}
}

const screenReason = "the screen was locked"

// screenLocked reports whether the screen of one of the user's login sessions is
// locked.
func (l *link) screenLocked() bool {
	body, _ := l.call(l.owner, loginPath, manager+".ListSessions")
	sessions, _ := first[[][]any](body)
	for _, s := range sessions { // id, uid, user name, seat, path
		if len(s) != 5 || s[1] != uint32(l.UID) {
			continue
		}
		path, ok := s[4].(dbus.ObjectPath)
		if ok && l.get(path, session, "LockedHint") == true {
			return true
		}
	}
	return false
}

// checkLocked calls forget if a session that was locked is one of the user's.
func (l *link) checkLocked(path dbus.ObjectPath) {
	user, _ := l.get(path, session, "User").([]any)
	if uid, ok := first[uint32](user); ok && uid == uint32(l.UID) {
		l.forget(screenReason)
	}
}

// slept returns how long the machine has slept since it was started: one of the
// kernel's clocks stops meanwhile. It is exact only to the time between two system
// calls.
func slept() time.Duration { return now(unix.CLOCK_BOOTTIME) - now(unix.CLOCK_MONOTONIC) }

func now(clock int32) time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(clock, &t) // every Linux that Go supports has both
	return time.Duration(t.Nano())
}
