package restrict

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
)

// The verdicts on keys with destinations are those of OpenSSH's agent 10.5.
// Versions before 9.6 treated a connection with a refused bind as a local one.
//
// A hostile client can make a verdict take a tenth of a second, so a caller
// must hold no lock.

// Visible returns nil if an identity with these destinations may be listed,
// removed and replaced over a connection with these bindings: always if the
// connection is local, otherwise if the identity is of use there. The error is
// for the log.
func Visible(ds []Destination, b *Bindings, now time.Time) error {
	_, err := permitted(ds, b, nil, now)
	return err
}

// MaySign returns nil if an identity with these destinations may sign data over
// a connection with these bindings: the data must be a login on the SSH
// connection that was bound last. host is its name in the destination that
// allows it. key is the public key or certificate in the request. Without
// destinations the identity may sign anything.
func MaySign(ds []Destination, b *Bindings, key ssh.PublicKey, data []byte, now time.Time) (host string, err error) {
	if len(ds) == 0 {
		return "", nil
	}
	if !b.bound() {
		return "", errors.New("the key has destinations, and the connection is not bound to any")
	}
	r, err := parseUserauth(data, key)
	if err != nil {
		return "", fmt.Errorf("the key has destinations, and this is no login: %w", err)
	}
	if host, err = permitted(ds, b, &r.user, now); err != nil {
		return "", err
	}
	if err := r.isOn(b); err != nil {
		return "", err
	}
	return host, nil
}

// permitted requires a destination for each hop. user is that of the login to be
// signed; nil if there is none. host is the name of the last hop in its
// destination.
func permitted(ds []Destination, b *Bindings, user *string, now time.Time) (host string, err error) {
	if len(ds) == 0 {
		return "", nil
	}
	if !b.bound() {
		if b.Remote() {
			return "", errors.New("the connection belongs to a remote session, and to which could not be proven")
		}
		return "", nil
	}
	if user != nil && b.last().forwarding {
		return "", errors.New("the connection is bound for forwarding, not for an authentication")
	}
	w := walk{ds: ds, now: now, steps: maxSteps}
	d, err := w.along(b.hops, user)
	if err != nil {
		return "", err
	}
	// A host has no use for a key that leads to it and no further.
	if last := b.last(); last.forwarding && user == nil && w.find(last.host, nil, nil) == nil {
		return "", fmt.Errorf("no destination leads on from host key %s", ssh.FingerprintSHA256(last.host))
	}
	return d.To.Host, nil
}
