package logind

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/bustest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// rogue is another user on the bus.
type rogue struct {
	*dbus.Conn
	t      *testing.T
	victim string // our name
}

// startRogue finds the watcher on the bus, as anyone can.
func startRogue(t *testing.T, b *bustest.Bus) *rogue {
	t.Helper()
	r := &rogue{b.Client(), t, ""}
	var names []string
	if err := r.BusObject().Call(busName+".ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		var pid int
		err := r.BusObject().Call(busName+".GetConnectionUnixProcessID", 0, name).Store(&pid)
		if err == nil && pid == os.Getpid() && name != r.Names()[0] && strings.HasPrefix(name, ":") {
			r.victim = name
		}
	}
	if r.victim == "" {
		t.Fatal("the watcher is not on the bus")
	}
	return r
}

// signal sends a signal to the watcher alone.
func (r *rogue) signal(path dbus.ObjectPath, name string, args ...any) {
	r.t.Helper()
	msg := newCall(r.victim, path, name, args...)
	msg.Type, msg.Flags = dbus.TypeSignal, 0
	if c := r.Send(msg, nil); c.Err != nil {
		r.t.Fatal(c.Err)
	}
}

// settled waits until the bus has taken all that was sent.
func (r *rogue) settled() {
	r.t.Helper()
	if err := r.BusObject().Call(busName+".GetId", 0).Err; err != nil {
		r.t.Fatal(err)
	}
}

// TestForeignSignals checks that only logind's signals count, and that only the bus
// says which connection is logind.
func TestForeignSignals(t *testing.T) {
	t.Parallel()
	b := bustest.Start(t)
	m := b.Logind()
	ours := m.Session("1", ownUID)
	w := watch(t, b.Address)
	m.Inhibitors(1)
	r := startRogue(t, b)
	if reply, err := r.RequestName(loginName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyExists {
		t.Fatalf("RequestName: %v, %v", reply, err)
	}
	locked := map[string]dbus.Variant{"LockedHint": dbus.MakeVariant(true)}
	for range 2 {
		if err := r.Emit(loginPath, manager+".PrepareForSleep", true); err != nil {
			t.Fatal(err)
		}
		r.signal(loginPath, manager+".PrepareForSleep", true)
		r.signal(ours, session+".Lock")
		r.signal(ours, properties+".PropertiesChanged", session, locked, []string{})
		r.signal(busPath, busName+".NameOwnerChanged", loginName, r.victim, r.Names()[0])
	}
	for serial := range uint32(64) {
		answer := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(r.victim),
			dbus.FieldReplySerial: dbus.MakeVariant(serial + 1),
		}}
		r.Send(answer, nil)
	}
	r.Send(newCall(r.victim, "/", "org.freedesktop.DBus.Peer.Ping"), make(chan *dbus.Call, 1))
	r.settled()
	m.Lock(ours)
	w.forgets(lockReason)
}

// TestPassedDescriptors checks that descriptors from other users are closed.
func TestPassedDescriptors(t *testing.T) {
	b := bustest.Start(t)
	m := b.Logind()
	ours := m.Session("1", ownUID)
	w := watch(t, b.Address)
	m.Inhibitors(1)
	r := startRogue(t, b)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var many []dbus.UnixFD
	for range 16 {
		many = append(many, dbus.UnixFD(null.Fd()))
	}
	before := open(t)
	for range 40 {
		r.signal(loginPath, manager+".PrepareForSleep", many)
		r.settled()
	}
	m.Lock(ours)
	w.forgets(lockReason)
	closed(t, before)
}

// fromBus returns a message that the bus itself sends.
func fromBus(method string, args ...any) *dbus.Message {
	m := newCall("a.b", "/", method, args...)
	m.Headers[dbus.FieldSender] = dbus.MakeVariant(busName)
	return m
}

// TestSender compares sender with the D-Bus module, for fields in every order and
// for broken ones.
func TestSender(t *testing.T) {
	t.Parallel()
	for range 50 { // a map has no order
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			m := fromBus("org.example.Some.Method", "a text", uint32(7))
			m.Headers[dbus.FieldReplySerial] = dbus.MakeVariant(uint32(7))
			whole := encode(t, m, order)
			_, size, _, err := sizes([headSize]byte(whole))
			if err != nil {
				t.Fatal(err)
			}
			fields := whole[headSize : headSize+size]
			if got := sender(fields, order); got != busName {
				t.Fatalf("sender = %q in %x", got, fields)
			}
			for end := range fields {
				if got := sender(fields[:end], order); got != "" && got != busName {
					t.Fatalf("sender = %q in %x", got, fields[:end])
				}
			}
			order.PutUint32(fields[4:], 1<<32-1) // the size of the first, unless it is a number or a signature
			if got := sender(fields, order); got != "" && got != busName {
				t.Fatalf("sender = %q in %x", got, fields)
			}
		}
	}
}

