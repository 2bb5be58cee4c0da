package agent

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// An Identity is a public key or a certificate that is offered to clients, and
// the key that signs for it.
type Identity struct {
	Public  ssh.PublicKey // an *ssh.Certificate for a certificate
	Comment string        // as listed
	Name    string        // of the file that it is from, for logs and prompts
	Key     Key
}

// identity is an Identity with what is needed of it for every request.
type identity struct {
	consent.Identity
	Public  ssh.PublicKey
	blob    string                // wire encoding of Public
	plain   ssh.PublicKey         // Public, or the key that it certifies
	expires uint64                // seconds since 1970; ssh.CertTimeInfinity for never
	limits  *restrict.Constraints // of an identity that was added; nil: none
}

func newIdentity(id Identity) *identity {
	n := &identity{
		Identity: consent.Identity{Key: id.Key, Name: id.Name, Comment: id.Comment},
		Public:   id.Public, blob: string(id.Public.Marshal()), plain: id.Public, expires: ssh.CertTimeInfinity,
	}
	n.KeyBlob = n.blob
	if cert, ok := id.Public.(*ssh.Certificate); ok {
		n.plain, n.expires = cert.Key, cert.ValidBefore
		n.KeyBlob = string(cert.Key.Marshal())
	}
	n.Fingerprint = sshkey.Fingerprint([]byte(n.KeyBlob))
	return n
}

// restricted reports whether the identity is only for some destinations.
func (id *identity) restricted() bool { return id.limits != nil && len(id.limits.Destinations) > 0 }

// visible returns nil if the client may see, remove and replace the identity.
func (id *identity) visible(c *Client, now time.Time) error {
	if !id.restricted() {
		return nil
	}
	return restrict.Visible(id.limits.Destinations, &c.Bindings, now)
}

// expired reports whether the identity's certificate has expired. One that is not
// valid yet is offered: the server judges it, and its clock may be ahead of ours.
func (id *identity) expired(now time.Time) bool {
	return id.expires != ssh.CertTimeInfinity && uint64(max(now.Unix(), 0)) >= id.expires
}

// A Set is a number of identities in the order in which they are listed. It does
// not change.
type Set struct{ ids []*identity }

// NewSet returns a Set. Of identities with the same public key or certificate
// the first one counts.
func NewSet(ids []Identity) *Set {
	s := &Set{ids: make([]*identity, 0, len(ids))}
	seen := make(map[string]bool, len(ids))
	for _, id := range ids {
		if n := newIdentity(id); !seen[n.blob] {
			seen[n.blob] = true
			s.ids = append(s.ids, n)
		}
	}
	return s
}

// Len returns the number of identities.
func (s *Set) Len() int { return len(s.ids) }

// view has the keys that a Keyring offers at one moment. It does not change.
type view struct {
	sets    []*Set    // of the sources, and what was added
	removed *removals // by clients
	ids     []*identity
	byBlob  map[string]*identity
	hidden  map[string]*identity // what the sources have and is not offered
	keys    map[presence]bool    // of all identities; true: offered
	listing *listing             // for clients that may use everything
}

// presence is a key of an identity.
type presence struct {
	keyBlob string
	key     Key
}

// newView merges sets. An identity with constraints covers all others of its key:
// the constraints are about the key, and no other name for it, such as a
// certificate that comes later, may get around them. A covered identity's place
// in the list is taken by the one with the same blob.
func newView(sets []*Set, removed *removals) *view {
	v := &view{
		sets: sets, removed: removed,
		byBlob: make(map[string]*identity), hidden: make(map[string]*identity), keys: make(map[presence]bool),
	}
	front, covered := make(map[string]*identity), make(map[string]bool)
	for _, s := range sets {
		for _, id := range s.ids {
			if id.limits != nil {
				front[id.blob], covered[id.KeyBlob] = id, true
			}
		}
	}
	for _, s := range sets {
		for _, id := range s.ids {
			v.add(id, front[id.blob], covered[id.KeyBlob])
		}
	}
	v.listing = newListing(v.ids, nil, time.Now())
	return v
}

func (v *view) add(id, front *identity, covered bool) {
	p := presence{id.KeyBlob, id.Key}
	if !v.keys[p] {
		v.keys[p] = false // it exists
	}
	switch {
	case v.byBlob[id.blob] != nil:
		return
	case front != nil:
		id = front
	case covered || v.removed.has(id):
		v.hidden[id.blob] = id
		return
	}
	v.ids = append(v.ids, id)
	v.byBlob[id.blob] = id
	v.keys[presence{id.KeyBlob, id.Key}] = true
}

// listHeader is length, type and number of keys.
const listHeader = wire.LengthSize + 1 + 4

// listing is the answer to a list request.
type listing struct {
	restricted bool  // some identities are not for every client
	until      int64 // seconds since 1970; a certificate in it expires then
	answer     []byte
	listed     int
	unlisted   int // identities for which there was no room
}

// list answers REQUEST_IDENTITIES: with the keyring's identities and, behind
// them, those of the upstream agents; with none while the agent is locked.
func (a *Agent) list(ctx context.Context, c *Client) []byte {
	if a.owner.Locked() {
		return new(listing).finish()
	}
	v, now := a.now(), time.Now()
	l := v.listing
	if now.Unix() >= l.until || l.restricted && c.Bindings.Remote() {
		l = newListing(v.ids, c, now)
	}
	if a.upstreams == nil {
		return l.answer
	}
	return l.with(v, c.relay.List(ctx))
}

// newListing lists what a client may use, or everything if c is nil.
func newListing(ids []*identity, c *Client, now time.Time) *listing {
	l := &listing{until: math.MaxInt64}
	for _, id := range ids {
		if id.expired(now) {
			continue
		}
		l.restricted = l.restricted || id.restricted()
		if c != nil && id.visible(c, now) != nil {
			continue
		}
		l.add(id.blob, id.Comment)
		l.until = min(l.until, int64(min(id.expires, math.MaxInt64)))
	}
	l.finish()
	return l
}

// add lists an identity if there is room. OpenSSH's clients show nothing, and log
// in with nothing, if a list is too long; the identities that do not fit can be
// used by name, with IdentityFile.
func (l *listing) add(blob, comment string) {
	if l.answer == nil {
		l.answer = make([]byte, listHeader)
	}
	size := 4 + len(blob) + 4 + len(comment)
	if l.listed == wire.MaxListed || len(l.answer)+size > wire.LengthSize+wire.MaxMessage {
		l.unlisted++
		return
	}
	l.answer = wire.AppendString(wire.AppendString(l.answer, blob), comment)
	l.listed++
}

// finish writes the header and returns the answer.
func (l *listing) finish() []byte {
	if l.answer == nil {
		l.answer = make([]byte, listHeader)
	}
	b := l.answer
	binary.BigEndian.PutUint32(b, uint32(len(b)-wire.LengthSize))
	b[wire.LengthSize] = wire.MsgIdentitiesAnswer
	binary.BigEndian.PutUint32(b[wire.LengthSize+1:], uint32(l.listed))
	return b
}

// with returns the answer with more identities behind it. Those that the view
// has, listed here or not, do not appear a second time.
func (l *listing) with(v *view, more []upstream.Listed) []byte {
	merged := &listing{answer: slices.Clone(l.answer), listed: l.listed}
	for _, id := range more {
		if v.byBlob[id.Blob] == nil {
			merged.add(id.Blob, id.Comment)
		}
	}
	return merged.finish()
}
