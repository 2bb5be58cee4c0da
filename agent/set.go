package agent

import (
	"time"

	"golang.org/x/crypto/ssh"
)

// Identity is a public key or a certificate that is offered to clients, and
// the key that signs for it.
type Identity struct {
	Public  ssh.PublicKey // an *ssh.Certificate for a certificate
	Comment string        // as listed
	Name    string        // of the file that it is from, for log and prompt
	Key     Key
}

// fingerprint is that of the plain key, which is how ssh-keygen and ssh-add
// show a certificate as well.
func (id *identity) fingerprint() string { return ssh.FingerprintSHA256(id.plain) }

// identity is an Identity with what is asked of it for every request.
type identity struct {
	Identity
	blob    string        // wire encoding of Public
	plain   ssh.PublicKey // Public, or the key that it certifies
	line    string        // wire encoding of plain; a key and its certificates share it
	expires uint64        // seconds since 1970; ssh.CertTimeInfinity for never
	limits  *constraints  // of one that was added; nil: none
}

// name is for the log: keys that came without a file are known by their
// comment.
func (id *identity) name() string {
	if id.Name == "" {
		return id.Comment
	}
	return id.Name
}

// visible is nil if the identity's constraints let it be listed, removed and
// replaced over this connection.
func (id *identity) visible(c *conn, now time.Time) error {
	if id.limits == nil || len(id.limits.destinations) == 0 {
		return nil
	}
	return visible(id.limits.destinations, &c.bindings, now)
}

// expired says whether the identity's certificate was good only until now, or
// before. One that is not good yet is offered: the server judges it, and its
// clock may be ahead of ours.
func (id *identity) expired(now time.Time) bool {
	return id.expires != ssh.CertTimeInfinity && unix(now) >= id.expires
}

// unix counts as certificates do. A clock that stands before 1970 has the
// time 0.
func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

// Set is a number of identities in the order in which they are listed. It
// does not change.
type Set struct {
	ids    []*identity
	byBlob map[string]*identity
}

// NewSet makes a Set. Of two identities with the same public key or the same
// certificate the first stays.
func NewSet(ids []Identity) *Set {
	s := &Set{
		ids:    make([]*identity, 0, len(ids)),
		byBlob: make(map[string]*identity, len(ids)),
	}
	for _, id := range ids {
		n := newIdentity(id)
		if s.byBlob[n.blob] != nil {
			continue
		}
		s.ids = append(s.ids, n)
		s.byBlob[n.blob] = n
	}
	return s
}

// Len is the number of identities.
func (s *Set) Len() int { return len(s.ids) }

func newIdentity(id Identity) *identity {
	n := &identity{
		Identity: id,
		blob:     string(id.Public.Marshal()),
		plain:    id.Public,
		expires:  ssh.CertTimeInfinity,
	}
	n.line = n.blob
	if cert, ok := id.Public.(*ssh.Certificate); ok {
		n.plain = cert.Key
		n.line = string(cert.Key.Marshal())
		n.expires = cert.ValidBefore
	}
	return n
}
