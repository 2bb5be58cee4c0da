package tcti_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"golang.org/x/sys/unix"
)

// liar is a server in the place of an swtpm. For every connection, it reads a command
// and calls serve.
func liar(t *testing.T, serve func(c net.Conn)) (address string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			if _, err := c.Read(buf); err == nil {
				serve(c)
				io.Copy(io.Discard, c) // until the other side closes
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "swtpm:path=" + path
}

var good = tpmtest.NewAnswer(0)

// TestLies has a TPM give every kind of wrong answer. Each must be an error and close
// the connection for good.
func TestLies(t *testing.T) {
	t.Parallel()
	patched := func(at int, b byte) []byte {
		a := bytes.Clone(good)
		a[at] = b
		return a
	}
	for name, c := range map[string]struct {
		answer []byte
		is     error
	}{
		"hangs up":          {nil, io.ErrUnexpectedEOF},
		"short header":      {good[:7], io.ErrUnexpectedEOF},
		"short body":        {patched(5, 20), io.ErrUnexpectedEOF},
		"size below header": {patched(5, 9), nil},
		"huge size":         {patched(2, 0xff), nil},
		"octet too many":    {append(bytes.Clone(good), 7), nil},
		"two answers":       {append(bytes.Clone(good), good...), nil},
		"no TPM's tag":      {patched(0, 'H'), nil},
		"TPM 1.2":           {append([]byte{0, 0xc4}, good[2:]...), tcti.ErrTPM12},
		"HTTP":              {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), nil},
	} {
		address := liar(t, func(conn net.Conn) {
			conn.Write(c.answer)
			conn.(*net.UnixConn).CloseWrite()
		})
		conn := open(t, address)
		_, err := conn.Send(t.Context(), hash(nil))
		if err == nil || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		} else if !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v does not say where", name, err)
		}
		gone(t, conn)
	}
}

// TestUnasked has octets arrive after a right answer. They must not be taken for the
// answer to the next command.
func TestUnasked(t *testing.T) {
	t.Parallel()
	answered, sent := make(chan struct{}), make(chan struct{})
	conn := open(t, liar(t, func(c net.Conn) {
		c.Write(good)
		<-answered
		c.Write(good)
		close(sent)
	}))
	if _, err := conn.Send(t.Context(), hash(nil)); err != nil {
		t.Fatal(err)
	}
	close(answered)
	<-sent
	if a, err := conn.Send(t.Context(), hash(nil)); err == nil {
		t.Errorf("took %x for the answer", a)
	}
	gone(t, conn)
}

// TestSlowOctets has an answer arrive octet by octet.
func TestSlowOctets(t *testing.T) {
	t.Parallel()
	conn := open(t, liar(t, func(c net.Conn) {
		for _, b := range good {
			c.Write([]byte{b})
		}
	}))
	if a, err := conn.Send(t.Context(), hash(nil)); err != nil || !bytes.Equal(a, good) {
		t.Error(a, err)
	}
}

// TestStall has a TPM stop in the middle of an answer. The end of the context must end
// the wait, and so must Close.
func TestStall(t *testing.T) {
	t.Parallel()
	halfWay := make(chan struct{}, 1)
	address := liar(t, func(c net.Conn) {
		c.Write(good[:9])
		halfWay <- struct{}{}
	})
	conn := open(t, address)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-halfWay; cancel() }()
	if _, err := conn.Send(ctx, hash(nil)); !errors.Is(err, context.Canceled) {
		t.Error("cancelled:", err)
	}
	gone(t, conn)

	conn = open(t, address)
	go func() { <-halfWay; conn.Close() }()
	if _, err := conn.Send(t.Context(), hash(nil)); !errors.Is(err, net.ErrClosed) {
		t.Error("closed:", err)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	conn := open(t, s.Address())
	works(t, conn)
	s.Reset()
	if _, err := conn.Send(t.Context(), hash(nil)); !errors.Is(err, tcti.ErrNoTPM) {
		t.Error("a TPM that was killed:", err)
	}
	gone(t, conn)
	works(t, open(t, s.Address()))
}

// silentPort reserves a port of 127.0.0.1 on which nothing listens; 0 means any. ok is
// false if the port is in use.
func silentPort(t *testing.T, number int) (port string, ok bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: number, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", false
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(at.(*unix.SockaddrInet4).Port), true
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	port, ok := silentPort(t, 0)
	if !ok {
		t.Fatal("no port is free")
	}
	for _, address := range []string{
		"swtpm:path=" + filepath.Join(t.TempDir(), "none"),
		"swtpm:host=127.0.0.1,port=" + port,
		"mssim:host=127.0.0.1,port=" + port,
		"device:" + filepath.Join(t.TempDir(), "none"),
	} {
		a, err := tcti.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Open(t.Context()); !errors.Is(err, tcti.ErrNoTPM) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// TestTurns has many clients connect to an swtpm, which serves one at a time.
func TestTurns(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	errs := make(chan error)
	for range 20 {
		go func() {
			a, _ := tcti.Parse(s.Address())
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			c, err := a.Open(ctx)
			if err == nil {
				_, err = c.Send(ctx, hash(nil))
				err = errors.Join(err, c.Close())
			}
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestDescriptors checks that no descriptor stays open, whatever goes wrong.
func TestDescriptors(t *testing.T) {
	s := tpmtest.Start(t)
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	sim := simulator(t, s)
	short := liar(t, func(c net.Conn) { c.Write(good[:3]); c.(*net.UnixConn).CloseWrite() })
	round := func() {
		for _, address := range []string{s.Address(), short, "software", sim} {
			c := open(t, address)
			c.Send(t.Context(), hash(nil))
			c.Close()
		}
		if a, err := tcti.Parse("swtpm:path=/nowhere"); err != nil {
			t.Fatal(err)
		} else if _, err := a.Open(t.Context()); err == nil {
			t.Error("opened what is not there")
		}
	}
	round()
	before := descriptors(t)
	for range 5 {
		round()
	}
	// The servers in this process close theirs a moment after the clients.
	for deadline := time.Now().Add(time.Minute); descriptors(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors before, %d after", before, descriptors(t))
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
