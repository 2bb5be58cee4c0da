package agent

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// TestLifetime lets keys expire, in the agent's own time.
func TestLifetime(t *testing.T) {
	clock := newHandClock()
	s := serve(t, Config{Source: fixed(), Clock: clock})
	nc := s.dial(t)
	want := func(n int) {
		t.Helper()
		if got := countListed(t, ask(t, nc, listThem)); got != n {
			t.Errorf("%d keys are listed, want %d", got, n)
		}
	}
	wantAnswer(t, nc, constrained(adding(ed(), nil), lifetime(10)), succeeded)
	wantAnswer(t, nc, constrained(adding(p256(), nil), lifetime(20)), succeeded)
	wantAnswer(t, nc, adding(rsa2k(), nil), succeeded)
	want(3)
	clock.forward(10*time.Second - 1)
	want(3)
	clock.forward(1)
	want(2)
	wantAnswer(t, nc, signMessage(publicOf(ed()).Marshal(), []byte("data"), 0), failed)
	wantAnswer(t, nc, constrained(adding(p256(), nil), lifetime(60)), succeeded) // a new one replaces the old
	clock.forward(30 * time.Second)
	want(2)
	wantAnswer(t, nc, adding(p256(), nil), succeeded) // for ever
	clock.forward(time.Hour)
	want(2)
	if n := clock.pending(); n > 0 {
		t.Errorf("%d alarms are set for nothing", n)
	}
}

// TestLifetimeWipes: at its deadline a key is wiped by itself, whether
// somebody asks for it or not; and where the alarm is late, by who asks.
func TestLifetimeWipes(t *testing.T) {
	clock := newHandClock()
	s := serve(t, Config{Source: fixed(), Clock: clock})
	nc := s.dial(t)
	key := func(blob ssh.PublicKey) *softwareKey {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.added.get(string(blob.Marshal())).Key.(*softwareKey)
	}
	wantAnswer(t, nc, constrained(adding(ed(), nil), lifetime(10)), succeeded)
	wantAnswer(t, nc, constrained(adding(p256(), nil), lifetime(10)), succeeded)
	first, other := key(publicOf(ed())), key(publicOf(p256()))
	clock.forward(10 * time.Second)
	if !first.memory.wiped || !other.memory.wiped {
		t.Error("keys are in memory after their deadline")
	}
	wantAnswer(t, nc, constrained(adding(ed(), nil), lifetime(10)), succeeded)
	late := key(publicOf(ed()))
	clock.mu.Lock()
	clear(clock.alarms) // the machine slept
	clock.now += time.Hour
	clock.mu.Unlock()
	wantAnswer(t, nc, signMessage(publicOf(ed()).Marshal(), []byte("data"), 0), failed)
	if !late.memory.wiped {
		t.Error("a key is in memory after somebody asked for it too late")
	}
}

// TestDefaultLifetime is for keys that come without one.
func TestDefaultLifetime(t *testing.T) {
	clock := newHandClock()
	s := serve(t, Config{Source: fixed(plain("file", rsa2k())), Clock: clock, Lifetime: time.Minute})
	nc := s.dial(t)
	wantAnswer(t, nc, adding(ed(), nil), succeeded)
	wantAnswer(t, nc, constrained(adding(p256(), nil), lifetime(600)), succeeded)
	clock.forward(time.Minute)
	if n := countListed(t, ask(t, nc, listThem)); n != 2 {
		t.Errorf("%d keys are listed after a minute, want the file's and the one with a lifetime of its own", n)
	}
}

