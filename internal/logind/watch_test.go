package logind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	sleepReason = "the machine is about to sleep"
	lockReason  = "the screen was locked"
)

// TestSleep: the machine has to wait until all is forgotten, and no longer; and
// again at its next sleep.
func TestSleep(t *testing.T) {
	b := startBus(t)
	m := b.startMock()
	w := watch(t, b.address)
	for range 3 {
		m.inhibitors(1)
		held := make(chan struct{})
		w.hold <- held
		m.sleeps(true)
		w.forgets(sleepReason)
		m.inhibitors(1)
		close(held)
		m.inhibitors(0)
		m.sleeps(false)
	}
	m.inhibitors(1)
	const want = `a(ssssuu) 1 "sleep" "tpm-agent" "PINs are forgotten before the computer sleeps" "delay" `
	if got := m.call(loginPath, manager, "ListInhibitors"); !strings.HasPrefix(got, want) {
		t.Errorf("the inhibitor is %s, want %s", got, want)
	}
	w.stop()
	m.inhibitors(0)
}

// TestLock: sessions of the user count, also those that start later; those of
// others do not.
func TestLock(t *testing.T) {
	b := startBus(t)
	m := b.startMock()
	early, foreign := m.session("c1", ownUID), m.session("c2", ownUID+1)
	w := watch(t, b.address)
	m.inhibitors(1)
	later := m.session("7", ownUID)
	for range 2 {
		m.lock(foreign)
		m.lock(early)
		w.forgets(lockReason)
		m.hint(foreign, true)
		m.hint(foreign, false)
		m.lock(later)
		w.forgets(lockReason)
	}
}

// TestLockedHint: a screen that stays locked counts once, however often it is
// said; a session that was locked from the beginning does not count.
func TestLockedHint(t *testing.T) {
	b := startBus(t)
	m := b.startMock()
	desk, tty := m.session("1", ownUID), m.session("2", ownUID)
	m.hint(tty, true)
	w := watch(t, b.address)
	m.inhibitors(1)
	for range 2 {
		for range 3 {
			m.hint(desk, true)
		}
		m.hint(desk, false)
		w.forgets(lockReason)
	}
	m.hint(tty, false)
	m.hint(tty, true)
	w.forgets(lockReason)
	m.hint(tty, true)
	m.sleeps(true) // comes last, so nothing else may have come
	w.forgets(sleepReason)
}

// TestBusAgain: a bus that dies is waited for, and the logind on it.
func TestBusAgain(t *testing.T) {
	b := startBus(t)
	m := b.startMock()
	w := watch(t, b.address)
	m.inhibitors(1)
	before := open(t)
	for _, stop := range []func(){func() {}, m.stop} {
		stop()
		b.stop()
		if err := os.Remove(filepath.Join(b.dir, "bus")); err != nil { // as with an orderly end
			t.Fatal(err)
		}
		w.logs("no such file")
		b.start()
		m = b.startMock()
		m.inhibitors(1)
		m.lock(m.session("1", ownUID))
		w.forgets(lockReason)
	}
	if after := open(t); after > before+1 { // the pipe of the second daemon's output
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
	for _, text := range []string{`level=INFO msg="the system bus is back"`, `level=INFO msg="the system bus cannot be used`} {
		if n := strings.Count(w.log.String(), text); n != 2 {
			t.Errorf("%d times in the log, want 2: %s", n, text)
		}
	}
}

// TestLogindAgain: the same for logind alone.
func TestLogindAgain(t *testing.T) {
	b := startBus(t)
	w := watch(t, b.address)
	w.logs("GetNameOwner") // refused: there is none
	for range 3 {
		m := b.startMock()
		m.inhibitors(1)
		m.sleeps(true)
		w.forgets(sleepReason)
		m.inhibitors(0)
		m.stop()
	}
}
