package agent

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
)

// The verdicts on keys with destinations are those of OpenSSH's agent, 10.5.
// Before 9.6 it took a connection on which a bind was refused for a local one.
//
// A verdict takes a tenth of a second if somebody wants it to: none is to be
// made under a lock.

// visible says whether an identity with these destinations may be listed,
// removed or replaced over a connection with these bindings: always on a local
// connection, and on others if it can be of use there. The error is for the
// log.
func visible(ds []Destination, b *bindings, now time.Time) error {
	_, err := permitted(ds, b, nil, now)
	return err
}

// maySign says whether an identity with these destinations may sign data over
// a connection with these bindings. key is the public key or the certificate
// that the client asked for. What it signs must be a login, as user to host,
// on the SSH connection that was bound last. Without destinations it may sign
// anything, for which user and host are not known.
func maySign(ds []Destination, b *bindings, key ssh.PublicKey, data []byte, now time.Time) (user, host string, err error) {
	if len(ds) == 0 {
		return "", "", nil
	}
	if !b.bound() {
		return "", "", errors.New("the key has destinations, and the connection is not bound to any")
	}
	r, err := parseUserauth(data, key)
	if err != nil {
		return "", "", fmt.Errorf("the key has destinations, and this is no login: %w", err)
	}
	host, err = permitted(ds, b, &r.user, now)
	if err != nil {
		return "", "", err
	}
	if err := r.belongsTo(b); err != nil {
		return "", "", err
	}
	return r.user, host, nil
}

// permitted goes along the hops, each of which needs a destination. user is
// that of the login that is to be signed, or nil when nothing is. host is the
// name that the matching destination gives the last hop.
func permitted(ds []Destination, b *bindings, user *string, now time.Time) (host string, err error) {
	if len(ds) == 0 {
		return "", nil
	}
	if !b.bound() {
		if b.remote() {
			return "", errors.New("the connection belongs to a remote session, and to which could not be proven")
		}
		return "", nil
	}
	if err := b.inOrder(user != nil); err != nil {
		return "", err
	}
	w := walk{ds: ds, now: now, steps: maxSteps}
	d, err := w.along(b.hops, user)
	if err != nil {
		return "", err
	}
	// A key that leads to a host, and no further, is of no use there.
	if last := b.last(); last.forwarding && user == nil && w.find(last.host, nil, nil) == nil {
		return "", fmt.Errorf("no destination leads on from host key %s", ssh.FingerprintSHA256(last.host))
	}
	return d.To.Host, nil
}

// inOrder: all bindings but the last are forwardings, and for a signature the
// last is none.
func (b *bindings) inOrder(signing bool) error {
	for i := range b.hops[:len(b.hops)-1] {
		if !b.hops[i].forwarding {
			return errors.New("something was bound behind an authentication")
		}
	}
	if signing && b.last().forwarding {
		return errors.New("the connection is bound for forwarding, not for an authentication")
	}
	return nil
}

// along finds the destinations of all hops and returns that of the last. The
// user is known at the last one only.
func (w *walk) along(hops []binding, user *string) (*Destination, error) {
	var from ssh.PublicKey
	var d *Destination
	for i, hop := range hops {
		u := user
		if i < len(hops)-1 {
			u = nil
		}
		if d = w.find(from, hop.host, u); d == nil {
			return nil, notAllowed(from, hop.host, u)
		}
		from = hop.host
	}
	return d, nil
}

func notAllowed(from, to ssh.PublicKey, user *string) error {
	begin, as := "from here", ""
	if from != nil {
		begin = "from host key " + ssh.FingerprintSHA256(from)
	}
	if user != nil {
		as = fmt.Sprintf(" as %q", *user)
	}
	return fmt.Errorf("no destination leads %s to host key %s%s", begin, ssh.FingerprintSHA256(to), as)
}

// belongsTo checks that a login is one on the SSH connection that was bound
// last. ssh may leave the host's key out of the data if it is connected to the
// host itself: nobody is in between there who could mix up connections.
func (r *userauthRequest) belongsTo(b *bindings) error {
	last := b.last()
	switch {
	case !bytes.Equal(r.sessionID, last.sessionID):
		return errors.New("the login is for another session identifier than the one that was bound last")
	case r.hostKey == nil && len(b.hops) > 1:
		return errors.New("the login is over a forwarding and does not name a host key")
	case r.hostKey != nil && !sameKey(r.hostKey, last.host):
		return errors.New("the login is for another host key than the one that was bound last")
	}
	return nil
}
