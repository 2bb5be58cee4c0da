package agent

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// TestLifetime checks that keys are removed at their deadlines, and that no
// alarm is left set without a deadline.
func TestLifetime(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	s := serve(t, Config{Sources: []Source{fixed()}, Clock: clock})
	nc := s.dial(t)
	want := func(n int) {
		t.Helper()
		if got := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); got != n {
			t.Errorf("%d keys are listed, want %d", got, n)
		}
	}
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.Ed25519(), nil), lifetime(10)), sshtest.Succeeded)
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.P256(), nil), lifetime(20)), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.Adding(sshtest.RSA2048(), nil), sshtest.Succeeded)
	want(3)
	clock.Forward(10*time.Second - 1)
	want(3)
	clock.Forward(1)
	want(2)
	wantAnswer(t, nc, sshtest.SignMessage(sshtest.PublicOf(sshtest.Ed25519()).Marshal(), []byte("data"), 0), sshtest.Failed)
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.P256(), nil), lifetime(60)), sshtest.Succeeded) // takes the place of the first
	clock.Forward(30 * time.Second)
	want(2)
	wantAnswer(t, nc, sshtest.Adding(sshtest.P256(), nil), sshtest.Succeeded) // without a lifetime
	clock.Forward(time.Hour)
	want(2)
	if n := clock.Pending(); n > 0 {
		t.Errorf("%d alarms are set for nothing", n)
	}
}

// TestLifetimeWipes checks that a key is wiped at its deadline, or by the
// next request if the alarm comes too late.
func TestLifetimeWipes(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	s := serve(t, Config{Sources: []Source{fixed()}, Clock: clock})
	nc := s.dial(t)
	key := func(blob ssh.PublicKey) *softkey.Key {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.added.get(string(blob.Marshal())).Key.(*softkey.Key)
	}
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.Ed25519(), nil), lifetime(10)), sshtest.Succeeded)
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.P256(), nil), lifetime(10)), sshtest.Succeeded)
	first, other := key(sshtest.PublicOf(sshtest.Ed25519())), key(sshtest.PublicOf(sshtest.P256()))
	clock.Forward(10 * time.Second)
	if !isWiped(first) || !isWiped(other) {
		t.Error("keys are in memory after their deadline")
	}
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.Ed25519(), nil), lifetime(10)), sshtest.Succeeded)
	late := key(sshtest.PublicOf(sshtest.Ed25519()))
	clock.Sleep(time.Hour)
	wantAnswer(t, nc, sshtest.SignMessage(sshtest.PublicOf(sshtest.Ed25519()).Marshal(), []byte("data"), 0), sshtest.Failed)
	if !isWiped(late) {
		t.Error("a key is in memory after a request that came after its deadline")
	}
}

// TestDefaultLifetime checks that the default lifetime is for keys that are
// added without one, and not for those from sources.
func TestDefaultLifetime(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	s := serve(t, Config{Sources: []Source{fixed(plain("file", sshtest.RSA2048()))}, Clock: clock, Lifetime: time.Minute})
	nc := s.dial(t)
	wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded)
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.P256(), nil), lifetime(600)), sshtest.Succeeded)
	clock.Forward(time.Minute)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 2 {
		t.Errorf("%d keys are listed after a minute, want the key of the file and the one with its own lifetime", n)
	}
}

// isWiped reports whether a P-256 or Ed25519 key refuses to sign.
func isWiped(k *softkey.Key) bool {
	for _, hash := range []crypto.Hash{0, crypto.SHA256} {
		if _, err := k.Sign(context.Background(), nil, make([]byte, 32), hash); errors.Is(err, softkey.ErrWiped) {
			return true
		}
	}
	return false
}

