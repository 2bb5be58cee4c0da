package agent

import (
	"bytes"
	"encoding/binary"
	"math"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// constrained returns a request to add a key with constraints.
func constrained(addition []byte, constraints ...[]byte) []byte {
	m := bytes.Clone(addition)
	m[0] = wire.MsgAddIDConstrained
	return append(m, bytes.Join(constraints, nil)...)
}

func lifetime(seconds uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{restrict.ConstrainLifetime}, seconds)
}

func confirmed() []byte { return []byte{restrict.ConstrainConfirm} }

func extensionConstraint(name string, body ...byte) []byte {
	return append(wire.AppendString([]byte{restrict.ConstrainExtension}, name), body...)
}

func restricted(ds ...restrict.Destination) []byte {
	if len(ds) == 0 {
		return extensionConstraint(restrict.ExtRestrictDestination, 0, 0, 0, 0)
	}
	return (&restrict.Constraints{Destinations: ds}).Marshal()
}

// conversation has the requests that one client sends to an agent without keys. A nil
// message opens a new connection.
type conversation [][]byte

// additions returns conversations about keys that are added.
func additions() map[string]conversation {
	p256Add, edAdd, rsaAdd := sshtest.Adding(sshtest.P256(), nil), sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Adding(sshtest.RSA2048(), nil)
	p256Blob, edBlob, rsaBlob := sshtest.PublicOf(sshtest.P256()).Marshal(), sshtest.PublicOf(sshtest.Ed25519()).Marshal(), sshtest.PublicOf(sshtest.RSA2048()).Marshal()
	cert := sshtest.CertFor(sshtest.Ed25519())
	data := []byte("some data to sign")
	sid, user := "the session identifier", "me"
	toA := restricted(direct(toHost("", "a", sshtest.HostA())))
	bindA := sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), sid, false))
	bindB := sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostB(), sid, false))
	forwardA := sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), "first", true))
	junk := func(m []byte) []byte { return append(bytes.Clone(m), "junk"...) }
	return map[string]conversation{
		"ed25519":                 {edAdd, sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0), sshtest.SignMessage(edBlob, data, 6), sshtest.SignMessage(edBlob, nil, 0)},
		"ecdsa":                   {p256Add, sshtest.ListThem, sshtest.SignMessage(p256Blob, data, 0)},
		"rsa":                     {rsaAdd, sshtest.ListThem, sshtest.SignMessage(rsaBlob, data, 2), sshtest.SignMessage(rsaBlob, data, 4)},
		"certificate":             {sshtest.Adding(sshtest.Ed25519(), cert), sshtest.ListThem, sshtest.SignMessage(cert.Marshal(), data, 0), sshtest.SignMessage(edBlob, data, 0)},
		"key and certificate":     {edAdd, sshtest.Adding(sshtest.Ed25519(), cert), sshtest.ListThem, sshtest.RemoveMessage(edBlob), sshtest.ListThem, sshtest.SignMessage(cert.Marshal(), data, 0)},
		"order":                   {rsaAdd, edAdd, p256Add, sshtest.ListThem, sshtest.RemoveMessage(edBlob), sshtest.ListThem, edAdd, sshtest.ListThem},
		"again keeps its place":   {rsaAdd, edAdd, p256Add, constrained(rsaAdd, lifetime(100)), sshtest.ListThem},
		"new comment":             {edAdd, append(edAdd[:len(edAdd)-len("me@here")-4:len(edAdd)-len("me@here")-4], wire.AppendString(nil, "other")...), sshtest.ListThem},
		"no comment":              {edAdd[:len(edAdd)-len("me@here")-4], sshtest.ListThem},
		"remove":                  {edAdd, sshtest.RemoveMessage(edBlob), sshtest.RemoveMessage(edBlob), sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},
		"remove all":              {edAdd, rsaAdd, {wire.MsgRemoveAllIdentities}, sshtest.ListThem, edAdd, sshtest.ListThem},
		"remove all of version 1": {edAdd, {msgRemoveAllRSA1}, sshtest.ListThem},
		"constraints with 17":     {append(bytes.Clone(edAdd), lifetime(0)...), sshtest.ListThem},
		"constraints, none":       {constrained(edAdd), sshtest.ListThem},
		"another connection":      {edAdd, nil, sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},

		"lifetime 0":         {constrained(edAdd, lifetime(0)), sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},
		"lifetime 0, again":  {edAdd, constrained(edAdd, lifetime(0)), sshtest.ListThem, edAdd, sshtest.ListThem},
		"lifetime longest":   {constrained(edAdd, lifetime(math.MaxUint32)), sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},
		"lifetime twice":     {constrained(edAdd, lifetime(9), lifetime(9)), sshtest.ListThem},
		"lifetime cut":       {constrained(edAdd, lifetime(9)[:3]), sshtest.ListThem},
		"confirm twice":      {constrained(edAdd, confirmed(), confirmed()), sshtest.ListThem},
		"both":               {constrained(edAdd, confirmed(), lifetime(9)), sshtest.ListThem},
		"constraint 0":       {constrained(edAdd, []byte{0}), sshtest.ListThem},
		"constraint 3":       {constrained(edAdd, []byte{3, 0, 0, 0, 1}), sshtest.ListThem},
		"constraint 254":     {constrained(edAdd, lifetime(9), []byte{254}), sshtest.ListThem},
		"constraint unknown": {constrained(edAdd, extensionConstraint("none@example.com")), sshtest.ListThem},
		"constraint no name": {constrained(edAdd, []byte{restrict.ConstrainExtension}), sshtest.ListThem},
		"constraint for FIDO": {
			constrained(edAdd, extensionConstraint(restrict.ExtProvider, wire.AppendString(nil, "internal")...)), sshtest.ListThem,
		},
		"constraint for smart cards": {
			constrained(edAdd, extensionConstraint("associated-certs-v00@openssh.com", append([]byte{0}, wire.AppendString(nil, "")...)...)), sshtest.ListThem,
		},
		"refused, old one stays": {edAdd, constrained(edAdd, []byte{77}), sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},

		"destinations, unbound":   {constrained(edAdd, toA), sshtest.ListThem, sshtest.SignMessage(edBlob, sshtest.Login(sshtest.PublicOf(sshtest.Ed25519()), sid, user, nil), 0), sshtest.SignMessage(edBlob, data, 0)},
		"destinations, none":      {constrained(edAdd, restricted()), sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},
		"destinations twice":      {constrained(edAdd, toA, toA), sshtest.ListThem},
		"destinations, bound":     {constrained(edAdd, toA), nil, bindA, sshtest.ListThem, sshtest.SignMessage(edBlob, sshtest.Login(sshtest.PublicOf(sshtest.Ed25519()), sid, user, nil), 0), sshtest.SignMessage(edBlob, data, 0)},
		"destinations, elsewhere": {constrained(edAdd, toA), nil, bindB, sshtest.ListThem, sshtest.SignMessage(edBlob, sshtest.Login(sshtest.PublicOf(sshtest.Ed25519()), sid, user, nil), 0), sshtest.RemoveMessage(edBlob), edAdd, constrained(edAdd, toA), nil, sshtest.ListThem},
		"destinations, forwarded": {constrained(edAdd, toA), rsaAdd, nil, forwardA, sshtest.ListThem, sshtest.RemoveMessage(edBlob), {wire.MsgRemoveAllIdentities}, nil, sshtest.ListThem},
		"destinations taken off":  {constrained(edAdd, toA), edAdd, nil, bindB, sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},
		"destinations put on":     {edAdd, constrained(edAdd, toA), nil, bindB, sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0)},

		"lock":              {edAdd, lockMessage("p"), sshtest.ListThem, sshtest.SignMessage(edBlob, data, 0), rsaAdd, {wire.MsgRemoveAllIdentities}, lockMessage("p"), unlockMessage("x"), unlockMessage("p"), sshtest.ListThem},
		"lock with nothing": {lockMessage(""), sshtest.ListThem, unlockMessage(""), unlockMessage("p"), edAdd, sshtest.ListThem},
		"lock, lifetime":    {constrained(edAdd, lifetime(0)), rsaAdd, lockMessage("p"), unlockMessage("p"), sshtest.ListThem},
		"lock with junk":    {edAdd, junk(lockMessage("p")), sshtest.ListThem, junk(unlockMessage("p")), sshtest.ListThem},
		"bound twice":       {bindA, bindA, bindB, edAdd, sshtest.ListThem},
		"forwarded twice":   {forwardA, forwardA, bindB, sshtest.ListThem},
	}
}

