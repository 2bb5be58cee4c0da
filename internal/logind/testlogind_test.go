package logind

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tpm-agent/tpm-agent/internal/test/bustest"
)

// script is a logind that does what a test wants it to, where the mock is too
// well behaved.
type script struct {
	t    *testing.T
	conn *dbus.Conn

	mu       sync.Mutex
	values   map[dbus.ObjectPath]map[string]any // properties
	inhibit  func() (any, *dbus.Error)
	called   chan string
	sessions any // what ListSessions returns
}

type userEntry struct {
	UID  uint32
	Path dbus.ObjectPath
}

type sessionEntry struct {
	ID   string
	UID  uint32
	User string
	Seat string
	Path dbus.ObjectPath
}

// startScript takes logind's name, with one session of the user's.
func startScript(t *testing.T, b *bustest.Bus, prepare func(*script)) *script {
	t.Helper()
	path := loginPath + "/session/_31"
	s := &script{
		t: t, conn: b.Client(), called: make(chan string, 256),
		values: map[dbus.ObjectPath]map[string]any{
			loginPath: {"PreparingForSleep": false},
			path:      {"LockedHint": false, "User": userEntry{ownUID, "/"}},
		},
		inhibit:  func() (any, *dbus.Error) { return nil, dbus.MakeFailedError(errors.New("not today")) },
		sessions: []sessionEntry{{"1", ownUID, "me", "seat0", path}},
	}
	if prepare != nil {
		prepare(s)
	}
	s.export(loginPath, manager, map[string]any{
		"Inhibit":      func(_, _, _, _ string) (any, *dbus.Error) { return s.answer("Inhibit", s.inhibit) },
		"ListSessions": func() (any, *dbus.Error) { return s.sessions, s.told("ListSessions") },
	})
	for path := range s.values {
		s.export(path, properties, map[string]any{"Get": func(_, name string) (dbus.Variant, *dbus.Error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return dbus.MakeVariant(s.values[path][name]), s.told("Get " + name)
		}})
	}
	if _, err := s.conn.RequestName(loginName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *script) export(path dbus.ObjectPath, iface string, methods map[string]any) {
	if err := s.conn.ExportMethodTable(methods, path, iface); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) told(call string) *dbus.Error {
	s.called <- call
	return nil
}

func (s *script) answer(call string, f func() (any, *dbus.Error)) (any, *dbus.Error) {
	s.called <- call
	return f()
}

// asked waits for a call.
func (s *script) asked(call string) {
	s.t.Helper()
	for {
		select {
		case got := <-s.called:
			if got == call {
				return
			}
		case <-time.After(longEnough):
			s.t.Fatalf("nobody calls %s", call)
		}
	}
}

func (s *script) emit(path dbus.ObjectPath, name string, args ...any) {
	s.t.Helper()
	if err := s.conn.Emit(path, name, args...); err != nil {
		s.t.Fatal(err)
	}
}

// settled returns when w has had the answers to all that it has asked so far:
// these come in their order, but for one that is made to wait.
func (s *script) settled(w *watched) {
	s.t.Helper()
	for range 3 {
		s.emit(loginPath+"/session/_31", session+".Lock")
		w.forgets(lockReason)
	}
}

// lockPipe returns a descriptor that an inhibitor can be, and a function that
// waits until nobody has it any more.
func lockPipe(t *testing.T) (lock dbus.UnixFD, released func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return dbus.UnixFD(w.Fd()), func() {
		t.Helper()
		w.Close() // our own
		if err := r.SetReadDeadline(time.Now().Add(longEnough)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the inhibitor is not let go")
		}
	}
}

// TestMissed: what happened while logind was away counts when it is back.
func TestMissed(t *testing.T) {
	b := bustest.Start(t)
	locked := func(s *script) { s.values[loginPath+"/session/_31"]["LockedHint"] = true }
	w := watch(t, b.Address)
	for i, step := range []struct {
		prepare func(*script)
		want    string
	}{
		{locked, ""}, // as it was before anybody watched
		{nil, ""},
		{locked, lockReason},
		{locked, ""}, // it still is
		{func(s *script) { s.values[loginPath]["PreparingForSleep"] = true }, sleepReason},
	} {
		s := startScript(t, b, step.prepare)
		s.asked("Get LockedHint")
		if step.want != "" {
			w.forgets(step.want)
		}
		s.settled(w)
		s.conn.Close()
		if len(w.reasons) > 0 {
			t.Fatalf("step %d: %q", i, <-w.reasons)
		}
	}
}

// TestSlept: the machine has slept while nobody watched.
func TestSlept(t *testing.T) {
	b := bustest.Start(t)
	reasons := make(chan string, 4)
	w := &watcher{Options: Options{Log: quiet(), UID: ownUID}, places: []string{b.Socket()}, forget: func(reason string) { reasons <- reason }}
	w.asleep = sleptSoFar().least - time.Second
	done := make(chan error, 1)
	go func() { done <- w.once(t.Context()) }()
	for _, wants := range [][]string{{"the machine has slept", sleepReason}, {sleepReason}} {
		s := startScript(t, b, nil)
		s.asked("Get LockedHint")
		s.emit(loginPath, manager+".PrepareForSleep", true)
		for _, want := range wants {
			select {
			case got := <-reasons:
				if got != want {
					t.Errorf("forget(%q), want %q", got, want)
				}
			case <-time.After(longEnough):
				t.Fatal("nothing is forgotten")
			}
		}
		s.conn.Close()
	}
	b.Stop()
	if err := <-done; err == nil {
		t.Error("once ends without an error")
	}
	if span := sleptSoFar(); span.least > span.most {
		t.Errorf("slept between %v and %v", span.least, span.most)
	}
}

// TestNotAllowed: who may not make the machine wait goes on without.
func TestNotAllowed(t *testing.T) {
	b := bustest.Start(t)
	s := startScript(t, b, nil)
	w := watch(t, b.Address)
	const told = "the machine will not wait before it sleeps"
	w.logs(told)
	for range 3 {
		s.emit(loginPath, manager+".PrepareForSleep", true)
		w.forgets(sleepReason)
		s.emit(loginPath, manager+".PrepareForSleep", false)
	}
	s.emit(loginPath+"/session/_31", session+".Lock")
	w.forgets(lockReason)
	if n := strings.Count(w.log.String(), told); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// TestLateInhibitor: one that comes when the machine is already about to sleep
// does not hold it up.
func TestLateInhibitor(t *testing.T) {
	b := bustest.Start(t)
	lock, released := lockPipe(t)
	now := make(chan struct{})
	s := startScript(t, b, func(s *script) {
		s.inhibit = func() (any, *dbus.Error) { <-now; return lock, nil }
	})
	w := watch(t, b.Address)
	s.asked("Inhibit")
	s.emit(loginPath, manager+".PrepareForSleep", true)
	w.forgets(sleepReason)
	close(now)
	s.settled(w)
	released()
}

// TestBusGone: a machine whose bus has gone does not wait for somebody who
// would not hear that it sleeps.
func TestBusGone(t *testing.T) {
	b := bustest.Start(t)
	lock, released := lockPipe(t)
	s := startScript(t, b, func(s *script) {
		s.inhibit = func() (any, *dbus.Error) { return lock, nil }
	})
	w := watch(t, b.Address)
	s.asked("Get LockedHint")
	s.settled(w)
	b.Stop()
	released()
}

// TestOneInhibitor: wherever more of them come from, one is kept.
func TestOneInhibitor(t *testing.T) {
	b := bustest.Start(t)
	first, firstReleased := lockPipe(t)
	second, secondReleased := lockPipe(t)
	locks := make(chan dbus.UnixFD, 2)
	locks <- first
	locks <- second
	s := startScript(t, b, func(s *script) {
		s.inhibit = func() (any, *dbus.Error) { return <-locks, nil }
	})
	w := watch(t, b.Address)
	s.asked("Get LockedHint")
	s.settled(w)
	s.emit(loginPath, manager+".PrepareForSleep", false)
	s.settled(w)
	secondReleased()
	s.emit(loginPath, manager+".PrepareForSleep", true)
	w.forgets(sleepReason)
	firstReleased()
}

// TestNonsense: a logind that answers and tells what it should not.
func TestNonsense(t *testing.T) {
	path := loginPath + "/session/_31"
	b := bustest.Start(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	before := 0
	for _, value := range []any{"", uint32(7), dbus.UnixFD(null.Fd()), []any{}, []any{"x"}, true, map[string]dbus.Variant{}, []string{}} {
		s := startScript(t, b, func(s *script) {
			s.inhibit = func() (any, *dbus.Error) { return value, nil }
			s.sessions = value
			s.values[loginPath]["PreparingForSleep"] = []byte{1}
			s.values[path]["User"] = "me"
		})
		w := watch(t, b.Address)
		s.asked("ListSessions")
		s.emit(path, session+".Lock")
		s.asked("Get User")
		s.emit(loginPath, manager+".PrepareForSleep", "true")
		s.emit(loginPath, manager+".PrepareForSleep")
		s.emit("/", manager+".PrepareForSleep", true)
		s.emit(path, properties+".PropertiesChanged", session)
		s.emit(path, properties+".PropertiesChanged", session, "x", "y")
		s.emit(path, properties+".PropertiesChanged", session, map[string]dbus.Variant{"LockedHint": dbus.MakeVariant("true")}, []string{})
		s.emit(path, properties+".PropertiesChanged", "x", map[string]dbus.Variant{"LockedHint": dbus.MakeVariant(true)}, []string{})
		s.emit(path, properties+".PropertiesChanged", session, map[string]dbus.Variant{"LockedHint": dbus.MakeVariant(true)}, []string{})
		s.asked("Get User")
		s.emit(loginPath, manager+".PrepareForSleep", true)
		w.forgets(sleepReason)
		w.stop()
		s.conn.Close()
		if before == 0 {
			before = open(t)
		}
	}
	closed(t, before)
}

// TestMute: a logind that does not answer is not asked for ever.
func TestMute(t *testing.T) {
	b := bustest.Start(t)
	never := make(chan struct{})
	defer close(never)
	s := startScript(t, b, nil)
	s.export(loginPath+"/session/_32", properties, map[string]any{"Get": func(_, _ string) (string, *dbus.Error) { <-never; return "", nil }})
	w := watch(t, b.Address)
	s.asked("Get LockedHint")
	for range mostPending + mostWaiting + 1 {
		s.emit(loginPath+"/session/_32", session+".Lock")
	}
	w.logs("too many calls have no answer")
}

// TestCrowd: all sessions of a large machine are locked at once, and ours last.
func TestCrowd(t *testing.T) {
	b := bustest.Start(t)
	var all []dbus.ObjectPath
	s := startScript(t, b, func(s *script) {
		var list []sessionEntry
		for i := range 500 {
			path, uid := loginPath+dbus.ObjectPath(fmt.Sprint("/session/", i)), uint32(ownUID+1)
			if i == 499 {
				uid = ownUID
			}
			s.values[path] = map[string]any{"LockedHint": false, "User": userEntry{uid, "/"}}
			all, list = append(all, path), append(list, sessionEntry{fmt.Sprint(i), ownUID, "me", "", path})
		}
		s.sessions = list // all ours, as far as this goes
		s.called = make(chan string, 4096)
	})
	w := watch(t, b.Address)
	s.asked("Get LockedHint")
	locked := map[string]dbus.Variant{"LockedHint": dbus.MakeVariant(true)}
	for wants := 2; wants > 0; wants-- { // the hint counts once
		for _, path := range all {
			s.emit(path, session+".Lock")
			s.emit(path, properties+".PropertiesChanged", session, locked, []string{})
		}
		for range wants {
			w.forgets(lockReason)
		}
	}
	if strings.Contains(w.log.String(), "LimitsExceeded") || strings.Contains(w.log.String(), "maximum number") {
		t.Error("the bus had to refuse calls")
	}
}