// TestRemovedIsWiped goes through all ways for a key to go.
func TestRemovedIsWiped(t *testing.T) {
	blob := publicOf(ed()).Marshal()
	for name, remove := range map[string]func(t *testing.T, s *testServer, nc net.Conn){
		"remove": func(t *testing.T, _ *testServer, nc net.Conn) { wantAnswer(t, nc, removeMessage(blob), succeeded) },
		"remove all": func(t *testing.T, _ *testServer, nc net.Conn) {
			wantAnswer(t, nc, []byte{msgRemoveAllIdentities}, succeeded)
		},
		"added again": func(t *testing.T, _ *testServer, nc net.Conn) { wantAnswer(t, nc, adding(ed(), nil), succeeded) },
		"expired": func(t *testing.T, _ *testServer, nc net.Conn) {
			wantAnswer(t, nc, constrained(adding(ed(), nil), lifetime(0)), succeeded)
		},
		"forgotten": func(_ *testing.T, s *testServer, _ net.Conn) { s.Forget() },
		"forgotten while locked": func(t *testing.T, s *testServer, nc net.Conn) {
			wantAnswer(t, nc, lockMessage("p"), succeeded)
			s.Forget()
			wantAnswer(t, nc, unlockMessage("p"), succeeded)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, Config{Source: fixed()})
			nc := s.dial(t)
			wantAnswer(t, nc, adding(ed(), nil), succeeded)
			s.mu.Lock()
			key := s.added.get(string(blob)).Key.(*softwareKey)
			s.mu.Unlock()
			remove(t, s, nc)
			if !key.memory.wiped || key.memory.b != nil {
				t.Error("the key is still in memory")
			}
		})
	}
}

// TestRefusedIsWiped: what is parsed and not taken leaves nothing behind.
func TestRefusedIsWiped(t *testing.T) {
	s := serve(t, Config{Source: fixed(), NoSoftwareKeys: true})
	wantAnswer(t, s.dial(t), adding(ed(), nil), failed)
	if n := s.log.count("no-software-keys"); n != 1 {
		t.Errorf("the log gives the reason %d times", n)
	}
	if n := countListed(t, ask(t, s.dial(t), listThem)); n != 0 {
		t.Errorf("%d keys are held", n)
	}
}

// TestTooMany: there is a limit to what clients can add. One that is there can be
// added again, and one that goes makes room.
func TestTooMany(t *testing.T) {
	s := serve(t, Config{Source: fixed(plain("file", rsa2k()))})
	s.maxAdded = 2
	nc := s.dial(t)
	wantAnswer(t, nc, adding(ed(), nil), succeeded)
	wantAnswer(t, nc, adding(p256(), nil), succeeded)
	wantAnswer(t, nc, adding(p384(), nil), failed)
	wantAnswer(t, nc, adding(p256(), nil), succeeded)
	if n := countListed(t, ask(t, nc, listThem)); n != 3 {
		t.Errorf("%d keys are listed, want 3", n)
	}
	wantAnswer(t, nc, removeMessage(publicOf(ed()).Marshal()), succeeded)
	wantAnswer(t, nc, adding(p384(), nil), succeeded)
	if s.log.count(string(CauseTooMany)) != 1 {
		t.Errorf("the log does not say why:\n%s", s.log)
	}
}

// TestInFrontOfFile: an added key stands in front of the same key from a file,
// with its constraints, and hides the file's other names for it.
func TestInFrontOfFile(t *testing.T) {
	clock := newHandClock()
	file := plain("file", p256())
	cert := certified(file, 0, ssh.CertTimeInfinity)
	later := certified(file, 1, ssh.CertTimeInfinity)
	source := fixed(plain("other", rsa2k()), file, cert)
	s := serve(t, Config{Source: source, Clock: clock})
	nc := s.dial(t)
	toA := restricted(direct(toHost("", "a", hostA())))
	wantAnswer(t, nc, constrained(adding(p256(), nil), lifetime(60), toA), succeeded)
	answer := ask(t, nc, listThem)
	if n := countListed(t, answer); n != 2 {
		t.Errorf("%d keys are listed, want the other file's and the added one", n)
	}
	if !bytes.Contains(answer, []byte("me@here")) || bytes.Contains(answer, []byte("file@test")) {
		t.Error("it is the file's key that is listed")
	}
	for _, blob := range [][]byte{file.Public.Marshal(), cert.Public.Marshal()} {
		wantAnswer(t, nc, signMessage(blob, []byte("data"), 0), failed)
	}
	source.set.Store(NewSet([]Identity{file, cert, later})) // there is another certificate now
	for _, reload := range []func(){func() {}, s.Reload, func() { clock.forward(time.Minute) }} {
		reload()
		for _, id := range []Identity{file, cert, later} {
			wantAnswer(t, nc, signMessage(id.Public.Marshal(), []byte("data"), 0), failed)
		}
		if answer := ask(t, nc, listThem); bytes.Contains(answer, []byte("file@test")) {
			t.Error("what is from the file is listed")
		}
	}
	s.Reload() // after its lifetime
	for _, id := range []Identity{file, cert, later} {
		verify(t, file.Public, []byte("data"), ask(t, nc, signMessage(id.Public.Marshal(), []byte("data"), 0)))
	}
}