// TestAdditionsLikeOpenSSH checks that ssh-agent and this agent give the
// same answers to each of the additions.
func TestAdditionsLikeOpenSSH(t *testing.T) {
	t.Parallel()
	for name, messages := range additions() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, s := sshtest.SshAgent(t), serve(t, Config{Sources: []Source{fixed()}})
			theirs, ours := sshtest.DialUnix(t, path), s.dial(t)
			for i, m := range messages {
				if m == nil {
					theirs, ours = sshtest.DialUnix(t, path), s.dial(t)
					continue
				}
				sameAnswer(t, i, m, newest(m, sshtest.Exchange(t, theirs, m)), sshtest.Exchange(t, ours, m))
			}
		})
	}
}

// newest turns the answer of the agent of OpenSSH 9.2 into that of 10.3 and
// later: a refused binding is the failure of a known extension.
func newest(request, answer []byte) []byte {
	bind := bytes.HasPrefix(request, wire.AppendString([]byte{wire.MsgExtension}, restrict.ExtSessionBind))
	if bind && bytes.Equal(answer, sshtest.Failed) {
		return []byte{wire.MsgExtensionFailure}
	}
	return answer
}

// TestAdditionsTruncatedLikeOpenSSH checks that ssh-agent and this agent
// give the same answers to requests that were cut at each byte, in a whole
// frame.
func TestAdditionsTruncatedLikeOpenSSH(t *testing.T) {
	t.Parallel()
	cert := sshtest.CertFor(sshtest.P256())
	toA := restricted(direct(toHost("me", "a", sshtest.HostA())), onward(toHost("", "a", sshtest.HostA()), byAuthority("", "b", sshtest.HostCA())))
	for name, m := range map[string][]byte{
		"ed25519":     constrained(sshtest.Adding(sshtest.Ed25519(), nil), lifetime(9), confirmed(), toA),
		"rsa":         sshtest.Adding(sshtest.RSA2048(), nil),
		"certificate": constrained(sshtest.Adding(sshtest.P256(), cert), toA, lifetime(9)),
		"bind":        sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), "sid", true)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			theirs, ours := sshtest.DialUnix(t, sshtest.SshAgent(t)), serve(t, Config{Sources: []Source{fixed()}}).dial(t)
			for n := 1; n <= len(m); n++ {
				want := newest(m[:n], sshtest.Exchange(t, theirs, m[:n]))
				sameAnswer(t, n, m[:n], want, sshtest.Exchange(t, ours, m[:n]))
			}
			sameAnswer(t, 0, sshtest.ListThem, sshtest.Exchange(t, theirs, sshtest.ListThem), sshtest.Exchange(t, ours, sshtest.ListThem))
		})
	}
}

