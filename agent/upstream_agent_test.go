//lint:file-ignore SA1019 ssh-agent holds DSA keys and this agent does not. They protect nothing here.

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

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// dsaKey returns a key of a type that this agent does not hold and the
// ssh-agent of Debian 12 does.
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
	return sshtest.Message(wire.MsgAddIdentity, ssh.InsecureKeyAlgoDSA, k.P, k.Q, k.G, k.Y, k.X, "old@here")
}

// TestUpstreamAgent checks that the keys of this agent and of an ssh-agent
// behind it can be used over one socket.
func TestUpstreamAgent(t *testing.T) {
	t.Parallel()
	path := sshtest.SshAgent(t)
	s := serve(t, Config{Sources: []Source{fixed(plain("file", sshtest.P256()))}, Upstreams: []upstream.Agent{upstreamAt(path)}})
	nc, direct := s.dial(t), sshtest.DialUnix(t, path)
	count := func(want, wantDirect int) {
		t.Helper()
		if n, d := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)), sshtest.CountListed(t, sshtest.Exchange(t, direct, sshtest.ListThem)); n != want || d != wantDirect {
			t.Errorf("%d keys are listed, %d by the upstream; want %d and %d", n, d, want, wantDirect)
		}
	}
	pub := sshtest.Must(ssh.NewPublicKey(&dsaKey().PublicKey))
	wantAnswer(t, nc, addingDSA(), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded)
	wantAnswer(t, direct, sshtest.Adding(sshtest.RSA2048(), nil), sshtest.Succeeded)
	count(4, 2)
	wantAnswer(t, direct, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded) // now both hold it
	count(4, 3)
	answer := sshtest.Exchange(t, nc, sshtest.ListThem)
	if file, up := bytes.Index(answer, []byte("file@test")), bytes.Index(answer, []byte("old@here")); file < 0 || up < file {
		t.Error("the keys of the upstream agent are not listed last")
	}
	data := []byte("data")
	sshtest.VerifyAnswer(t, pub, data, sshtest.Exchange(t, nc, sshtest.SignMessage(pub.Marshal(), data, 0)))
	sshtest.VerifyAnswer(t, sshtest.PublicOf(sshtest.RSA2048()), data, sshtest.Exchange(t, nc, sshtest.SignMessage(sshtest.PublicOf(sshtest.RSA2048()).Marshal(), data, 2)))
	wantAnswer(t, nc, sshtest.SignMessage(sshtest.PublicOf(sshtest.P521()).Marshal(), data, 0), sshtest.Failed) // an unknown key

	wantAnswer(t, nc, lockMessage("p"), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.SignMessage(pub.Marshal(), data, 0), sshtest.Failed)
	count(0, 3)
	wantAnswer(t, nc, unlockMessage("p"), sshtest.Succeeded)

	wantAnswer(t, nc, sshtest.RemoveMessage(pub.Marshal()), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.RemoveMessage(pub.Marshal()), sshtest.Failed)
	count(3, 2)
	wantAnswer(t, nc, []byte{wire.MsgRemoveAllIdentities}, sshtest.Succeeded)
	count(0, 0)
}

// TestNoUpstream checks that keys of other types are refused without an
// upstream agent, and that the log names the type.
func TestNoUpstream(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed()}})
	nc := s.dial(t)
	wantAnswer(t, nc, addingDSA(), sshtest.Failed)
	for name, m := range sshtest.ForeignKeys() {
		wantAnswer(t, nc, m, sshtest.Failed)
		if s.log.Count("type="+name) == 0 && s.log.Count("type=\""+name) == 0 {
			t.Errorf("%s: the log does not name the type:\n%s", name, s.log)
		}
	}
	for _, number := range []byte{wire.MsgAddSmartcardKey, wire.MsgAddSmartcardConstr, wire.MsgRemoveSmartcardKey} {
		wantAnswer(t, nc, sshtest.Message(number, "/usr/lib/pkcs11.so", "1234"), sshtest.Failed)
	}
}

// TestUpstreamMissing checks requests while an upstream agent is not there:
// it has no keys, so removing all succeeds.
func TestUpstreamMissing(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed(plain("file", sshtest.P256()))}, Upstreams: []upstream.Agent{upstreamAt(t.TempDir() + "/none")}})
	nc := s.dial(t)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 1 {
		t.Errorf("%d keys are listed, want this agent's own", n)
	}
	wantAnswer(t, nc, addingDSA(), sshtest.Failed)
	wantAnswer(t, nc, sshtest.SignMessage(sshtest.PublicOf(sshtest.P521()).Marshal(), nil, 0), sshtest.Failed)
	wantAnswer(t, nc, []byte{wire.MsgRemoveAllIdentities}, sshtest.Succeeded)
}

