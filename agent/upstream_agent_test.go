//lint:file-ignore SA1019 DSA is what OpenSSH's agent holds and we do not: nothing is protected by it here.

package agent

import (
	"bytes"
	"crypto/dsa"
	"crypto/rand"
	"net"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// dsaKey is of a type that we do not hold and OpenSSH's agent of Debian 12
// does.
var dsaKey = sync.OnceValue(func() *dsa.PrivateKey {
	k := new(dsa.PrivateKey)
	if err := dsa.GenerateParameters(&k.Parameters, rand.Reader, dsa.L1024N160); err != nil {
		panic(err)
	}
	if err := dsa.GenerateKey(k, rand.Reader); err != nil {
		panic(err)
	}
	return k
})

func addingDSA() []byte {
	k := dsaKey()
	return message(msgAddIdentity, ssh.InsecureKeyAlgoDSA, k.P, k.Q, k.G, k.Y, k.X, "old@here")
}

// TestUpstreamAgent has OpenSSH's agent behind ours, as one socket.
func TestUpstreamAgent(t *testing.T) {
	path := sshAgent(t)
	s := serve(t, Config{Source: fixed(plain("file", p256())), Upstreams: []Upstream{at(path)}})
	nc, direct := s.dial(t), dialUnix(t, path)
	count := func(want, wantDirect int) {
		t.Helper()
		if n, d := countListed(t, ask(t, nc, listThem)), countListed(t, ask(t, direct, listThem)); n != want || d != wantDirect {
			t.Errorf("%d keys are listed, %d by the upstream; want %d and %d", n, d, want, wantDirect)
		}
	}
	pub := must(ssh.NewPublicKey(&dsaKey().PublicKey))
	wantAnswer(t, nc, addingDSA(), succeeded)
	wantAnswer(t, nc, adding(ed(), nil), succeeded)
	wantAnswer(t, direct, adding(rsa2k(), nil), succeeded)
	count(4, 2)
	wantAnswer(t, direct, adding(ed(), nil), succeeded) // both have it now
	count(4, 3)
	answer := ask(t, nc, listThem)
	if file, up := bytes.Index(answer, []byte("file@test")), bytes.Index(answer, []byte("old@here")); file < 0 || up < file {
		t.Error("the upstream's keys are not behind our own")
	}
	data := []byte("data")
	verify(t, pub, data, ask(t, nc, signMessage(pub.Marshal(), data, 0)))
	verify(t, publicOf(rsa2k()), data, ask(t, nc, signMessage(publicOf(rsa2k()).Marshal(), data, 2)))
	wantAnswer(t, nc, signMessage(publicOf(p521()).Marshal(), data, 0), failed) // nobody's

	wantAnswer(t, nc, lockMessage("p"), succeeded)
	wantAnswer(t, nc, signMessage(pub.Marshal(), data, 0), failed)
	count(0, 3)
	wantAnswer(t, nc, unlockMessage("p"), succeeded)

	wantAnswer(t, nc, removeMessage(pub.Marshal()), succeeded)
	wantAnswer(t, nc, removeMessage(pub.Marshal()), failed)
	count(3, 2)
	wantAnswer(t, nc, []byte{msgRemoveAllIdentities}, succeeded)
	count(0, 0)
}

// TestNoUpstream refuses what we do not hold, by name.
func TestNoUpstream(t *testing.T) {
	s := serve(t, Config{Source: fixed()})
	nc := s.dial(t)
	wantAnswer(t, nc, addingDSA(), failed)
	for name, m := range foreignKeys() {
		wantAnswer(t, nc, m, failed)
		if s.log.count("type="+name) == 0 && s.log.count("type=\""+name) == 0 {
			t.Errorf("%s: the log does not name the type:\n%s", name, s.log)
		}
	}
	for _, number := range []byte{msgAddSmartcardKey, msgAddSmartcardConstr, msgRemoveSmartcardKey} {
		wantAnswer(t, nc, message(number, "/usr/lib/pkcs11.so", "1234"), failed)
	}
}

// TestUpstreamMissing: remove all succeeds, for one that is not there has no
// keys; and what only it could hold is refused.
func TestUpstreamMissing(t *testing.T) {
	s := serve(t, Config{Source: fixed(plain("file", p256())), Upstreams: []Upstream{at(t.TempDir() + "/none")}})
	nc := s.dial(t)
	if n := countListed(t, ask(t, nc, listThem)); n != 1 {
		t.Errorf("%d keys are listed, want our own", n)
	}
	wantAnswer(t, nc, addingDSA(), failed)
	wantAnswer(t, nc, signMessage(publicOf(p521()).Marshal(), nil, 0), failed)
	wantAnswer(t, nc, []byte{msgRemoveAllIdentities}, succeeded)
}

// saysYes is an agent that takes everything, and lists nothing.
func saysYes(m []byte) []byte {
	if m[0] == msgRequestIdentities {
		return listOf()
	}
	return success()
}

// TestNothingRemoteUpstream: who comes from another machine has no code loaded,
// neither a smart card's nor that of a FIDO key (CVE-2023-38408).
func TestNothingRemoteUpstream(t *testing.T) {
	up := answering(t, saysYes)
	s := serve(t, Config{Source: fixed(), Upstreams: []Upstream{at(up.path)}})
	provider := func(name string) []byte {
		return append(bytes.Clone(foreignKeys()["sk-ssh-ed25519@openssh.com"]), extensionConstraint(extProvider, appendString(nil, name)...)...)
	}
	cards := [][]byte{
		message(msgAddSmartcardKey, "/usr/lib/pkcs11.so", "1234"),
		message(msgAddSmartcardConstr, "/usr/lib/pkcs11.so", "1234"),
		message(msgRemoveSmartcardKey, "/usr/lib/pkcs11.so", "1234"),
	}
	local := s.dial(t)
	for _, m := range append(cards, provider("/usr/lib/sk.so"), provider("internal")) {
		wantAnswer(t, local, m, succeeded)
	}
	// Of two names the second counts, if the first is in the key handle.
	decoy := extensionConstraint(extProvider, appendString(nil, "internal")...)
	hidden := append(
		message(msgAddIDConstrained, "sk-ssh-ed25519@openssh.com", []byte("public"), "ssh:", byte(1), decoy, "", "comment"),
		extensionConstraint(extProvider, appendString(nil, "/usr/lib/sk.so")...)...)
	terminated := append(bytes.Clone(foreignKeys()["sk-ssh-ed25519@openssh.com"]),
		extensionConstraint(extProvider+"\x00", appendString(nil, "/usr/lib/sk.so")...)...)
	passed := up.received()
	for name, bind := range map[string][]byte{
		"authentication": extension(extSessionBind, bindBody(hostA(), "sid", false)),
		"forwarding":     extension(extSessionBind, bindBody(hostA(), "sid", true)),
		"false":          extension(extSessionBind, nil),
	} {
		t.Run(name, func(t *testing.T) {
			nc := s.dial(t)
			ask(t, nc, bind)
			for _, m := range append(cards, provider("/usr/lib/sk.so"), provider(""), hidden, terminated) {
				wantAnswer(t, nc, m, failed)
			}
			if got := up.received(); !reflect.DeepEqual(got, passed) {
				t.Errorf("the upstream was told %x", got)
			}
		})
	}
	nc := s.dial(t)
	ask(t, nc, extension(extSessionBind, bindBody(hostA(), "sid", true)))
	wantAnswer(t, nc, provider("Internal"), succeeded) // its code is there anyway
}

// TestRestrictedUpstream: a key with destinations goes only to an agent that
// proves to check bindings.
func TestRestrictedUpstream(t *testing.T) {
	gullible := answering(t, saysYes)
	ignorant := answering(t, func(m []byte) []byte {
		if m[0] == msgExtension {
			return failure()
		}
		return saysYes(m)
	})
	ds := []Destination{direct(toHost("", "a", hostA()))}
	toA := restricted(ds...)
	terminated := extensionConstraint(extRestrictDestination+"\x00", appendString(nil, string(marshalDestinations(ds)))...)
	for name, up := range map[string]*fake{"gullible": gullible, "ignorant": ignorant} {
		nc := serve(t, Config{Source: fixed(), Upstreams: []Upstream{at(up.path)}}).dial(t)
		for _, limits := range [][]byte{toA, terminated} {
			wantAnswer(t, nc, constrained(addingDSA(), limits), failed)
			if up.has(constrained(addingDSA(), limits)) {
				t.Errorf("%s: it was told the key", name)
			}
		}
		wantAnswer(t, nc, addingDSA(), succeeded)
	}
	// OpenSSH's agent takes it, and keeps it from other hosts.
	path := sshAgent(t)
	s := serve(t, Config{Source: fixed(), Upstreams: []Upstream{at(gullible.path), at(path)}})
	wantAnswer(t, s.dial(t), constrained(addingDSA(), toA), succeeded)
	pub := must(ssh.NewPublicKey(&dsaKey().PublicKey))
	for host, want := range map[ssh.Signer]int{hostA(): 1, hostB(): 0} {
		nc := serve(t, Config{Source: fixed(), Upstreams: []Upstream{at(path)}}).dial(t)
		wantAnswer(t, nc, extension(extSessionBind, bindBody(host, "sid", false)), succeeded)
		if n := countListed(t, ask(t, nc, listThem)); n != want {
			t.Errorf("%d keys are listed, want %d", n, want)
		}
		data := login(pub, "sid", "me", nil)
		answer := ask(t, nc, signMessage(pub.Marshal(), data, 0))
		if (answer[0] == msgSignResponse) != (want == 1) {
			t.Errorf("the signature is answered with %d", answer[0])
		}
	}
}

// TestDefaultLifetimeUpstream: the lifetime that keys have here goes along.
func TestDefaultLifetimeUpstream(t *testing.T) {
	up := answering(t, saysYes)
	s := serve(t, Config{Source: fixed(), Upstreams: []Upstream{at(up.path)}, Lifetime: time.Minute})
	nc := s.dial(t)
	wantAnswer(t, nc, addingDSA(), succeeded)
	if !up.has(constrained(addingDSA(), lifetime(60))) {
		t.Error("the upstream was not told the lifetime")
	}
	own := constrained(addingDSA(), confirmed(), lifetime(600))
	wantAnswer(t, nc, own, succeeded)
	if !up.has(own) {
		t.Error("the key's own lifetime did not go along as it was")
	}
	wantAnswer(t, nc, message(msgAddIdentity, "ssh-unheard-of", "key", "comment"), failed)

	card := message(msgAddSmartcardKey, "/usr/lib/pkcs11.so", "1234")
	certs := extensionConstraint(extAssociatedCerts, append([]byte{constrainLifetime}, appendString(nil, "\x01")...)...)
	for _, c := range []struct{ sent, passed []byte }{
		{card, constrainedCard(card, lifetime(60))},
		{constrainedCard(card, confirmed(), certs), constrainedCard(card, confirmed(), certs, lifetime(60))},
		{constrainedCard(card, certs, lifetime(600)), constrainedCard(card, certs, lifetime(600))},
	} {
		wantAnswer(t, nc, c.sent, succeeded)
		if !up.has(c.passed) {
			t.Errorf("%x: the upstream was told %x", c.sent, up.received())
		}
	}
	remove := message(msgRemoveSmartcardKey, "/usr/lib/pkcs11.so", "")
	wantAnswer(t, nc, remove, succeeded)
	if !up.has(remove) {
		t.Error("the removal did not go along as it was")
	}
	wantAnswer(t, nc, card[:len(card)-1], failed)
}

// constrainedCard is constrained for smart cards.
func constrainedCard(m []byte, limits ...[]byte) []byte {
	m = slices.Concat(m, slices.Concat(limits...))
	m[0] = msgAddSmartcardConstr
	return m
}

// TestNoSoftwareKeysUpstream: what we are not to hold, others may.
func TestNoSoftwareKeysUpstream(t *testing.T) {
	path := sshAgent(t)
	nc := serve(t, Config{Source: fixed(), Upstreams: []Upstream{at(path)}, NoSoftwareKeys: true}).dial(t)
	wantAnswer(t, nc, adding(ed(), nil), succeeded)
	if n := countListed(t, ask(t, dialUnix(t, path), listThem)); n != 1 {
		t.Errorf("the upstream holds %d keys", n)
	}
}

// TestUpstreamsInOrder: what the first does not take goes to the second.
func TestUpstreamsInOrder(t *testing.T) {
	refuses := answering(t, func(m []byte) []byte {
		if m[0] == msgRequestIdentities {
			return listOf()
		}
		return failure()
	})
	second := sshAgent(t)
	s := serve(t, Config{Source: fixed(), Upstreams: []Upstream{at(refuses.path), at(second)}})
	var nc net.Conn = s.dial(t)
	wantAnswer(t, nc, addingDSA(), succeeded)
	if n := countListed(t, ask(t, dialUnix(t, second), listThem)); n != 1 {
		t.Errorf("the second upstream holds %d keys", n)
	}
}
