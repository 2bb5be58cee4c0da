// Package bustest runs a message bus for tests, with a simulated logind on it.
// The logind is python-dbusmock's. The machine's own bus is never used.
package bustest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// longEnough ends tests that would hang, also on a busy machine.
const longEnough = time.Minute

const (
	name    = "org.freedesktop.login1"
	manager = dbus.ObjectPath("/org/freedesktop/login1")
)

// busConfig is the policy of a system bus, except that every client may own every
// name and call every method. The limits are dbus-daemon's defaults.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path=%s</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
`

// A Bus is a dbus-daemon on its own socket. It ends with the test.
type Bus struct {
	// Address is a value for DBUS_SYSTEM_BUS_ADDRESS.
	Address string

	// Stop kills the bus. Its socket stays.
	Stop func()

	t   testing.TB
	dir string
}

// Start starts a bus. The test is skipped if dbus-daemon is missing.
func Start(t testing.TB) *Bus {
	t.Helper()
	needs.Program(t, "dbus-daemon")
	dir, err := os.MkdirTemp("", "logind") // the paths of t.TempDir are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &Bus{t: t, dir: dir, Address: "unix:path=" + filepath.Join(dir, "bus")}
	config := fmt.Sprintf(busConfig, b.Socket())
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Restart()
	return b
}

// Socket returns the path of the bus's socket.
func (b *Bus) Socket() string { return filepath.Join(b.dir, "bus") }

// Restart starts a stopped bus again, at the same address.
func (b *Bus) Restart() {
	b.t.Helper()
	cmd := exec.Command("dbus-daemon", "--config-file="+filepath.Join(b.dir, "config"), "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.Stop = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	b.t.Cleanup(b.Stop)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it listens now
		b.t.Fatal(err)
	}
}

// Client connects to the bus until the test ends.
func (b *Bus) Client() *dbus.Conn {
	b.t.Helper()
	conn, err := dbus.Connect(b.Address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

// A Logind is python3-dbusmock's logind. It ends with the test.
type Logind struct {
	// Stop kills it.
	Stop func()

	bus *Bus
}

// Logind starts a logind, and returns when it has its name on the bus. The test
// is skipped if python3-dbusmock or busctl is missing.
func (b *Bus) Logind() *Logind {
	b.t.Helper()
	needs.Program(b.t, "busctl")
	needs.Python(b.t, "dbusmock", "python3-dbusmock")
	conn := b.Client()
	defer conn.Close()
	owners := make(chan *dbus.Signal, 16)
	conn.Signal(owners)
	if err := conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)); err != nil {
		b.t.Fatal(err)
	}
	// python3 in PATH may not see Debian's packages.
	cmd := exec.Command("/usr/bin/python3", "-m", "dbusmock", "--system", "--template", "logind")
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+b.Address)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	l := &Logind{sync.OnceFunc(func() { cmd.Process.Kill(); <-ended }), b}
	b.t.Cleanup(l.Stop)
	for {
		select {
		case s := <-owners:
			if len(s.Body) == 3 && s.Body[2] != "" {
				return l
			}
		case <-ended:
			b.t.Fatalf("python3-dbusmock does not run:\n%s", said.String())
		case <-time.After(longEnough):
			b.t.Fatal("python3-dbusmock did not get its name on the bus")
		}
	}
}

// call calls a method with systemd's busctl and returns its output.
func (l *Logind) call(path dbus.ObjectPath, method string, args ...string) string {
	b := l.bus
	b.t.Helper()
	dot := strings.LastIndexByte(method, '.')
	args = append([]string{"--address=" + b.Address, "call", name, string(path), method[:dot], method[dot+1:]}, args...)
	out, err := exec.Command("busctl", args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("busctl %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Sleeps announces that the machine is about to sleep, or has woken up.
func (l *Logind) Sleeps(begins bool) {
	l.bus.t.Helper()
	l.call(manager, "org.freedesktop.DBus.Mock.EmitSignal",
		"sssav", name+".Manager", "PrepareForSleep", "b", "1", "b", strconv.FormatBool(begins))
}

// Session adds a login session of a user.
func (l *Logind) Session(id string, uid int) dbus.ObjectPath {
	l.bus.t.Helper()
	l.call(manager, "org.freedesktop.DBus.Mock.AddSession", "ssusb", id, "seat0", strconv.Itoa(uid), "user"+strconv.Itoa(uid), "true")
	return manager + "/session/" + dbus.ObjectPath(id)
}

// Lock asks a login session to lock its screen.
func (l *Logind) Lock(session dbus.ObjectPath) {
	l.bus.t.Helper()
	l.call(session, name+".Session.Lock")
}

// Hint sets whether a login session's screen is locked, as a screen locker does.
func (l *Logind) Hint(session dbus.ObjectPath, locked bool) {
	l.bus.t.Helper()
	l.call(session, name+".Session.SetLockedHint", "b", strconv.FormatBool(locked))
}

// Inhibitors waits until there are n inhibitors, and returns them as busctl shows
// them.
func (l *Logind) Inhibitors(n int) (shown string) {
	l.bus.t.Helper()
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(5 * time.Millisecond) {
		shown = l.call(manager, name+".Manager.ListInhibitors")
		if fields := strings.Fields(shown); fields[1] == strconv.Itoa(n) {
			return shown
		}
	}
	l.bus.t.Fatalf("logind's inhibitors: %s, want %d", shown, n)
	return ""
}
