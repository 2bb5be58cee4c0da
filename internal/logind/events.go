package logind

import (
	"os"

	"github.com/godbus/dbus/v5"
)

// inhibit makes the machine wait for us before it sleeps. `systemd-inhibit
// --list` shows users the words.
func (l *link) inhibit() {
	l.call(l.owner, loginPath, manager+".Inhibit", func(m *message) {
		fd := m.take()
		if fd < 0 {
			return
		}
		lock := os.NewFile(uintptr(fd), "inhibitor")
		if l.sleeping || l.inhibitor != nil {
			lock.Close() // it comes too late
			return
		}
		l.inhibitor = lock
	}, "sleep", "tpm-agent", "PINs are forgotten before the computer sleeps", "delay")
}

// release lets the machine sleep.
func (l *link) release() {
	if l.inhibitor != nil {
		l.inhibitor.Close()
		l.inhibitor = nil
	}
}

// prepare forgets before the machine sleeps, and then lets it; when it is awake
// again, the next sleep is to wait again.
func (l *link) prepare(begins bool) {
	l.sleeping = begins
	if !begins {
		l.inhibit()
		return
	}
	l.forget("the machine is about to sleep")
	l.release()
}

// look finds out what has happened while nobody watched. At the first time
// there was nothing to be forgotten before: who has given a PIN although the
// screen is locked, has done so knowing it.
func (l *link) look() {
	if sleptSoFar().least > l.asleep {
		l.forget("the machine has slept")
	}
	l.get(loginPath, manager, "PreparingForSleep", func(value any) {
		if value == true && !l.sleeping {
			l.prepare(true)
		}
	})
	again, before := l.looked, l.locked
	l.looked, l.locked = true, make(map[dbus.ObjectPath]bool)
	l.call(l.owner, loginPath, manager+".ListSessions", func(m *message) {
		sessions, _ := first[[][]any](m.Body)
		for _, path := range l.ours(sessions) {
			l.get(path, session, "LockedHint", func(value any) {
				if value == true && !l.locked[path] {
					l.locked[path] = true
					if again && !before[path] {
						l.screenLocked()
					}
				}
			})
		}
	})
}

// ours are the paths of the user's sessions in a list: id, uid, name of the
// user, seat, path.
func (l *link) ours(sessions [][]any) (paths []dbus.ObjectPath) {
	for _, s := range sessions {
		if len(s) != 5 {
			continue
		}
		uid, isUID := s[1].(uint32)
		path, isPath := s[4].(dbus.ObjectPath)
		if isUID && isPath && uid == uint32(l.UID) {
			paths = append(paths, path)
		}
	}
	return paths
}

// changed is for a session with other properties than before. A screen that
// stays locked counts once.
func (l *link) changed(m *message) {
	if len(m.Body) != 3 || m.Body[0] != session {
		return
	}
	values, _ := m.Body[1].(map[string]dbus.Variant)
	switch path := m.path(); values["LockedHint"].Value() {
	case false:
		delete(l.locked, path)
	case true:
		if l.locked[path] {
			return
		}
		if len(l.locked) >= mostLocked {
			clear(l.locked)
		}
		l.locked[path] = true
		l.ifOurs(path, l.screenLocked)
	}
}

func (l *link) screenLocked() { l.forget("the screen was locked") }

// ifOurs calls f if the session is one of the user's.
func (l *link) ifOurs(path dbus.ObjectPath, f func()) {
	l.get(path, session, "User", func(value any) {
		user, _ := value.([]any)
		if uid, ok := first[uint32](user); ok && uid == uint32(l.UID) {
			f()
		}
	})
}
