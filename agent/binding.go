package agent

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// Limits of one connection, those of OpenSSH's agent.
const (
	maxBindings  = 16
	maxSessionID = 128 // bytes
)

// binding is one SSH connection to which a connection to the agent has been
// bound (session-bind@openssh.com, OpenSSH's PROTOCOL.agent, section 1): its
// host has signed the session identifier, which nobody else could have.
type binding struct {
	host       ssh.PublicKey // a key or a host certificate
	sessionID  []byte
	forwarding bool // the agent was forwarded to host; false: the user logs in to it
}

// bindings are those of one connection to the agent, in the order of the hops:
// the first host is the one that the user's own ssh is connected to. The zero
// value is a connection that nobody bound.
type bindings struct {
	hops      []binding
	attempted bool
	failed    bool // a bind was refused: somebody could not prove who he is
}

// remote says whether the connection belongs to an SSH connection. A bind that
// was refused shows that as well as one that was not.
func (b *bindings) remote() bool { return b.attempted }

// bound says whether there is a binding.
func (b *bindings) bound() bool { return len(b.hops) > 0 }

// last is the nearest hop to whoever asks; there must be one.
func (b *bindings) last() *binding { return &b.hops[len(b.hops)-1] }

type bindRequest struct {
	Host       []byte
	SessionID  []byte
	Signature  []byte
	Forwarding bool
	Rest       []byte `ssh:"rest"` // OpenSSH looks no further
}

// bind takes what follows the extension's name in a request. An error is a
// refusal.
//
// OpenSSH's agent, by mistake, calls a bind with a session identifier that is
// too long a success, and does not record it; here it is refused.
func (b *bindings) bind(body []byte) error {
	b.attempted = true
	n, err := verifiedBinding(body)
	if err == nil {
		err = b.record(n)
	}
	b.failed = b.failed || err != nil
	return err
}

func verifiedBinding(body []byte) (n binding, err error) {
	var m bindRequest
	if err := ssh.Unmarshal(body, &m); err != nil {
		return n, fmt.Errorf("session-bind: %w", err)
	}
	if len(m.SessionID) > maxSessionID {
		return n, fmt.Errorf("session-bind: a session identifier of %d bytes, more than %d", len(m.SessionID), maxSessionID)
	}
	host, err := parseWireKey(m.Host)
	if err != nil {
		return n, fmt.Errorf("session-bind: host key: %w", err)
	}
	if err := verifyWire(host, m.SessionID, m.Signature); err != nil {
		return n, fmt.Errorf("session-bind: the signature of host key %s: %w", ssh.FingerprintSHA256(host), err)
	}
	return binding{host, bytes.Clone(m.SessionID), m.Forwarding}, nil
}

// record adds what has been verified. Nothing comes behind a host that the
// user logs in to, and a session identifier belongs to one host; that the same
// host comes again with another one is ordinary.
func (b *bindings) record(n binding) error {
	for _, old := range b.hops {
		sameID := bytes.Equal(old.sessionID, n.sessionID)
		switch {
		case !old.forwarding:
			return errors.New("session-bind: the connection is already bound for an authentication")
		case sameID && sameKey(old.host, n.host):
			return nil
		case sameID:
			return errors.New("session-bind: the session identifier is bound to another host key")
		}
	}
	if len(b.hops) == maxBindings {
		return fmt.Errorf("session-bind: more than %d on one connection", maxBindings)
	}
	b.hops = append(b.hops, n)
	return nil
}

// verifyWire checks a signature as it comes over the wire. It may be made with
// any algorithm of the key, ssh-rsa with SHA-1 too: that is what was agreed on
// with an old server, and ssh has accepted it.
func verifyWire(key ssh.PublicKey, data, signature []byte) error {
	var sig ssh.Signature
	if err := ssh.Unmarshal(signature, &sig); err != nil {
		return err
	}
	if len(sig.Rest) > 0 && !isSecurityKey(key) {
		return fmt.Errorf("%d bytes behind it", len(sig.Rest))
	}
	return key.Verify(data, &sig)
}
