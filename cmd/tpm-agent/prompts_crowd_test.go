package main

import (
	"net"
	"sync"
	"testing"
)

// TestPromptShared checks that fifty requests for one key share one prompt, even if
// half of the clients hang up, and that a wrong PIN costs one try for all of them.
func TestPromptShared(t *testing.T) {
	t.Parallel()
	const n = 50
	s := newScene(t, patient, "")
	a := newAskpass(t)
	d := s.serve(a.env())
	for _, test := range []struct {
		name    string
		hangUp  bool
		answers []string
		cost    int
	}{
		{"right", true, []string{"say " + s.pin}, 0},
		{"wrong and right", false, []string{"say " + s.wrong(8), "say " + s.pin}, 1},
		{"wrong, and half hang up", true, []string{"say " + s.wrong(8), "say " + s.pin}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.t = t
			s.costs(test.cost, func() { d.crowd(a, n, test.hangUp, test.answers) })
		})
		s.t = t
	}
}

// crowd lets n clients request signatures with the same key while the prompt for it is
// open, and answers the prompt. If hangUp is set, every second client hangs up before,
// starting with the first.
func (d *agentRun) crowd(a *askpass, n int, hangUp bool, answers []string) {
	d.t.Helper()
	var conns []net.Conn
	for range n {
		conn := connect(d.t, d.socket)
		defer conn.Close()
		requestSignature(d.t, conn, d.public)
		conns = append(conns, conn)
	}
	q := a.next()
	d.awaitRead(conns)
	var stay []net.Conn
	for i, conn := range conns {
		if hangUp && i%2 == 0 {
			conn.Close()
		} else {
			stay = append(stay, conn)
		}
	}
	var all sync.WaitGroup
	for i, line := range answers {
		if i > 0 {
			q = a.next()
		}
		q.does(line)
	}
	for i, conn := range stay {
		all.Go(func() {
			if message := answer(d.t, conn); message[0] != 14 {
				d.t.Errorf("client %d of %d got the answer %x", i, len(stay), message)
			}
		})
	}
	all.Wait()
	if q := a.poll(); q != nil {
		d.t.Errorf("the agent asked again: %s", q.text)
	}
}
