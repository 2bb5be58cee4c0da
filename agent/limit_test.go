package agent

import (
	"net"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// TestMaxConnsIdle checks that one client too many ends the connection that
// has been idle for longest, and no other.
func TestMaxConnsIdle(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed(plain("p256", sshtest.P256()))}, MaxConns: 4})
	var conns []*net.UnixConn
	for range 4 {
		nc := s.dial(t)
		sshtest.Exchange(t, nc, sshtest.ListThem)
		conns = append(conns, nc)
	}
	sshtest.Exchange(t, conns[0], sshtest.ListThem) // now the second has been idle for longest
	fifth := s.dial(t)
	sshtest.Exchange(t, fifth, sshtest.ListThem)
	sshtest.IsClosed(t, conns[1])
	for _, nc := range []*net.UnixConn{conns[0], conns[2], conns[3], fifth} {
		sshtest.Exchange(t, nc, sshtest.ListThem)
	}
}

// TestMaxConnsBusy checks that no busy connection is closed to make room:
// the new client waits.
func TestMaxConnsBusy(t *testing.T) {
	t.Parallel()
	key := &softKey{Signer: sshtest.P256(), begun: make(chan struct{}), gate: make(chan struct{})}
	id := identityOf("slow", key)
	s := serve(t, Config{Sources: []Source{fixed(id)}, MaxConns: 3})
	data := []byte("data")
	// After the first signature the key is known to need no PIN, so all sign at once.
	first := s.dial(t)
	sshtest.Send(t, first, sshtest.SignMessage(id.Public.Marshal(), data, 0))
	<-key.begun
	key.gate <- struct{}{}
	sshtest.Recv(t, first)
	conns := []*net.UnixConn{first, s.dial(t), s.dial(t)}
	for _, nc := range conns {
		sshtest.Send(t, nc, sshtest.SignMessage(id.Public.Marshal(), data, 0))
		<-key.begun
	}
	late := s.dial(t)
	sshtest.Send(t, late, sshtest.ListThem)
	close(key.gate)
	for _, nc := range conns {
		sshtest.VerifyAnswer(t, id.Public, data, sshtest.Recv(t, nc))
		nc.Close()
	}
	if n := sshtest.CountListed(t, sshtest.Recv(t, late)); n != 1 {
		t.Errorf("%d keys are listed for the client that waited", n)
	}
}