// saysYes answers as an agent that accepts everything and lists nothing.
func saysYes(m []byte) []byte {
	if m[0] == wire.MsgRequestIdentities {
		return listOf()
	}
	return wire.Success()
}

// TestNoProvidersOfRemoteClients checks that no request of another machine
// that names code reaches an upstream agent, neither for smart cards nor for
// FIDO keys (CVE-2023-38408).
func TestNoProvidersOfRemoteClients(t *testing.T) {
	t.Parallel()
	up := sshtest.Answering(t, saysYes)
	s := serve(t, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{upstreamAt(up.Path)}})
	provider := func(name string) []byte {
		return append(bytes.Clone(sshtest.ForeignKeys()["sk-ssh-ed25519@openssh.com"]), extensionConstraint(restrict.ExtProvider, wire.AppendString(nil, name)...)...)
	}
	cards := [][]byte{
		sshtest.Message(wire.MsgAddSmartcardKey, "/usr/lib/pkcs11.so", "1234"),
		sshtest.Message(wire.MsgAddSmartcardConstr, "/usr/lib/pkcs11.so", "1234"),
		sshtest.Message(wire.MsgRemoveSmartcardKey, "/usr/lib/pkcs11.so", "1234"),
	}
	local := s.dial(t)
	for _, m := range append(cards, provider("/usr/lib/sk.so"), provider("internal")) {
		wantAnswer(t, local, m, sshtest.Succeeded)
	}
	// The first name is part of the key handle, so the second one counts.
	decoy := extensionConstraint(restrict.ExtProvider, wire.AppendString(nil, "internal")...)
	hidden := append(
		sshtest.Message(wire.MsgAddIDConstrained, "sk-ssh-ed25519@openssh.com", []byte("public"), "ssh:", byte(1), decoy, "", "comment"),
		extensionConstraint(restrict.ExtProvider, wire.AppendString(nil, "/usr/lib/sk.so")...)...)
	terminated := append(bytes.Clone(sshtest.ForeignKeys()["sk-ssh-ed25519@openssh.com"]),
		extensionConstraint(restrict.ExtProvider+"\x00", wire.AppendString(nil, "/usr/lib/sk.so")...)...)
	passed := up.Received()
	for name, bind := range map[string][]byte{
		"authentication": sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), "sid", false)),
		"forwarding":     sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), "sid", true)),
		"false":          sshtest.Extension(restrict.ExtSessionBind, nil),
	} {
		t.Run(name, func(t *testing.T) {
			nc := s.dial(t)
			sshtest.Exchange(t, nc, bind)
			for _, m := range append(cards, provider("/usr/lib/sk.so"), provider(""), hidden, terminated) {
				wantAnswer(t, nc, m, sshtest.Failed)
			}
			if got := up.Received(); !reflect.DeepEqual(got, passed) {
				t.Errorf("the upstream agent got %x", got)
			}
		})
	}
	nc := s.dial(t)
	sshtest.Exchange(t, nc, sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), "sid", true)))
	wantAnswer(t, nc, provider("Internal"), sshtest.Succeeded) // its code is part of ssh-agent
}

// TestRestrictedUpstream checks that a key with destinations is passed only
// to an agent that proves that it checks bindings.
func TestRestrictedUpstream(t *testing.T) {
	t.Parallel()
	gullible := sshtest.Answering(t, saysYes)
	ignorant := sshtest.Answering(t, func(m []byte) []byte {
		if m[0] == wire.MsgExtension {
			return wire.Failure()
		}
		return saysYes(m)
	})
	toA := restricted(direct(toHost("", "a", sshtest.HostA())))
	body := toA[len(extensionConstraint(restrict.ExtRestrictDestination)):]
	terminated := extensionConstraint(restrict.ExtRestrictDestination+"\x00", body...)
	for name, up := range map[string]*sshtest.Fake{"gullible": gullible, "ignorant": ignorant} {
		nc := serve(t, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{upstreamAt(up.Path)}}).dial(t)
		for _, limits := range [][]byte{toA, terminated} {
			wantAnswer(t, nc, constrained(addingDSA(), limits), sshtest.Failed)
			if up.Has(constrained(addingDSA(), limits)) {
				t.Errorf("%s: it got the key", name)
			}
		}
		wantAnswer(t, nc, addingDSA(), sshtest.Succeeded)
	}
	// ssh-agent accepts it, and does not list it for other hosts.
	path := sshtest.SshAgent(t)
	s := serve(t, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{upstreamAt(gullible.Path), upstreamAt(path)}})
	wantAnswer(t, s.dial(t), constrained(addingDSA(), toA), sshtest.Succeeded)
	pub := sshtest.Must(ssh.NewPublicKey(&dsaKey().PublicKey))
	for host, want := range map[ssh.Signer]int{sshtest.HostA(): 1, sshtest.HostB(): 0} {
		nc := serve(t, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{upstreamAt(path)}}).dial(t)
		wantAnswer(t, nc, sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(host, "sid", false)), sshtest.Succeeded)
		if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != want {
			t.Errorf("%d keys are listed, want %d", n, want)
		}
		data := sshtest.Login(pub, "sid", "me", nil)
		answer := sshtest.Exchange(t, nc, sshtest.SignMessage(pub.Marshal(), data, 0))
		if (answer[0] == wire.MsgSignResponse) != (want == 1) {
			t.Errorf("the signature is answered with %d", answer[0])
		}
	}
}