// TestOthers checks that messages from other users are discarded.
func TestOthers(t *testing.T) {
	t.Parallel()
	b, other := pair(t)
	b.owner = ":1.5"
	for _, from := range []string{":1.4", ":1.55", "", ":1.5", loginName, busName} {
		m := fromBus("a.b.c", from)
		m.Headers[dbus.FieldSender] = dbus.MakeVariant(from)
		if _, err := other.Write(encode(t, m, binary.LittleEndian)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{":1.5", busName} {
		if m, err := b.receive(); err != nil || m.Body[0] != want {
			t.Fatalf("receive: %v, %v; want a message from %s", m, err, want)
		}
	}
}

// TestDescriptors checks that descriptors are closed if their message is too long or
// broken, and if they are not taken.
func TestDescriptors(t *testing.T) {
	b, other := pair(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	passing := fromBus("a.b.c", dbus.UnixFD(0))
	passing.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(1))
	good := encode(t, passing, binary.LittleEndian)
	bad := bytes.Clone(good)
	bad[1] = 99 // no such type
	long := make([]byte, maxMessage+1)
	copy(long, []byte{'l', 1, 0, 1, 0, 0, 0, 0, 1})
	binary.LittleEndian.PutUint32(long[4:], uint32(len(long)-headSize))
	before := open(t)
	for range 3 {
		go func() {
			for _, frame := range [][]byte{bad, long, good} {
				many := unix.UnixRights(fd, fd, fd)
				n, _, _ := other.WriteMsgUnix(frame, many, nil)
				other.Write(frame[n:])
			}
			other.WriteMsgUnix(good, unix.UnixRights(fd), nil)
		}()
		if _, err := b.receive(); err != nil {
			t.Fatal(err)
		}
		if fd := b.take(); fd != -1 {
			t.Errorf("one of three descriptors was taken: %d", fd)
		}
		if _, err := b.receive(); err != nil {
			t.Fatal(err)
		}
		taken := b.take()
		if flags, err := unix.FcntlInt(uintptr(taken), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the descriptor has the flags %#x, %v", flags, err)
		}
		unix.Close(taken)
	}
	closed(t, before)
}

// TestLongMessages checks that long messages are discarded as they come and take no
// memory.
func TestLongMessages(t *testing.T) {
	const length = 32 << 20
	b, other := pair(t)
	head := []byte{'l', byte(dbus.TypeSignal), 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint32(head[4:], length)
	junk := make([]byte, 1<<20)
	go func() {
		for range 4 {
			other.Write(head)
			for range length / len(junk) {
				other.Write(junk)
			}
		}
		other.Write(encode(t, fromBus("a.b.c"), binary.LittleEndian))
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, err := b.receive()
	runtime.ReadMemStats(&after)
	if err != nil || header[string](m, dbus.FieldMember) != "c" {
		t.Fatalf("receive: %v, %v", m, err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
		t.Errorf("reading 128 MiB of junk took %d bytes of memory", took)
	}
}

// pair returns a connection to a bus, and the end at which the test plays the bus.
func pair(t testing.TB) (*bus, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return &bus{conn: ends[0]}, ends[1]
}

// TestBrokenBus checks that the watcher keeps trying when something that is not a
// bus listens at the address.
func TestBrokenBus(t *testing.T) {
	t.Parallel()
	const accepts = "DATA\r\nOK 1234\r\nAGREE_UNIX_FD\r\n"
	for name, says := range map[string]string{
		"silence":         "",
		"closes":          "close",
		"rejects":         "REJECTED EXTERNAL\r\n",
		"no end of line":  strings.Repeat("x", 4096),
		"no descriptors":  "DATA\r\nOK 1234\r\nERROR\r\n",
		"no message":      accepts + strings.Repeat("x", 64),
		"much too long":   accepts + "l\x02\x00\x01\xff\xff\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff",
		"empty messages":  accepts + strings.Repeat("l\x02\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00", 64),
		"half of a head":  accepts + "l\x02\x00\x01",
		"half of a frame": accepts + "B\x02\x00\x01\x00\x00\x00\x64\x00\x00\x00\x01\x00\x00\x00\x00xyz",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "bus") // short enough for the path of a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			path := dir + "/b"
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			met := make(chan struct{}, 1)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					if says != "close" {
						io.WriteString(conn, says)
						conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
						io.Copy(io.Discard, conn)
					}
					conn.Close()
					select {
					case met <- struct{}{}:
					default:
					}
				}
			}()
			w := watch(t, "unix:path="+path)
			for range 2 { // the watcher comes again
				<-met
			}
			w.stop()
			l.Close()
			<-ended
		})
	}
}

// TestNoBus checks that Watch ends with one line in the log when there is no bus.
func TestNoBus(t *testing.T) {
	t.Parallel()
	for name, address := range map[string]string{
		"nothing there": "unix:path=" + t.TempDir() + "/bus",
		"no directory":  "unix:path=/nonexistent/bus",
		"the usual one": "",
	} {
		if _, err := os.Stat(strings.TrimPrefix(systemBus, "unix:path=")); address == "" && err == nil {
			continue // this machine has one
		}
		var log lockedBuffer
		err := Watch(t.Context(), Options{Address: address, Log: slog.New(slog.NewTextHandler(&log, nil))}, nil)
		if err != nil || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "no system bus can be used") {
			t.Errorf("%s: %v, and the log is:\n%s", name, err, log.String())
		}
	}
}

func TestSocketPath(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"":                           "/run/dbus/system_bus_socket",
		"unix:path=/a%20b":           "/a b",
		"unix:guid=12,path=/a":       "/a",
		"unix:abstract=/tmp/x,guid=": "@/tmp/x",
		"tcp:host=localhost,port=1;unix:path=/a;unix:path=/b": "/a",
		"tcp:path=/x;unix:path=/a":                            "/a",
		"unix:runtime=yes;unix:path=/a":                       "/a",
	} {
		if got, err := socketPath(address); err != nil || got != want {
			t.Errorf("socketPath(%q) = %q, %v; want %q", address, got, err, want)
		}
	}
	for _, address := range []string{
		"tcp:host=localhost,port=1", "autolaunch:", "/run/dbus/system_bus_socket", "path=/a", "unix:", "unix:path=", "unix:path=%zz", "unixexec:path=/bin/sh", ";",
	} {
		if path, err := socketPath(address); err == nil {
			t.Errorf("socketPath(%q) = %q", address, path)
		}
		if err := Watch(t.Context(), Options{Address: address, Log: quiet()}, nil); err == nil {
			t.Errorf("Watch accepts the address %q", address)
		}
	}
}