// TestManyConstraints checks that ssh-agent and this agent give the same
// answers to requests with 10,000 constraints.
func TestManyConstraints(t *testing.T) {
	t.Parallel()
	theirs, ours := sshtest.DialUnix(t, sshtest.SshAgent(t)), serve(t, Config{Sources: []Source{fixed()}}).dial(t)
	many := func(one []byte) []byte { return bytes.Repeat(one, 10_000) }
	short := wire.AppendString(nil, make([]byte, 12)) // three empty strings
	for i, m := range [][]byte{
		constrained(sshtest.Adding(sshtest.Ed25519(), nil), many(lifetime(9))),
		constrained(sshtest.Adding(sshtest.Ed25519(), nil), many(confirmed())),
		constrained(sshtest.Adding(sshtest.Ed25519(), nil), many(extensionConstraint("x"))),
		constrained(sshtest.Adding(sshtest.Ed25519(), nil), extensionConstraint(restrict.ExtRestrictDestination, wire.AppendString(nil, string(many(short)))...)),
		sshtest.ListThem,
	} {
		sameAnswer(t, i, m, sshtest.Exchange(t, theirs, m), sshtest.Exchange(t, ours, m))
	}
}

// TestRestrictedList checks that each connection lists the keys for its
// destination.
func TestRestrictedList(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed(plain("file", sshtest.P256()))}})
	local := s.dial(t)
	toA := restricted(direct(toHost("", "a", sshtest.HostA())))
	wantAnswer(t, local, constrained(sshtest.Adding(sshtest.Ed25519(), nil), toA), sshtest.Succeeded)
	bound := func(host ssh.Signer) net.Conn {
		nc := s.dial(t)
		wantAnswer(t, nc, sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(host, "sid", false)), sshtest.Succeeded)
		return nc
	}
	atA, atB := bound(sshtest.HostA()), bound(sshtest.HostB())
	for range 2 { // the second list is cached
		for nc, want := range map[net.Conn]int{local: 2, atA: 2, atB: 1} {
			if got := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); got != want {
				t.Errorf("%d keys are listed, want %d", got, want)
			}
		}
	}
}

// TestBindWhileLocked checks that a binding that was made while the agent
// was locked counts afterwards, as with ssh-agent since OpenSSH 10.5.
func TestBindWhileLocked(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed()}})
	nc := s.dial(t)
	toA := restricted(direct(toHost("", "a", sshtest.HostA())))
	wantAnswer(t, nc, constrained(sshtest.Adding(sshtest.Ed25519(), nil), toA), sshtest.Succeeded)
	wantAnswer(t, nc, lockMessage("p"), sshtest.Succeeded)
	wantAnswer(t, nc, sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostB(), "sid", false)), sshtest.Succeeded)
	wantAnswer(t, nc, unlockMessage("p"), sshtest.Succeeded)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 0 {
		t.Errorf("%d keys are listed at another host, want none", n)
	}
}

// TestQuery checks the answer to query: RFC 9987, section 5.9.1, and OpenSSH
// since 10.3.
func TestQuery(t *testing.T) {
	t.Parallel()
	nc := serve(t, Config{Sources: []Source{fixed()}}).dial(t)
	want := sshtest.Message(wire.MsgExtensionResponse, "query", "session-bind@openssh.com")
	wantAnswer(t, nc, sshtest.Message(wire.MsgExtension, "query"), want)
	wantAnswer(t, nc, append(sshtest.Message(wire.MsgExtension, "query"), "junk"...), want)
	wantAnswer(t, nc, sshtest.ListThem, []byte{wire.MsgIdentitiesAnswer, 0, 0, 0, 0}) // nothing follows the answer
}
