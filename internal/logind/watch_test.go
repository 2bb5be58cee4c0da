package logind

import (
	"os"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/bustest"
)

const (
	sleepReason = "the machine is about to sleep"
	lockReason  = "the screen was locked"
)

// TestSleep checks that the machine waits until forget returns and no longer, each
// time it sleeps.
func TestSleep(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	m := b.Logind()
	w := watch(t, b.Address)
	for range 3 {
		m.Inhibitors(1)
		held := make(chan struct{})
		w.hold <- held
		m.Sleeps(true)
		w.forgets(sleepReason)
		m.Inhibitors(1)
		close(held)
		m.Inhibitors(0)
		m.Sleeps(false)
	}
	const want = `a(ssssuu) 1 "sleep" "tpm-agent" "PINs are forgotten before the computer sleeps" "delay" `
	if got := m.Inhibitors(1); !strings.HasPrefix(got, want) {
		t.Errorf("the inhibitor is %s, want %s", got, want)
	}
	w.stop()
	m.Inhibitors(0)
}

// TestLock checks that the user's sessions count, including those that start later,
// and that those of other users do not.
func TestLock(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	m := b.Logind()
	early, foreign := m.Session("c1", ownUID), m.Session("c2", ownUID+1)
	w := watch(t, b.Address)
	m.Inhibitors(1)
	later := m.Session("7", ownUID)
	for range 2 {
		m.Lock(foreign)
		m.Lock(early)
		w.forgets(lockReason)
		m.Hint(foreign, true)
		m.Hint(foreign, false)
		m.Lock(later)
		w.forgets(lockReason)
	}
}

// TestLockedHint checks that a screen that was locked by its own locker counts each
// time, and that a session that was locked from the beginning does not.
func TestLockedHint(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	m := b.Logind()
	desk, tty := m.Session("1", ownUID), m.Session("2", ownUID)
	m.Hint(tty, true)
	w := watch(t, b.Address)
	m.Inhibitors(1)
	for range 2 {
		m.Hint(desk, true)
		m.Hint(desk, false)
		w.forgets(lockReason)
	}
	m.Hint(tty, false)
	m.Hint(tty, true)
	w.forgets(lockReason)
	m.Sleeps(true) // comes last, so nothing else may have come
	w.forgets(sleepReason)
}

// TestBusAgain checks that the watcher waits for a bus that died, and for the logind
// on it.
func TestBusAgain(t *testing.T) {
	b := bustest.Start(t)
	m := b.Logind()
	w := watch(t, b.Address)
	m.Inhibitors(1)
	before := open(t)
	for _, stop := range []func(){func() {}, m.Stop} {
		stop()
		b.Stop()
		if err := os.Remove(b.Socket()); err != nil { // as when it stops in order
			t.Fatal(err)
		}
		w.logs("no such file")
		b.Restart()
		m = b.Logind()
		m.Inhibitors(1)
		m.Lock(m.Session("1", ownUID))
		w.forgets(lockReason)
	}
	closed(t, before+1) // the pipe to the second daemon
	for _, text := range []string{`level=INFO msg="the system bus is back"`, `level=INFO msg="the system bus cannot be used`} {
		if n := strings.Count(w.log.String(), text); n != 2 {
			t.Errorf("%d times in the log, want 2: %s", n, text)
		}
	}
}

// TestLogindAgain is the same for logind alone.
func TestLogindAgain(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	w := watch(t, b.Address)
	w.logs("there is no logind")
	for range 3 {
		m := b.Logind()
		m.Inhibitors(1)
		m.Sleeps(true)
		w.forgets(sleepReason)
		m.Inhibitors(0)
		m.Stop()
	}
}
