package agent

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
)

// TestUpstreamLoop checks that two agents that are each other's upstreams do not
// pass a request back and forth forever.
func TestUpstreamLoop(t *testing.T) {
	t.Parallel()
	id := plain("k", sshtest.P256())
	paths := [2]string{}
	later := func(i int) upstream.Agent { // its path is not known yet
		return upstream.Agent{Name: "loop", Dial: func(ctx context.Context) (net.Conn, error) {
			time.Sleep(10 * time.Millisecond) // the loop ends after some time; leave the processor to other tests
			return new(net.Dialer).DialContext(ctx, "unix", paths[i])
		}}
	}
	a, b := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "s")
	paths[0], paths[1] = a, b
	serveAt(t, a, Config{Sources: []Source{fixed(id)}, Upstreams: []upstream.Agent{later(1)}})
	serveAt(t, b, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{later(0)}})
	nc := sshtest.DialUnix(t, a)
	for range 2 {
		if m := sshtest.Exchange(t, nc, sshtest.ListThem); !bytes.Contains(m, []byte(id.Comment)) {
			t.Errorf("list %x", m)
		}
		unknown := sshtest.PublicOf(sshtest.P384()).Marshal()
		if m := sshtest.Exchange(t, nc, sshtest.SignMessage(unknown, nil, 0)); !bytes.Equal(m, sshtest.Failed) {
			t.Errorf("answer %x", m)
		}
		sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0)))
	}
	wantAnswer(t, nc, addingDSA(), sshtest.Failed) // Neither of them can hold it.
}

// serveAt serves on a path.
func serveAt(t *testing.T, path string, c Config) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- New(NewKeyring(c), nil).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}
