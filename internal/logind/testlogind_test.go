package logind

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tpm-agent/tpm-agent/internal/test/bustest"
)

// script is a logind that does what a test wants, for which the mock is too well
// behaved.
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
	// The bus may still have to notice that the previous owner has hung up.
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		reply, err := s.conn.RequestName(loginName, dbus.NameFlagDoNotQueue)
		if err != nil || time.Since(start) > longEnough {
			t.Fatal(reply, err)
		}
		if reply == dbus.RequestNameReplyPrimaryOwner {
			return s
		}
	}
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
			s.t.Fatalf("%s is not called", call)
		}
	}
}

func (s *script) emit(path dbus.ObjectPath, name string, args ...any) {
	s.t.Helper()
	if err := s.conn.Emit(path, name, args...); err != nil {
		s.t.Fatal(err)
	}
}

// settled waits until w has handled everything that was sent before.
func (s *script) settled(w *watched) {
	s.t.Helper()
	for range 3 {
		s.emit(loginPath+"/session/_31", session+".Lock")
		w.forgets(lockReason)
	}
}

// lockPipe returns a descriptor to use as an inhibitor, and a function that waits
// until all copies of it are closed.
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
			t.Error("the inhibitor is not released")
		}
	}
}

// TestMissed checks that a lock or a sleep that was missed while logind was away
// counts when it is back, and that a screen locked from the start does not.
func TestMissed(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	locked := func(s *script) { s.values[loginPath+"/session/_31"]["LockedHint"] = true }
	w := watch(t, b.Address)
	for i, step := range []struct {
		prepare func(*script)
		want    string
	}{
		{locked, ""},
		{nil, ""},
		{locked, lockReason},
		{nil, ""},
		{func(s *script) { s.values[loginPath]["PreparingForSleep"] = true }, sleepReason},
	} {
		s := startScript(t, b, step.prepare)
		s.asked("Get PreparingForSleep")
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

// TestSlept checks that a sleep while logind was away counts.
func TestSlept(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	reasons := make(chan string, 4)
	w := &watcher{Options: Options{Log: quiet(), UID: ownUID}, path: b.Socket(), forget: func(reason string) { reasons <- reason }}
	w.slept = slept() - 2*time.Second
	done := make(chan error, 1)
	go func() { done <- w.connect(t.Context()) }()
	for _, wants := range [][]string{{"the machine has slept", sleepReason}, {sleepReason}} {
		s := startScript(t, b, nil)
		s.asked("Get PreparingForSleep")
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
		t.Error("connect ends without an error")
	}
}

// TestNotAllowed refuses the inhibitor: the rest must work without it.
func TestNotAllowed(t *testing.T) {
	t.Parallel()
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
		t.Errorf("it is logged %d times", n)
	}
}

// TestLateInhibitor gives the inhibitor when the machine is already about to sleep.
// It must not delay the sleep.
func TestLateInhibitor(t *testing.T) {
	t.Parallel()
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

// TestBusGone checks that the inhibitor is released when the bus goes away: without
// the bus, the watcher would not learn that the machine is about to sleep.
func TestBusGone(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	lock, released := lockPipe(t)
	s := startScript(t, b, func(s *script) {
		s.inhibit = func() (any, *dbus.Error) { return lock, nil }
	})
	w := watch(t, b.Address)
	s.asked("Get PreparingForSleep")
	s.settled(w)
	b.Stop()
	released()
}

// TestOneInhibitor checks that the watcher never asks for a second inhibitor.
func TestOneInhibitor(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	lock, released := lockPipe(t)
	var asked atomic.Int32
	s := startScript(t, b, func(s *script) {
		s.inhibit = func() (any, *dbus.Error) { asked.Add(1); return lock, nil }
	})
	w := watch(t, b.Address)
	s.asked("Get PreparingForSleep")
	s.settled(w)
	s.emit(loginPath, manager+".PrepareForSleep", false)
	s.settled(w)
	s.emit(loginPath, manager+".PrepareForSleep", true)
	w.forgets(sleepReason)
	released()
	if n := asked.Load(); n != 1 {
		t.Errorf("Inhibit was called %d times", n)
	}
}

// TestNonsense has a logind whose answers and signals have the wrong types.
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
		s.asked("Get PreparingForSleep")
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

// TestCrowd locks all sessions of a large machine at once, ours last.
func TestCrowd(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	var all []dbus.ObjectPath
	s := startScript(t, b, func(s *script) {
		for i := range 500 {
			path, uid := loginPath+dbus.ObjectPath(fmt.Sprint("/session/", i)), uint32(ownUID+1)
			if i == 499 {
				uid = ownUID
			}
			s.values[path] = map[string]any{"LockedHint": false, "User": userEntry{uid, "/"}}
			all = append(all, path)
		}
		s.called = make(chan string, 4096)
	})
	w := watch(t, b.Address)
	s.asked("Get PreparingForSleep")
	locked := map[string]dbus.Variant{"LockedHint": dbus.MakeVariant(true)}
	for _, hint := range []bool{false, true} {
		for _, path := range all {
			if hint {
				s.emit(path, properties+".PropertiesChanged", session, locked, []string{})
			} else {
				s.emit(path, session+".Lock")
			}
		}
		w.forgets(lockReason)
	}
	if strings.Contains(w.log.String(), "LimitsExceeded") || strings.Contains(w.log.String(), "maximum number") {
		t.Error("the bus had to refuse calls")
	}
}
