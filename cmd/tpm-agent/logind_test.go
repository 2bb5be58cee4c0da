package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tpm-agent/tpm-agent/internal/test/bustest"
)

// logs waits until the agent has logged a text n times.
func (d *agentRun) logs(n int, text string) {
	d.t.Helper()
	for start := time.Now(); strings.Count(d.logged(), text) < n; time.Sleep(time.Millisecond) {
		if time.Since(start) > longEnough {
			d.t.Fatalf("the log does not contain %d times %s:\n%s", n, text, d.logged())
		}
	}
}

// notInMemory fails the test if the PIN is in the agent's memory. It only checks if
// root runs the test.
func (d *agentRun) notInMemory() {
	d.t.Helper()
	if os.Getuid() != 0 {
		return
	}
	if found := inMemory(d.t, d.cmd.Process.Pid, d.pin); len(found) > 0 {
		d.t.Errorf("the PIN is in memory:\n%s", strings.Join(found, "\n"))
	}
}

// TestLogind checks that the agent forgets PINs before the machine sleeps and when the
// user's screen is locked, and that it delays sleep only while it remembers a PIN.
func TestLogind(t *testing.T) {
	t.Parallel()
	bus := bustest.Start(t)
	logind := bus.Logind()
	s := newScene(t, patient, randomPIN(memoryPIN))
	a := newAskpass(t)
	d := s.serve(append(a.env(), "DBUS_SYSTEM_BUS_ADDRESS="+bus.Address), "--pin-ttl", "session")
	ours, theirs := logind.Session("1", os.Getuid()), logind.Session("2", os.Getuid()+1)
	remembered := func() {
		t.Helper()
		if _, err := d.asked(a, s.public, "say "+s.pin); err != nil {
			t.Fatal(err, d.logged())
		}
		d.signs(s.public) // without a question
	}
	d.signs(s.pinless)
	if n := connections(t, bus); n != 2 { // the mock and the test itself
		t.Errorf("%d connections to the bus before the agent remembers a PIN, want 2", n)
	}
	logind.Inhibitors(0)
	remembered()
	logind.Inhibitors(1)
	for range 2 {
		logind.Sleeps(true)
		logind.Inhibitors(0) // the agent does not delay sleep any more
		d.notInMemory()
		remembered()
		logind.Sleeps(false)
		logind.Inhibitors(1)
	}
	d.logs(2, `msg="PINs and consent forgotten" reason="the machine is about to sleep" pins=1`)
	const locked = `msg="PINs and consent forgotten" reason="the screen was locked" pins=1`
	for i, lock := range []func(dbus.ObjectPath){logind.Lock, func(session dbus.ObjectPath) { logind.Hint(session, true) }} {
		lock(theirs)
		d.signs(s.public)
		lock(ours)
		d.logs(i+1, locked)
		d.notInMemory()
		remembered()
	}
	if n := strings.Count(d.logged(), "the screen was locked"); n != 2 {
		t.Errorf("the log reports %d locked screens, want 2", n)
	}
	logind.Stop()
	bus.Stop()
	d.logs(1, "the system bus cannot be used")
	d.signs(s.public)
}

// connections returns the number of connections to the bus, including its own.
func connections(t *testing.T, bus *bustest.Bus) (n int) {
	t.Helper()
	conn := bus.Client()
	defer conn.Close()
	var names []string
	if err := conn.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, ":") {
			n++
		}
	}
	return n
}

// TestNoLogind checks that without a usable system bus the agent still remembers PINs,
// and logs that it does not notice sleep and screen lock.
func TestNoLogind(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ address, logs string }{
		"no bus":      {"unix:path=/nonexistent/bus", `level=INFO msg="no system bus can be used`},
		"no address":  {"tcp:host=127.0.0.1,port=1", `level=WARN msg="PINs are not forgotten when the machine sleeps`},
		"not for us":  {"unix:path=/proc/1/mem", "system bus"},
		"a directory": {"unix:path=/", "system bus"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, patient, "")
			a := newAskpass(t)
			d := s.serve(append(a.env(), "DBUS_SYSTEM_BUS_ADDRESS="+tt.address), "--pin-ttl", "1h")
			d.signs(s.pinless)
			if strings.Contains(d.logged(), "system bus") {
				t.Errorf("the agent connects to the bus before it remembers a PIN:\n%s", d.logged())
			}
			if _, err := d.asked(a, s.public, "say "+s.pin); err != nil {
				t.Fatal(err, d.logged())
			}
			d.logs(1, tt.logs)
			d.signs(s.public)
		})
	}
}