// TestDefaultLifetimeUpstream checks that the default lifetime is added to
// keys and smart cards that are passed on.
func TestDefaultLifetimeUpstream(t *testing.T) {
	t.Parallel()
	up := sshtest.Answering(t, saysYes)
	s := serve(t, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{upstreamAt(up.Path)}, Lifetime: time.Minute})
	nc := s.dial(t)
	wantAnswer(t, nc, addingDSA(), sshtest.Succeeded)
	if !up.Has(constrained(addingDSA(), lifetime(60))) {
		t.Error("the upstream agent did not get the lifetime")
	}
	own := constrained(addingDSA(), confirmed(), lifetime(600))
	wantAnswer(t, nc, own, sshtest.Succeeded)
	if !up.Has(own) {
		t.Error("the request with its own lifetime was changed")
	}
	wantAnswer(t, nc, sshtest.Message(wire.MsgAddIdentity, "ssh-unheard-of", "key", "comment"), sshtest.Failed)

	card := sshtest.Message(wire.MsgAddSmartcardKey, "/usr/lib/pkcs11.so", "1234")
	certs := extensionConstraint("associated-certs-v00@openssh.com", append([]byte{restrict.ConstrainLifetime}, wire.AppendString(nil, "\x01")...)...)
	for _, c := range []struct{ sent, passed []byte }{
		{card, constrainedCard(card, lifetime(60))},
		{constrainedCard(card, confirmed(), certs), constrainedCard(card, confirmed(), certs, lifetime(60))},
		{constrainedCard(card, certs, lifetime(600)), constrainedCard(card, certs, lifetime(600))},
	} {
		wantAnswer(t, nc, c.sent, sshtest.Succeeded)
		if !up.Has(c.passed) {
			t.Errorf("%x: the upstream agent got %x", c.sent, up.Received())
		}
	}
	remove := sshtest.Message(wire.MsgRemoveSmartcardKey, "/usr/lib/pkcs11.so", "")
	wantAnswer(t, nc, remove, sshtest.Succeeded)
	if !up.Has(remove) {
		t.Error("the removal was changed")
	}
	wantAnswer(t, nc, card[:len(card)-1], sshtest.Failed)
}

// constrainedCard returns a request to add a smart card with constraints.
func constrainedCard(m []byte, limits ...[]byte) []byte {
	m = slices.Concat(m, slices.Concat(limits...))
	m[0] = wire.MsgAddSmartcardConstr
	return m
}

// TestNoSoftwareKeysUpstream checks that keys which this agent must not hold
// are passed on.
func TestNoSoftwareKeysUpstream(t *testing.T) {
	t.Parallel()
	path := sshtest.SshAgent(t)
	nc := serve(t, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{upstreamAt(path)}, NoSoftwareKeys: true}).dial(t)
	wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, sshtest.DialUnix(t, path), sshtest.ListThem)); n != 1 {
		t.Errorf("the upstream holds %d keys", n)
	}
}

// TestUpstreamsInOrder checks that the second upstream agent gets what the
// first refuses.
func TestUpstreamsInOrder(t *testing.T) {
	t.Parallel()
	refuses := sshtest.Answering(t, func(m []byte) []byte {
		if m[0] == wire.MsgRequestIdentities {
			return listOf()
		}
		return wire.Failure()
	})
	second := sshtest.SshAgent(t)
	s := serve(t, Config{Sources: []Source{fixed()}, Upstreams: []upstream.Agent{upstreamAt(refuses.Path), upstreamAt(second)}})
	var nc net.Conn = s.dial(t)
	wantAnswer(t, nc, addingDSA(), sshtest.Succeeded)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, sshtest.DialUnix(t, second), sshtest.ListThem)); n != 1 {
		t.Errorf("the second upstream holds %d keys", n)
	}
}
