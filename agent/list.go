package agent

import (
	"encoding/binary"
	"time"

	"golang.org/x/crypto/ssh"
)

// What OpenSSH's clients take in one list: with more they show nothing and log
// in with nothing. The identities that do not fit are used by name, with
// IdentityFile.
const (
	maxListed      = 2048
	maxListMessage = 256 << 10
)

// listing is a list answer, and what it was made from.
type listing struct {
	set      *Set
	removals uint64
	until    uint64 // seconds since 1970; a certificate in it expires then
	answer   []byte
	unlisted int // would have been in it if there were room
}

// list answers REQUEST_IDENTITIES. The answer is kept until the set, what was
// removed from it or a certificate's validity changes.
func (a *Agent) list() []byte {
	set, now := a.source.Identities(), time.Now()
	l, removed := a.cached(set, now)
	if l != nil {
		return l.answer
	}
	l = newListing(set, removed, now)
	if a.keep(l) {
		a.log.Warn("more keys than clients take in one list; the rest can be used by name (IdentityFile)",
			"listed", binary.BigEndian.Uint32(l.answer[lengthSize+1:]), "unlisted", l.unlisted)
	}
	return l.answer
}

// cached returns the last listing if it is still right, else what one must
// leave out.
func (a *Agent) cached(set *Set, now time.Time) (*listing, removals) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.listing
	if l != nil && l.set == set && l.removals == a.removed.count && unix(now) < l.until {
		return l, removals{}
	}
	return nil, a.removed
}

// keep caches l, and says whether identities that do not fit are to be
// reported: once for each set.
func (a *Agent) keep(l *listing) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listing = l
	report := l.unlisted > 0 && a.reported != l.set
	if report {
		a.reported = l.set
	}
	return report
}

func newListing(set *Set, removed removals, now time.Time) *listing {
	l := &listing{set: set, removals: removed.count, until: ssh.CertTimeInfinity}
	const header = lengthSize + 1 + 4 // length, type, number of keys
	b, n := make([]byte, header), 0
	for _, id := range set.ids {
		if removed.has(id.blob) || id.expired(now) {
			continue
		}
		size := 4 + len(id.blob) + 4 + len(id.Comment)
		if n == maxListed || len(b)+size > lengthSize+maxListMessage {
			l.unlisted++
			continue
		}
		b = appendString(appendString(b, id.blob), id.Comment)
		n++
		l.until = min(l.until, id.expires)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-lengthSize))
	b[lengthSize] = msgIdentitiesAnswer
	binary.BigEndian.PutUint32(b[lengthSize+1:], uint32(n))
	l.answer = b
	return l
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
