package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connected returns both ends of a connection.
func connected(t testing.TB) (*Conn, *net.UnixConn) {
	t.Helper()
	path := shortDir(t) + "/s"
	l := listen(t, path)
	client, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	t.Cleanup(func() { client.Close() })
	c, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*Conn), client
}

// send sends text with n descriptors.
func send(t testing.TB, c *net.UnixConn, text string, n int) {
	t.Helper()
	f, err := os.Open(os.DevNull)
	must(t, err)
	defer f.Close()
	fds := make([]int, n)
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	_, _, err = c.WriteMsgUnix([]byte(text), unix.UnixRights(fds...), nil)
	must(t, err)
}

func receive(t testing.TB, c io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	must(t, err)
	if string(got) != want {
		t.Errorf("received %q, want %q", got, want)
	}
}

func TestPassedDescriptors(t *testing.T) {
	for _, n := range []int{1, 2, 27, 28, 29, 253} { // 28 find room, 253 is Linux's limit
		c, client := connected(t)
		send(t, client, "none", 0)
		receive(t, c, "none")
		if c.Local() {
			t.Fatal("no descriptor was passed")
		}
		before := descriptors(t)
		for range 100 {
			send(t, client, "some", n)
			receive(t, c, "some")
		}
		if after := descriptors(t); after != before {
			t.Errorf("after 100 times %d descriptors, %d stay open", n, after-before)
		}
		if !c.Local() {
			t.Errorf("%d passed descriptors were not noticed", n)
		}
	}
}

// TestPassedInTheMiddle checks that descriptors arrive with the first byte they
// were sent with, however the reader divides the stream.
func TestPassedInTheMiddle(t *testing.T) {
	c, client := connected(t)
	send(t, client, "ab", 0)
	send(t, client, "cd", 1)
	receive(t, c, "ab")
	if c.Local() {
		t.Error("noticed too early")
	}
	receive(t, c, "c")
	if !c.Local() {
		t.Error("not noticed")
	}
	receive(t, c, "d")
}

// TestPassedNotRead closes a connection that has unread descriptors.
func TestPassedNotRead(t *testing.T) {
	before := descriptors(t)
	path := shortDir(t) + "/s"
	l, err := Listen(path)
	must(t, err)
	for range 10 {
		client, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		must(t, err)
		c, err := l.Accept()
		must(t, err)
		send(t, client, "some", 10)
		must(t, c.Close())
		must(t, client.Close())
	}
	must(t, l.Close())
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors stay open", after-before)
	}
}

// TestPassedWithoutRoom passes a descriptor to a process that has none left: it
// gets the bytes, and the connection does not count as local.
func TestPassedWithoutRoom(t *testing.T) {
	c, client := connected(t)
	send(t, client, "some", 1)
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}))
	b := make([]byte, 10)
	n, err := c.Read(b)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	if err != nil || string(b[:n]) != "some" || c.Local() {
		t.Errorf("read %q, %v; local: %v", b[:n], err, c.Local())
	}
}

// TestKernelsMessages checks that messages which the kernel adds
// (PassCredentials=, PassPIDFD=) do not count as passed descriptors, leave none
// open, and do not hide one.
func TestKernelsMessages(t *testing.T) {
	c, client := connected(t)
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		must(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSPIDFD, 1); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			t.Error(err)
		}
	}))
	before := descriptors(t)
	send(t, client, "none", 0)
	receive(t, c, "none")
	if c.Local() {
		t.Error("credentials counted as a descriptor")
	}
	send(t, client, "many", 253)
	receive(t, c, "many")
	if !c.Local() {
		t.Error("a descriptor behind the credentials was not noticed")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors stay open", after-before)
	}
}

// TestReadsAsBefore compares Read with that of net.UnixConn.
func TestReadsAsBefore(t *testing.T) {
	t.Parallel()
	c, client := connected(t)
	send(t, client, "x", 1)
	if n, err := c.Read(nil); n != 0 || err != nil || c.Local() {
		t.Errorf("reading nothing gives %d, %v", n, err)
	}
	receive(t, c, "x")

	must(t, c.SetReadDeadline(time.Unix(1, 0)))
	b := make([]byte, 4)
	if n, err := c.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %d, %v", n, err)
	}
	// This read waits first, so the system call returns -1.
	must(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	if n, err := c.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %d, %v", n, err)
	}
	must(t, c.SetReadDeadline(time.Time{}))

	send(t, client, "rest", 0)
	must(t, client.CloseWrite())
	if got, err := io.ReadAll(c); string(got) != "rest" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if n, err := c.Read(b); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	must(t, c.Close())
	if n, err := c.Read(b); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %d, %v", n, err)
	}
}

func BenchmarkRead(b *testing.B) {
	for _, plain := range []bool{true, false} {
		name := map[bool]string{true: "UnixConn", false: "Conn"}[plain]
		b.Run(name, func(b *testing.B) {
			c, client := connected(b)
			var r io.Reader = c
			if plain {
				r = c.UnixConn
			}
			buf := make([]byte, 1024)
			b.ReportAllocs()
			for b.Loop() {
				client.Write(buf[:5])
				r.Read(buf)
			}
		})
	}
}
