package agent

import (
	"bytes"
	"encoding/binary"
	"math"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"
)

// constrained is an addition with constraints, each as it is on the wire.
func constrained(addition []byte, constraints ...[]byte) []byte {
	m := bytes.Clone(addition)
	m[0] = msgAddIDConstrained
	return append(m, bytes.Join(constraints, nil)...)
}

func lifetime(seconds uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{constrainLifetime}, seconds)
}

func confirmed() []byte { return []byte{constrainConfirm} }

func extensionConstraint(name string, body ...byte) []byte {
	return append(appendString([]byte{constrainExtension}, name), body...)
}

func restricted(ds ...Destination) []byte {
	return extensionConstraint(extRestrictDestination, appendString(nil, string(marshalDestinations(ds)))...)
}

// conversation is what one client says to an agent that holds nothing yet. A
// nil message is a new connection.
type conversation [][]byte

// additions are conversations about keys that are added.
func additions() map[string]conversation {
	p256Add, edAdd, rsaAdd := adding(p256(), nil), adding(ed(), nil), adding(rsa2k(), nil)
	p256Blob, edBlob, rsaBlob := publicOf(p256()).Marshal(), publicOf(ed()).Marshal(), publicOf(rsa2k()).Marshal()
	cert := certFor(ed())
	data := []byte("some data to sign")
	sid, user := "the session identifier", "me"
	toA := restricted(direct(toHost("", "a", hostA())))
	bindA := extension(extSessionBind, bindBody(hostA(), sid, false))
	bindB := extension(extSessionBind, bindBody(hostB(), sid, false))
	forwardA := extension(extSessionBind, bindBody(hostA(), "first", true))
	junk := func(m []byte) []byte { return append(bytes.Clone(m), "junk"...) }
	return map[string]conversation{
		"ed25519":                 {edAdd, listThem, signMessage(edBlob, data, 0), signMessage(edBlob, data, 6), signMessage(edBlob, nil, 0)},
		"ecdsa":                   {p256Add, listThem, signMessage(p256Blob, data, 0)},
		"rsa":                     {rsaAdd, listThem, signMessage(rsaBlob, data, 2), signMessage(rsaBlob, data, 4)},
		"certificate":             {adding(ed(), cert), listThem, signMessage(cert.Marshal(), data, 0), signMessage(edBlob, data, 0)},
		"key and certificate":     {edAdd, adding(ed(), cert), listThem, removeMessage(edBlob), listThem, signMessage(cert.Marshal(), data, 0)},
		"order":                   {rsaAdd, edAdd, p256Add, listThem, removeMessage(edBlob), listThem, edAdd, listThem},
		"again keeps its place":   {rsaAdd, edAdd, p256Add, constrained(rsaAdd, lifetime(100)), listThem},
		"new comment":             {edAdd, append(edAdd[:len(edAdd)-len("me@here")-4:len(edAdd)-len("me@here")-4], appendString(nil, "other")...), listThem},
		"no comment":              {edAdd[:len(edAdd)-len("me@here")-4], listThem},
		"remove":                  {edAdd, removeMessage(edBlob), removeMessage(edBlob), listThem, signMessage(edBlob, data, 0)},
		"remove all":              {edAdd, rsaAdd, {msgRemoveAllIdentities}, listThem, edAdd, listThem},
		"remove all of version 1": {edAdd, {msgRemoveAllRSA1}, listThem},
		"constraints with 17":     {append(bytes.Clone(edAdd), lifetime(0)...), listThem},
		"constraints, none":       {constrained(edAdd), listThem},
		"another connection":      {edAdd, nil, listThem, signMessage(edBlob, data, 0)},

		"lifetime 0":         {constrained(edAdd, lifetime(0)), listThem, signMessage(edBlob, data, 0)},
		"lifetime 0, again":  {edAdd, constrained(edAdd, lifetime(0)), listThem, edAdd, listThem},
		"lifetime longest":   {constrained(edAdd, lifetime(math.MaxUint32)), listThem, signMessage(edBlob, data, 0)},
		"lifetime twice":     {constrained(edAdd, lifetime(9), lifetime(9)), listThem},
		"lifetime cut":       {constrained(edAdd, lifetime(9)[:3]), listThem},
		"confirm twice":      {constrained(edAdd, confirmed(), confirmed()), listThem},
		"both":               {constrained(edAdd, confirmed(), lifetime(9)), listThem},
		"constraint 0":       {constrained(edAdd, []byte{0}), listThem},
		"constraint 3":       {constrained(edAdd, []byte{3, 0, 0, 0, 1}), listThem},
		"constraint 254":     {constrained(edAdd, lifetime(9), []byte{254}), listThem},
		"constraint unknown": {constrained(edAdd, extensionConstraint("none@example.com")), listThem},
		"constraint no name": {constrained(edAdd, []byte{constrainExtension}), listThem},
		"constraint for FIDO": {
			constrained(edAdd, extensionConstraint(extProvider, appendString(nil, "internal")...)), listThem,
		},
		"constraint for smart cards": {
			constrained(edAdd, extensionConstraint("associated-certs-v00@openssh.com", append([]byte{0}, appendString(nil, "")...)...)), listThem,
		},
		"refused, old one stays": {edAdd, constrained(edAdd, []byte{77}), listThem, signMessage(edBlob, data, 0)},

		"destinations, unbound":   {constrained(edAdd, toA), listThem, signMessage(edBlob, login(publicOf(ed()), sid, user, nil), 0), signMessage(edBlob, data, 0)},
		"destinations, none":      {constrained(edAdd, restricted()), listThem, signMessage(edBlob, data, 0)},
		"destinations twice":      {constrained(edAdd, toA, toA), listThem},
		"destinations, bound":     {constrained(edAdd, toA), nil, bindA, listThem, signMessage(edBlob, login(publicOf(ed()), sid, user, nil), 0), signMessage(edBlob, data, 0)},
		"destinations, elsewhere": {constrained(edAdd, toA), nil, bindB, listThem, signMessage(edBlob, login(publicOf(ed()), sid, user, nil), 0), removeMessage(edBlob), edAdd, constrained(edAdd, toA), nil, listThem},
		"destinations, forwarded": {constrained(edAdd, toA), rsaAdd, nil, forwardA, listThem, removeMessage(edBlob), {msgRemoveAllIdentities}, nil, listThem},
		"destinations taken off":  {constrained(edAdd, toA), edAdd, nil, bindB, listThem, signMessage(edBlob, data, 0)},
		"destinations put on":     {edAdd, constrained(edAdd, toA), nil, bindB, listThem, signMessage(edBlob, data, 0)},

		"lock":              {edAdd, lockMessage("p"), listThem, signMessage(edBlob, data, 0), rsaAdd, {msgRemoveAllIdentities}, lockMessage("p"), unlockMessage("x"), unlockMessage("p"), listThem},
		"lock with nothing": {lockMessage(""), listThem, unlockMessage(""), unlockMessage("p"), edAdd, listThem},
		"lock, lifetime":    {constrained(edAdd, lifetime(0)), rsaAdd, lockMessage("p"), unlockMessage("p"), listThem},
		"lock with junk":    {edAdd, junk(lockMessage("p")), listThem, junk(unlockMessage("p")), listThem},
		"bound twice":       {bindA, bindA, bindB, edAdd, listThem},
		"forwarded twice":   {forwardA, forwardA, bindB, listThem},
	}
}