// TestExpiredCertificateAdded is offered, as by ssh-agent: it was not added by
// oversight.
func TestExpiredCertificateAdded(t *testing.T) {
	s := serve(t, Config{Source: fixed()})
	nc := s.dial(t)
	cert := certFor(ed(), func(c *ssh.Certificate) { c.ValidBefore = 1000 })
	wantAnswer(t, nc, adding(ed(), cert), succeeded)
	if n := countListed(t, ask(t, nc, listThem)); n != 1 {
		t.Errorf("%d keys are listed, want 1", n)
	}
	verify(t, cert.Key, []byte("data"), ask(t, nc, signMessage(cert.Marshal(), []byte("data"), 0)))
	wantAnswer(t, nc, removeMessage(cert.Marshal()), succeeded)
	wantAnswer(t, nc, removeMessage(cert.Marshal()), failed)
}

// TestSecretsLeaveTheQueue: the frames with private keys and passwords in them
// are overwritten.
func TestSecretsLeaveTheQueue(t *testing.T) {
	for _, m := range [][]byte{adding(ed(), nil), constrained(adding(ed(), nil)), lockMessage("p"), unlockMessage("p"), {msgAddSmartcardKey}, {msgAddSmartcardConstr}, {msgRemoveSmartcardKey}} {
		if !isSecret(m) {
			t.Errorf("request %d is left in memory", m[0])
		}
	}
	nc, theirs := net.Pipe()
	defer nc.Close()
	go func() { theirs.Write(frame(adding(ed(), nil))); theirs.Close() }()
	r := &reader{from: nc}
	m, err := readMessage(r, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if r.buf != [len(r.buf)]byte{} {
		t.Error("what was read ahead is left in the buffer")
	}
	if !bytes.Equal(m, adding(ed(), nil)) {
		t.Error("another message was read")
	}
}

// TestSecretsUnanswered: so are those that nobody waits for any more, and that
// of a request that makes the agent panic.
func TestSecretsUnanswered(t *testing.T) {
	for name, before := range map[string]func(){
		"hung up":  nil,
		"panicked": func() { panic("a request that nobody has thought of") },
	} {
		ours, theirs := net.Pipe()
		c := newConn(t.Context(), New(Config{Source: fixed(), Before: before}), ours)
		var requests [][]byte
		for range 3 {
			m := adding(ed(), nil)
			requests = append(requests, m)
			c.waiting.put(m)
		}
		theirs.Close()
		c.run()
		for i, m := range requests {
			if !bytes.Equal(m, make([]byte, len(m))) {
				t.Errorf("%s: request %d is left in memory", name, i)
			}
		}
	}
}

// TestSHA1 is refused or not, as the owner wants it.
func TestSHA1(t *testing.T) {
	id := plain("rsa", rsa2k())
	m := signMessage(id.Public.Marshal(), []byte("data"), 0)
	strict := serve(t, Config{Source: fixed(id)})
	wantAnswer(t, strict.dial(t), m, failed)
	if strict.log.count("--allow-sha1") != 1 {
		t.Errorf("the log does not name the way out:\n%s", strict.log)
	}
	lax := serve(t, Config{Source: fixed(id), AllowSHA1: true})
	answer := ask(t, lax.dial(t), m)
	sig, err := signatureIn(answer)
	if err != nil || sig.Format != ssh.KeyAlgoRSA {
		t.Fatalf("signature %v, %v, want ssh-rsa", sig, err)
	}
	verify(t, id.Public, []byte("data"), answer)
}