// TestRemovedIsWiped checks that a key is wiped whichever way it is removed.
func TestRemovedIsWiped(t *testing.T) {
	t.Parallel()
	blob := sshtest.PublicOf(sshtest.Ed25519()).Marshal()
	for name, remove := range map[string]func(t *testing.T, s *testServer, nc net.Conn){
		"remove": func(t *testing.T, _ *testServer, nc net.Conn) {
			wantAnswer(t, nc, sshtest.RemoveMessage(blob), sshtest.Succeeded)
		},
		"remove all": func(t *testing.T, _ *testServer, nc net.Conn) {
			wantAnswer(t, nc, []byte{wire.MsgRemoveAllIdentities}, sshtest.Succeeded)
		},
		"added again": func(t *testing.T, _ *testServer, nc net.Conn) {
			wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded)
		},
		"expired": func(t *testing.T, _ *testServer, nc net.Conn) {
			wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.Ed25519(), nil), lifetime(0)), sshtest.Succeeded)
		},
		"forgotten": func(_ *testing.T, s *testServer, _ net.Conn) { s.Forget() },
		"forgotten while locked": func(t *testing.T, s *testServer, nc net.Conn) {
			wantAnswer(t, nc, lockMessage("p"), sshtest.Succeeded)
			s.Forget()
			wantAnswer(t, nc, unlockMessage("p"), sshtest.Succeeded)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, Config{Sources: []Source{fixed()}})
			nc := s.dial(t)
			wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded)
			s.mu.Lock()
			key := s.added.get(string(blob)).Key.(*softkey.Key)
			s.mu.Unlock()
			remove(t, s, nc)
			if !isWiped(key) {
				t.Error("the key is still in memory")
			}
		})
	}
}

// TestRefusedKeyIsNotHeld checks that an agent that must not hold private
// keys refuses them, and says why in the log.
func TestRefusedKeyIsNotHeld(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed()}, NoSoftwareKeys: true})
	wantAnswer(t, s.dial(t), sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Failed)
	if n := s.log.Count("no-software-keys"); n != 1 {
		t.Errorf("the log gives the reason %d times", n)
	}
	if n := sshtest.CountListed(t, sshtest.Exchange(t, s.dial(t), sshtest.ListThem)); n != 0 {
		t.Errorf("%d keys are held", n)
	}
}

// TestTooMany checks the limit on added keys: a key that is held can be
// added again, and removing one makes room for another.
func TestTooMany(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed(plain("file", sshtest.RSA2048()))}})
	s.added.max = 2
	nc := s.dial(t)
	wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.Adding(sshtest.P256(), nil), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.Adding(sshtest.P384(), nil), sshtest.Failed)
	wantAnswer(t, nc, sshtest.Adding(sshtest.P256(), nil), sshtest.Succeeded)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 3 {
		t.Errorf("%d keys are listed, want 3", n)
	}
	wantAnswer(t, nc, sshtest.RemoveMessage(sshtest.PublicOf(sshtest.Ed25519()).Marshal()), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.Adding(sshtest.P384(), nil), sshtest.Succeeded)
	if s.log.Count(string(refusal.TooMany)) != 1 {
		t.Errorf("the log does not say why:\n%s", s.log)
	}
}

// TestInFrontOfFile checks that an added key takes the place of the same key
// from a file, with its constraints, and hides the file's certificates for
// it until Reload.
func TestInFrontOfFile(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	file := plain("file", sshtest.P256())
	cert := certified(file, 0, ssh.CertTimeInfinity)
	later := certified(file, 1, ssh.CertTimeInfinity)
	source := fixed(plain("other", sshtest.RSA2048()), file, cert)
	s := serve(t, Config{Sources: []Source{source}, Clock: clock})
	nc := s.dial(t)
	toA := restricted(direct(toHost("", "a", sshtest.HostA())))
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.P256(), nil), lifetime(60), toA), sshtest.Succeeded)
	answer := sshtest.Exchange(t, nc, sshtest.ListThem)
	if n := sshtest.CountListed(t, answer); n != 2 {
		t.Errorf("%d keys are listed, want the other file's and the added one", n)
	}
	if !bytes.Contains(answer, []byte("me@here")) || bytes.Contains(answer, []byte("file@test")) {
		t.Error("the file's key is listed")
	}
	for _, blob := range [][]byte{file.Public.Marshal(), cert.Public.Marshal()} {
		wantAnswer(t, nc, sshtest.SignMessage(blob, []byte("data"), 0), sshtest.Failed)
	}
	source.set.Store(NewSet([]Identity{file, cert, later})) // one more certificate
	for _, reload := range []func(){func() {}, s.Reload, func() { clock.Forward(time.Minute) }} {
		reload()
		for _, id := range []Identity{file, cert, later} {
			wantAnswer(t, nc, sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0), sshtest.Failed)
		}
		if answer := sshtest.Exchange(t, nc, sshtest.ListThem); bytes.Contains(answer, []byte("file@test")) {
			t.Error("a key of the file is listed")
		}
	}
	s.Reload() // after its lifetime
	for _, id := range []Identity{file, cert, later} {
		sshtest.VerifyAnswer(t, file.Public, []byte("data"), sshtest.Exchange(t, nc, sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0)))
	}
}

