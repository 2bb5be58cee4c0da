package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	client "golang.org/x/crypto/ssh/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record is a log that tests read.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func (r *record) count(s string) int { return strings.Count(r.String(), s) }

// soon waits for something that comes without a sign.
func soon(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// server is an agent on a socket in a directory of its own.
type testServer struct {
	*Agent
	path string
	log  *record
	stop func() error // ends Serve and returns what it returns; may be called again
}

func serve(t testing.TB, c Config) *testServer {
	t.Helper()
	return serveOn(t, c, func(l net.Listener) net.Listener { return l })
}

// serveOn serves on a listener of another kind.
func serveOn(t testing.TB, c Config, kind func(net.Listener) net.Listener) *testServer {
	t.Helper()
	s := &testServer{path: filepath.Join(t.TempDir(), "s"), log: new(record)}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s.Agent = New(c)
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
	return dialUnix(t, s.path)
}

func dialUnix(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc.(*net.UnixConn)
}

func (s *testServer) client(t testing.TB) client.ExtendedAgent { return client.NewClient(s.dial(t)) }

// send writes messages, each in a frame, at once.
func send(t testing.TB, w io.Writer, messages ...[]byte) {
	t.Helper()
	var b []byte
	for _, m := range messages {
		b = append(b, frame(m)...)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// recv reads one message.
func recv(t testing.TB, r io.Reader) []byte {
	t.Helper()
	m, err := tryRecv(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func tryRecv(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

func ask(t testing.TB, rw io.ReadWriter, message []byte) []byte {
	t.Helper()
	send(t, rw, message)
	return recv(t, rw)
}

// isClosed waits for the other side to close.
func isClosed(t testing.TB, r io.Reader) {
	t.Helper()
	b, err := io.ReadAll(r)
	if len(b) > 0 || (err != nil && !errors.Is(err, io.ErrClosedPipe) && !strings.Contains(err.Error(), "reset")) {
		t.Fatalf("got %x, %v instead of a closed connection", b, err)
	}
}

func signMessage(blob, data []byte, flags uint32) []byte {
	return ssh.Marshal(signRequest{Blob: blob, Data: data, Flags: flags})
}

func removeMessage(blob []byte) []byte { return ssh.Marshal(removeRequest{Blob: blob}) }

var (
	failed    = []byte{msgFailure}
	succeeded = []byte{msgSuccess}
	listThem  = []byte{msgRequestIdentities}
)

// signatureIn takes the answer to a sign request apart.
func signatureIn(answer []byte) (*ssh.Signature, error) {
	var m struct {
		Blob []byte `sshtype:"14"`
	}
	if err := ssh.Unmarshal(answer, &m); err != nil {
		return nil, err
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(m.Blob, &sig); err != nil {
		return nil, err
	}
	if len(sig.Rest) > 0 {
		return nil, fmt.Errorf("%d bytes behind the signature", len(sig.Rest))
	}
	return &sig, nil
}

// verify checks the answer to a sign request.
func verify(t testing.TB, pub ssh.PublicKey, data, answer []byte) {
	t.Helper()
	sig, err := signatureIn(answer)
	if err != nil {
		t.Fatalf("answer %x: %v", answer[:min(len(answer), 40)], err)
	}
	if err := pub.Verify(data, sig); err != nil {
		t.Fatal(err)
	}
}

// listed is how many identities a list has.
func countListed(t testing.TB, answer []byte) int {
	t.Helper()
	if len(answer) < 5 || answer[0] != msgIdentitiesAnswer {
		t.Fatalf("answer %x is no list", answer)
	}
	return int(binary.BigEndian.Uint32(answer[1:]))
}

// pipes is a listener whose connections are pipes in memory, for tests with a
// clock of their own.
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
