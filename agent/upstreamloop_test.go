package agent

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// TestUpstreamLoop: agents that are each other's upstreams pass requests to
// and fro, but not for ever.
func TestUpstreamLoop(t *testing.T) {
	id := plain("k", p256())
	paths := [2]string{}
	later := func(i int) Upstream { // the path is known when both are there
		return Upstream{Name: "loop", Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", paths[i])
		}}
	}
	a, b := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "s")
	paths[0], paths[1] = a, b
	serveAt(t, a, Config{Source: fixed(id), Upstreams: []Upstream{later(1)}})
	serveAt(t, b, Config{Source: fixed(), Upstreams: []Upstream{later(0)}})
	nc := dialUnix(t, a)
	for range 2 {
		if m := ask(t, nc, listThem); !bytes.Contains(m, []byte(id.Comment)) {
			t.Errorf("list %x", m)
		}
		unknown := publicOf(p384()).Marshal()
		if m := ask(t, nc, signMessage(unknown, nil, 0)); !bytes.Equal(m, failed) {
			t.Errorf("answer %x", m)
		}
		verify(t, id.Public, nil, ask(t, nc, signMessage(id.Public.Marshal(), nil, 0)))
	}
}

// serveAt is serve on a path.
func serveAt(t *testing.T, path string, c Config) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- New(c).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestRelayBounded: what is with one upstream has a bound, which is lower for
// what it may know nothing about.
func TestRelayBounded(t *testing.T) {
	up := answering(t, func(m []byte) []byte {
		if m[0] == msgRequestIdentities {
			return listOf(listed{"blob", "key"})
		}
		return success()
	})
	r, _ := relayTo(t, up.path)
	r.list(t.Context())
	u := r.ups.list[0]
	ask := func(blob string) error {
		_, _, err := r.forKey(t.Context(), blob, []byte{msgRemoveIdentity + 100})
		return err
	}
	check := func(known, other error) {
		t.Helper()
		if err := ask("blob"); !errors.Is(err, known) {
			t.Errorf("a key of it: %v", err)
		}
		if err := ask("other"); !errors.Is(err, other) {
			t.Errorf("another key: %v", err)
		}
	}
	check(nil, nil)
	for range maxGuessed {
		u.enter(false)
	}
	check(nil, errBusy)
	for range maxRelayed - maxGuessed {
		u.enter(true)
	}
	check(errBusy, errBusy)
	for range maxGuessed {
		u.leave(false)
	}
	check(nil, nil)
}