// TestExpiredCertificateAdded checks that an expired certificate is offered
// if a client adds it, as by ssh-agent.
func TestExpiredCertificateAdded(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed()}})
	nc := s.dial(t)
	cert := sshtest.CertFor(sshtest.Ed25519(), func(c *ssh.Certificate) { c.ValidBefore = 1000 })
	wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), cert), sshtest.Succeeded)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 1 {
		t.Errorf("%d keys are listed, want 1", n)
	}
	sshtest.VerifyAnswer(t, cert.Key, []byte("data"), sshtest.Exchange(t, nc, sshtest.SignMessage(cert.Marshal(), []byte("data"), 0)))
	wantAnswer(t, nc, sshtest.RemoveMessage(cert.Marshal()), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.RemoveMessage(cert.Marshal()), sshtest.Failed)
}

// TestSecretsAreOverwritten checks that requests with secrets in them are
// known as such, and that the reader keeps no copy.
func TestSecretsAreOverwritten(t *testing.T) {
	t.Parallel()
	for _, m := range [][]byte{sshtest.Adding(sshtest.Ed25519(), nil), constrained(sshtest.Adding(sshtest.Ed25519(), nil)), lockMessage("p"), unlockMessage("p"), {wire.MsgAddSmartcardKey}, {wire.MsgAddSmartcardConstr}, {wire.MsgRemoveSmartcardKey}} {
		if !New(NewKeyring(Config{}), nil).isSecret(m) {
			t.Errorf("request %d is left in memory", m[0])
		}
	}
}

// TestSecretsUnanswered checks that requests with secrets are overwritten
// even if the client hangs up or the agent panics.
func TestSecretsUnanswered(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(){
		"hung up":  nil,
		"panicked": func() { panic("an unexpected request") },
	} {
		ours, theirs := net.Pipe()
		c := newConn(t.Context(), New(NewKeyring(Config{Sources: []Source{fixed()}, Before: before}), nil), ours)
		var requests [][]byte
		for range 3 {
			m := sshtest.Adding(sshtest.Ed25519(), nil)
			requests = append(requests, m)
			c.requests <- m
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

// TestSHA1 checks that SHA-1 is refused unless it is allowed.
func TestSHA1(t *testing.T) {
	t.Parallel()
	id := plain("rsa", sshtest.RSA2048())
	m := sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0)
	strict := serve(t, Config{Sources: []Source{fixed(id)}})
	wantAnswer(t, strict.dial(t), m, sshtest.Failed)
	if strict.log.Count("--allow-sha1") != 1 {
		t.Errorf("the log does not name the option:\n%s", strict.log)
	}
	lax := serve(t, Config{Sources: []Source{fixed(id)}, AllowSHA1: true})
	answer := sshtest.Exchange(t, lax.dial(t), m)
	sig, err := sshtest.SignatureIn(answer)
	if err != nil || sig.Format != ssh.KeyAlgoRSA {
		t.Fatalf("signature %v, %v, want ssh-rsa", sig, err)
	}
	sshtest.VerifyAnswer(t, id.Public, []byte("data"), answer)
}
