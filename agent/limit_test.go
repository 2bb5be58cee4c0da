package agent

import (
	"net"
	"testing"
)

// TestMaxConnsIdle: one client too many ends the connection that has been idle
// for longest, and no other.
func TestMaxConnsIdle(t *testing.T) {
	clock := newHandClock()
	s := serve(t, Config{Source: fixed(plain("p256", p256())), MaxConns: 4, Clock: clock})
	var conns []*net.UnixConn
	for range 4 {
		clock.forward(1)
		nc := s.dial(t)
		ask(t, nc, listThem)
		conns = append(conns, nc)
	}
	clock.forward(1)
	ask(t, conns[0], listThem) // the second is now the one that is longest idle
	clock.forward(1)
	fifth := s.dial(t)
	ask(t, fifth, listThem)
	isClosed(t, conns[1])
	for _, nc := range []*net.UnixConn{conns[0], conns[2], conns[3], fifth} {
		ask(t, nc, listThem)
	}
}

// TestMaxConnsBusy: where all are busy nobody is cut off; who comes waits.
func TestMaxConnsBusy(t *testing.T) {
	key := &softKey{Signer: p256(), begun: make(chan struct{}), gate: make(chan struct{})}
	id := identityOf("slow", key)
	s := serve(t, Config{Source: fixed(id), MaxConns: 3})
	data := []byte("data")
	s.learnNeeded(newIdentity(id), false) // it is known to need no PIN: all sign at once
	var conns []*net.UnixConn
	for range 3 {
		nc := s.dial(t)
		send(t, nc, signMessage(id.Public.Marshal(), data, 0))
		conns = append(conns, nc)
	}
	for range 3 {
		<-key.begun
	}
	late := s.dial(t)
	send(t, late, listThem)
	close(key.gate)
	for _, nc := range conns {
		verify(t, id.Public, data, recv(t, nc))
		nc.Close()
	}
	if n := countListed(t, recv(t, late)); n != 1 {
		t.Errorf("the one who waited is shown %d keys", n)
	}
}