// TestAdditionsLikeOpenSSH has the same conversations with ssh-agent and with
// us.
func TestAdditionsLikeOpenSSH(t *testing.T) {
	for name, messages := range additions() {
		t.Run(name, func(t *testing.T) {
			path, s := sshAgent(t), serve(t, Config{Source: fixed()})
			theirs, ours := dialUnix(t, path), s.dial(t)
			for i, m := range messages {
				if m == nil {
					theirs, ours = dialUnix(t, path), s.dial(t)
					continue
				}
				sameAnswer(t, i, m, newest(m, ask(t, theirs, m)), ask(t, ours, m))
			}
		})
	}
}

// newest turns the answer of OpenSSH's agent 9.2 into what it is since 10.3:
// a bind that is refused is a failure of an extension that is known.
func newest(request, answer []byte) []byte {
	bind := bytes.HasPrefix(request, appendString([]byte{msgExtension}, extSessionBind))
	if bind && bytes.Equal(answer, failed) {
		return []byte{msgExtensionFailure}
	}
	return answer
}

// TestAdditionsTruncatedLikeOpenSSH cuts requests at each byte, within a frame
// that is whole.
func TestAdditionsTruncatedLikeOpenSSH(t *testing.T) {
	cert := certFor(p256())
	toA := restricted(direct(toHost("me", "a", hostA())), onward(toHost("", "a", hostA()), byAuthority("", "b", hostCA())))
	for name, m := range map[string][]byte{
		"ed25519":     constrained(adding(ed(), nil), lifetime(9), confirmed(), toA),
		"rsa":         adding(rsa2k(), nil),
		"certificate": constrained(adding(p256(), cert), toA, lifetime(9)),
		"bind":        extension(extSessionBind, bindBody(hostA(), "sid", true)),
	} {
		t.Run(name, func(t *testing.T) {
			theirs, ours := dialUnix(t, sshAgent(t)), serve(t, Config{Source: fixed()}).dial(t)
			for n := 1; n <= len(m); n++ {
				want := newest(m[:n], ask(t, theirs, m[:n]))
				sameAnswer(t, n, m[:n], want, ask(t, ours, m[:n]))
			}
			sameAnswer(t, 0, listThem, ask(t, theirs, listThem), ask(t, ours, listThem))
		})
	}
}

