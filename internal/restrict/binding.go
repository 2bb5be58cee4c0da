package restrict

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// ExtSessionBind is the extension that binds a connection (OpenSSH's
// PROTOCOL.agent, section 1).
const ExtSessionBind = "session-bind@openssh.com"

// Limits of one connection, as in OpenSSH's agent.
const (
	maxBindings  = 16
	maxSessionID = 128 // bytes
)

// A binding is an SSH connection that a connection to the agent belongs to. Its
// host has proven that by a signature of the session identifier.
type binding struct {
	host       ssh.PublicKey // a key or a host certificate
	sessionID  []byte
	forwarding bool // the agent was forwarded to host; false: the user logs in there
}

// Bindings are those of one connection to the agent, in the order of the hops:
// the first host is the one that the user's own ssh is connected to. The zero
// value is a connection without bindings.
type Bindings struct {
	hops      []binding
	attempted bool
	failed    bool // a bind was refused: a hop is unknown
}

// Remote reports whether the connection belongs to an SSH connection. A bind
// that was refused shows that, too.
func (b *Bindings) Remote() bool { return b.attempted }

func (b *Bindings) bound() bool { return len(b.hops) > 0 }

// last returns the hop nearest to the client. There must be one.
func (b *Bindings) last() *binding { return &b.hops[len(b.hops)-1] }

type bindRequest struct {
	Host       []byte
	SessionID  []byte
	Signature  []byte
	Forwarding bool
	Rest       []byte `ssh:"rest"` // ignored, as by OpenSSH
}

// Bind records the binding in body, which follows the extension's name in a
// request. An error means that it is refused.
//
// OpenSSH's agent accepts a session identifier that is too long, by mistake, and
// does not record the binding. Bind refuses it.
func (b *Bindings) Bind(body []byte) error {
	b.attempted = true
	n, err := verifiedBinding(body)
	if err == nil {
		err = b.record(n)
	}
	if err != nil {
		b.failed = true
		return fmt.Errorf("session-bind: %w", err)
	}
	return nil
}

func verifiedBinding(body []byte) (n binding, err error) {
	var m bindRequest
	if err := ssh.Unmarshal(body, &m); err != nil {
		return n, err
	}
	if len(m.SessionID) > maxSessionID {
		return n, fmt.Errorf("a session identifier of %d bytes, more than %d", len(m.SessionID), maxSessionID)
	}
	host, err := sshkey.Parse(m.Host)
	if err != nil {
		return n, fmt.Errorf("host key: %w", err)
	}
	if err := verifyWire(host, m.SessionID, m.Signature); err != nil {
		return n, fmt.Errorf("the signature of host key %s: %w", ssh.FingerprintSHA256(host), err)
	}
	return binding{host, bytes.Clone(m.SessionID), m.Forwarding}, nil
}

// verifyWire verifies an encoded signature. It accepts any algorithm of the key,
// even ssh-rsa with SHA-1: an old server may know no other, and ssh has accepted
// it.
func verifyWire(key ssh.PublicKey, data, signature []byte) error {
	var sig ssh.Signature
	if err := ssh.Unmarshal(signature, &sig); err != nil {
		return err
	}
	if len(sig.Rest) > 0 && !sshkey.IsSecurityKey(key) {
		return fmt.Errorf("%d bytes behind it", len(sig.Rest))
	}
	return key.Verify(data, &sig)
}

// record adds a verified binding. Nothing may follow a host that the user logs
// in to, and a session identifier belongs to one host. A host may come again
// with a different identifier.
func (b *Bindings) record(n binding) error {
	for _, old := range b.hops {
		sameID := bytes.Equal(old.sessionID, n.sessionID)
		switch {
		case !old.forwarding:
			return errors.New("the connection is already bound for an authentication")
		case sameID && sshkey.Same(old.host, n.host):
			return nil
		case sameID:
			return errors.New("the session identifier is bound to another host key")
		}
	}
	if len(b.hops) == maxBindings {
		return fmt.Errorf("more than %d on one connection", maxBindings)
	}
	b.hops = append(b.hops, n)
	return nil
}

// Origin identifies where the requests of a connection come from: "" for a
// process of this machine, otherwise the hosts that the agent was forwarded to.
func (b *Bindings) Origin() string {
	var hosts []byte
	for _, hop := range b.hops {
		if hop.forwarding {
			hosts = wire.AppendString(hosts, hop.host.Marshal())
		}
	}
	if b.failed {
		hosts = append(hosts, '!')
	}
	return string(hosts)
}

// Probes returns two session-bind requests that tell whether an agent verifies
// bindings. Both are for a new host key and for forwarding. wrong has a different
// session identifier than right, but the same signature.
func Probes() (right, wrong []byte, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, nil, err
	}
	m := bindRequest{Host: signer.PublicKey().Marshal(), SessionID: make([]byte, 32), Forwarding: true}
	rand.Read(m.SessionID)
	sig, err := signer.Sign(rand.Reader, m.SessionID)
	if err != nil {
		return nil, nil, err
	}
	m.Signature = ssh.Marshal(sig)
	right = m.request()
	rand.Read(m.SessionID)
	return right, m.request(), nil
}

func (m *bindRequest) request() []byte {
	return append(wire.AppendString([]byte{wire.MsgExtension}, ExtSessionBind), ssh.Marshal(m)...)
}
