package logind

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// longEnough ends tests that would hang.
const longEnough = 20 * time.Second

// The policy of a system bus, but that anybody may have any name and call
// methods. The limits are dbus-daemon's.
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

// testBus is a dbus-daemon on a socket of its own.
type testBus struct {
	t       *testing.T
	dir     string
	address string
	stop    func()
}

func startBus(t *testing.T) *testBus {
	t.Helper()
	dir, err := os.MkdirTemp("", "logind") // t.TempDir's are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &testBus{t: t, dir: dir, address: "unix:path=" + filepath.Join(dir, "bus")}
	config := fmt.Sprintf(busConfig, filepath.Join(dir, "bus"))
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	return b
}

// start starts the daemon, for the first time or again.
func (b *testBus) start() {
	b.t.Helper()
	cmd := exec.Command("dbus-daemon", "--config-file="+filepath.Join(b.dir, "config"), "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatalf("%v (Debian: the package dbus-daemon)", err)
	}
	b.stop = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	b.t.Cleanup(b.stop)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it listens now
		b.t.Fatal(err)
	}
}

// client connects by a client that is not ours.
func (b *testBus) client() *dbus.Conn {
	b.t.Helper()
	conn, err := dbus.Connect(b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

// mock is python3-dbusmock's logind.
type mock struct {
	*testBus
	stop func()
}

// startMock returns when logind has its name.
func (b *testBus) startMock() *mock {
	b.t.Helper()
	conn := b.client()
	defer conn.Close()
	owners := make(chan *dbus.Signal, 16)
	conn.Signal(owners)
	if err := conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, loginName)); err != nil {
		b.t.Fatal(err)
	}
	// Not python3 of PATH: that may be one that has no packages of Debian's.
	cmd := exec.Command("/usr/bin/python3", "-m", "dbusmock", "--system", "--template", "logind")
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+b.address)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	m := &mock{b, sync.OnceFunc(func() { cmd.Process.Kill(); <-ended })}
	b.t.Cleanup(m.stop)
	for {
		select {
		case s := <-owners:
			if len(s.Body) == 3 && s.Body[2] != "" {
				return m
			}
		case <-ended:
			b.t.Fatalf("python3-dbusmock (a package of Debian's) does not run:\n%s", said.String())
		case <-time.After(longEnough):
			b.t.Fatal("python3-dbusmock has got no name")
		}
	}
}

// call calls a method by systemd's busctl, and returns what that prints.
func (b *testBus) call(path dbus.ObjectPath, iface, method string, args ...string) string {
	b.t.Helper()
	args = append([]string{"--address=" + b.address, "call", loginName, string(path), iface, method}, args...)
	out, err := exec.Command("busctl", args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("busctl %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// sleeps has logind say that the machine is about to sleep, or awake.
func (m *mock) sleeps(begins bool) {
	m.t.Helper()
	m.call(loginPath, "org.freedesktop.DBus.Mock", "EmitSignal",
		"sssav", manager, "PrepareForSleep", "b", "1", "b", strconv.FormatBool(begins))
}

// session starts a session.
func (m *mock) session(id string, uid int) dbus.ObjectPath {
	m.t.Helper()
	m.call(loginPath, "org.freedesktop.DBus.Mock", "AddSession", "ssusb", id, "seat0", strconv.Itoa(uid), "user"+strconv.Itoa(uid), "true")
	return loginPath + "/session/" + dbus.ObjectPath(id)
}

func (m *mock) lock(session dbus.ObjectPath) {
	m.t.Helper()
	m.call(session, loginName+".Session", "Lock")
}

func (m *mock) hint(session dbus.ObjectPath, locked bool) {
	m.t.Helper()
	m.call(session, loginName+".Session", "SetLockedHint", "b", strconv.FormatBool(locked))
}

// inhibitors waits until logind has so many inhibitors.
func (m *mock) inhibitors(n int) {
	m.t.Helper()
	var got string
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(5 * time.Millisecond) {
		got = m.call(loginPath, manager, "ListInhibitors")
		if fields := strings.Fields(got); fields[1] == strconv.Itoa(n) {
			return
		}
	}
	m.t.Fatalf("logind's inhibitors: %s, want %d", got, n)
}

// watched is a Watch that runs.
type watched struct {
	t       *testing.T
	reasons chan string
	log     *lockedBuffer
	stop    func()
	hold    chan chan struct{} // what forget waits for, if there is something
}

const ownUID = 4711

func watch(t *testing.T, address string) *watched {
	t.Helper()
	w := &watched{t: t, reasons: make(chan string, 16), log: new(lockedBuffer), hold: make(chan chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() {
		done <- Watch(ctx, Options{Address: address, UID: ownUID, Log: log}, func(reason string) {
			w.reasons <- reason
			select {
			case held := <-w.hold:
				<-held
			default:
			}
		})
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Watch: %v", err)
			}
		case <-time.After(longEnough):
			t.Error("Watch does not end")
		}
	})
	t.Cleanup(func() {
		w.stop()
		if len(w.reasons) > 0 {
			t.Errorf("not expected: %q", <-w.reasons)
		}
		if t.Failed() {
			t.Logf("its log:\n%s", w.log)
		}
	})
	return w
}

// forgets waits for forget to be called.
func (w *watched) forgets(reason string) {
	w.t.Helper()
	select {
	case got := <-w.reasons:
		if got != reason {
			w.t.Fatalf("forget(%q), want %q", got, reason)
		}
	case <-time.After(longEnough):
		w.t.Fatalf("nothing is forgotten; want %q", reason)
	}
}

// logs waits for a text in the log.
func (w *watched) logs(text string) {
	w.t.Helper()
	for start := time.Now(); !strings.Contains(w.log.String(), text); time.Sleep(time.Millisecond) {
		if time.Since(start) > longEnough {
			w.t.Fatalf("%q does not come in the log", text)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// open counts the descriptors of this process.
func open(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}