// TestManyConstraints: a list of 10 000 is refused quickly and whole.
func TestManyConstraints(t *testing.T) {
	theirs, ours := dialUnix(t, sshAgent(t)), serve(t, Config{Source: fixed()}).dial(t)
	many := func(one []byte) []byte { return bytes.Repeat(one, 10_000) }
	short := ssh.Marshal(wireString{S: ssh.Marshal(wireDestination{})})
	for i, m := range [][]byte{
		constrained(adding(ed(), nil), many(lifetime(9))),
		constrained(adding(ed(), nil), many(confirmed())),
		constrained(adding(ed(), nil), many(extensionConstraint("x"))),
		constrained(adding(ed(), nil), extensionConstraint(extRestrictDestination, appendString(nil, string(many(short)))...)),
		listThem,
	} {
		sameAnswer(t, i, m, ask(t, theirs, m), ask(t, ours, m))
	}
}

// TestRestrictedList asks for the list over connections to different hosts.
func TestRestrictedList(t *testing.T) {
	s := serve(t, Config{Source: fixed(plain("file", p256()))})
	local := s.dial(t)
	toA := restricted(direct(toHost("", "a", hostA())))
	wantAnswer(t, local, constrained(adding(ed(), nil), toA), succeeded)
	bound := func(host ssh.Signer) net.Conn {
		nc := s.dial(t)
		wantAnswer(t, nc, extension(extSessionBind, bindBody(host, "sid", false)), succeeded)
		return nc
	}
	atA, atB := bound(hostA()), bound(hostB())
	for range 2 { // the second time there is a cached list
		for nc, want := range map[net.Conn]int{local: 2, atA: 2, atB: 1} {
			if got := countListed(t, ask(t, nc, listThem)); got != want {
				t.Errorf("%d keys are listed, want %d", got, want)
			}
		}
	}
}

// TestBindWhileLocked: the bind counts when the agent is unlocked again, as it
// does with OpenSSH's agent since 10.5.
func TestBindWhileLocked(t *testing.T) {
	s := serve(t, Config{Source: fixed()})
	nc := s.dial(t)
	toA := restricted(direct(toHost("", "a", hostA())))
	wantAnswer(t, nc, constrained(adding(ed(), nil), toA), succeeded)
	wantAnswer(t, nc, lockMessage("p"), succeeded)
	wantAnswer(t, nc, extension(extSessionBind, bindBody(hostB(), "sid", false)), succeeded)
	wantAnswer(t, nc, unlockMessage("p"), succeeded)
	if n := countListed(t, ask(t, nc, listThem)); n != 0 {
		t.Errorf("%d keys are listed at another host, want none", n)
	}
}

// TestQuery answers as RFC 9987, section 5.9.1 has it and OpenSSH since 10.3.
func TestQuery(t *testing.T) {
	nc := serve(t, Config{Source: fixed()}).dial(t)
	want := message(msgExtensionResponse, "query", "session-bind@openssh.com")
	wantAnswer(t, nc, message(msgExtension, "query"), want)
	wantAnswer(t, nc, append(message(msgExtension, "query"), "junk"...), want)
	wantAnswer(t, nc, listThem, []byte{msgIdentitiesAnswer, 0, 0, 0, 0}) // nothing stands behind the answer
}
