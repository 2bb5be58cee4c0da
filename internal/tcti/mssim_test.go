package tcti_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// bridge is an swtpm that speaks the reference simulator's protocol.
type bridge struct {
	t    *testing.T
	tpm  *tpmtest.SWTPM
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen []string      // the numbers that clients sent, with the port
	left chan struct{} // one for each client that said goodbye
}

// simulator starts a bridge, and returns its address.
func simulator(t *testing.T, s *tpmtest.SWTPM) string {
	address, _ := newBridge(t, s, "127.0.0.1")
	return address
}

// newBridge starts a bridge, which listens on two consecutive ports.
func newBridge(t *testing.T, s *tpmtest.SWTPM, host string) (string, *bridge) {
	t.Helper()
	b := &bridge{t: t, tpm: s, left: make(chan struct{}, 1000)}
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Skipf("no loopback for %s: %v", host, err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		p, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(port+1)))
		if err != nil {
			l.Close()
			continue
		}
		b.serve(l, "command", b.command)
		b.serve(p, "platform", b.signal)
		t.Cleanup(func() { l.Close(); p.Close(); b.wg.Wait() })
		return fmt.Sprintf("mssim:host=%s,port=%d", host, port), b
	}
	t.Fatal("no two ports in a row")
	return "", nil
}

// serve handles the numbers that arrive on a port until the client says goodbye.
func (b *bridge) serve(l net.Listener, port string, handle func(net.Conn, uint32) error) {
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() {
				defer c.Close()
				for {
					n, err := number(c)
					if err != nil {
						return
					}
					b.note(port, n)
					if n == 20 {
						b.left <- struct{}{}
						return
					}
					if err := handle(c, n); err != nil {
						b.t.Errorf("%s port, %d: %v", port, n, err)
						return
					}
				}
			})
		}
	})
}

func (b *bridge) note(port string, n uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = append(b.seen, fmt.Sprintf("%s %d", port, n))
}

func number(c net.Conn) (uint32, error) {
	var n [4]byte
	_, err := io.ReadFull(c, n[:])
	return binary.BigEndian.Uint32(n[:]), err
}

func (b *bridge) signal(c net.Conn, n uint32) error {
	if n != 1 && n != 11 {
		return errors.New("unexpected signal")
	}
	_, err := c.Write(make([]byte, 4))
	return err
}

// command passes one command on to swtpm, and its answer back.
func (b *bridge) command(c net.Conn, n uint32) error {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); n != 8 || head[0] != 0 || err != nil {
		return fmt.Errorf("unexpected: %x, %v", head, err)
	}
	command := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(c, command); err != nil {
		return err
	}
	t, err := net.Dial("unix", b.tpm.Socket())
	if err != nil {
		return err
	}
	defer t.Close()
	if _, err := t.Write(command); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	got, err := t.Read(buf)
	if err != nil {
		return err
	}
	answer := binary.BigEndian.AppendUint32(nil, uint32(got))
	answer = append(answer, buf[:got]...)
	_, err = c.Write(append(answer, 0, 0, 0, 0))
	return err
}

func TestMSSIM(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			address, b := newBridge(t, tpmtest.Start(t), host)
			c := open(t, address)
			works(t, c)
			works(t, c)
			if c.Managed() {
				t.Error("managed")
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			<-b.left
			<-b.left
			b.mu.Lock()
			defer b.mu.Unlock()
			want := []string{"platform 1", "platform 11", "command 8", "command 8"}
			if !slices.Equal(b.seen[:4], want) {
				t.Errorf("saw %q, want %q first", b.seen, want)
			}
			slices.Sort(b.seen[4:])
			if end := []string{"command 20", "platform 20"}; !slices.Equal(b.seen[4:], end) {
				t.Errorf("saw %q, want %q last", b.seen, end)
			}
		})
	}
}

func TestMSSIMSignals(t *testing.T) {
	t.Parallel()
	underSignals(t, open(t, simulator(t, tpmtest.Start(t))))
}

// TestSWTPMTCP connects to an swtpm over TCP, through a relay.
func TestSWTPMTCP(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		tpm, err := net.Dial("unix", s.Socket())
		if err != nil {
			t.Error(err)
			return
		}
		defer tpm.Close()
		wg.Go(func() { io.Copy(c, tpm) })
		io.Copy(tpm, c)
	})
	c := open(t, fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", l.Addr().(*net.TCPAddr).Port))
	for range 20 {
		works(t, c)
	}
	c.Close()
	l.Close()
	wg.Wait()
}

// TestPlatformRefuses opens a simulator without a platform port.
func TestPlatformRefuses(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	var port int
	for free := false; !free; {
		address, _ := newBridge(t, s, "127.0.0.1")
		if _, err := fmt.Sscanf(address, "mssim:host=127.0.0.1,port=%d", &port); err != nil {
			t.Fatal(err)
		}
		_, free = silentPort(t, port+2)
	}
	// The address is one port too high, so that nothing listens where its platform
	// port should be.
	wrong, _ := tcti.Parse(fmt.Sprintf("mssim:host=127.0.0.1,port=%d", port+1))
	if c, err := wrong.Open(t.Context()); err == nil {
		c.Close()
		t.Error("opened a simulator without a platform port")
	}
}
