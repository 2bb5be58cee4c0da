package agent

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"

	client "golang.org/x/crypto/ssh/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testServer is an agent on a socket in a directory of its own.
type testServer struct {
	*Agent
	path string
	log  *sshtest.Log
	stop func() error // ends Serve and returns what it returns; may be called again
}

func serve(t testing.TB, c Config) *testServer {
	t.Helper()
	return serveOn(t, c, func(l net.Listener) net.Listener { return l })
}

// serveOn serves on a listener that wraps that of the socket.
func serveOn(t testing.TB, c Config, kind func(net.Listener) net.Listener) *testServer {
	t.Helper()
	s := &testServer{path: filepath.Join(t.TempDir(), "s"), log: new(sshtest.Log)}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s.Agent = New(NewKeyring(c), nil)
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, kind(l)) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func (s *testServer) dial(t testing.TB) *net.UnixConn {
	t.Helper()
	return sshtest.DialUnix(t, s.path)
}

func (s *testServer) client(t testing.TB) client.ExtendedAgent { return client.NewClient(s.dial(t)) }

// pipes is a listener whose connections are pipes in memory, for tests in a
// synctest bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	errs   []error // returned by the first calls of Accept
}

func newPipes(errs ...error) *pipes {
	return &pipes{conns: make(chan net.Conn), closed: make(chan struct{}), errs: errs}
}

func (p *pipes) Accept() (net.Conn, error) {
	if len(p.errs) > 0 {
		err := p.errs[0]
		p.errs = p.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	select {
	case nc := <-p.conns:
		return nc, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}
