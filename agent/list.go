package agent

import (
	"context"
	"encoding/binary"
	"slices"
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

// listHeader is length, type and number of keys.
const listHeader = lengthSize + 1 + 4

// listing is a list answer of the agent's own identities, and what it was made
// from.
type listing struct {
	own        own
	restricted bool   // some of it is not for every connection
	until      uint64 // seconds since 1970; a certificate in it expires then
	answer     []byte
	listed     int
	unlisted   int // would have been in it if there were room
}

// list answers REQUEST_IDENTITIES: with our own identities, those of the
// upstream agents behind them, and with none while the agent is locked.
func (a *Agent) list(ctx context.Context, c *conn) []byte {
	if a.isLocked() {
		return new(listing).finish()
	}
	l := a.listingFor(c, time.Now())
	if !a.upstreams.any() {
		return l.answer
	}
	return l.with(c.relay.list(ctx))
}

// listingFor is what is for all connections, kept until something changes; or,
// if this one may not use all of it, made for this one.
func (a *Agent) listingFor(c *conn, now time.Time) *listing {
	a.expire()
	if l := a.cached(c, a.source.Identities(), now); l != nil {
		return l
	}
	l := newListing(a.own(), nil, now)
	if a.keep(l) {
		a.log.Warn("more keys than clients take in one list; the rest can be used by name (IdentityFile)",
			"listed", l.listed, "unlisted", l.unlisted)
	}
	if l.fits(c) {
		return l
	}
	return newListing(l.own, c, now)
}

// fits says whether the listing is right for c: a connection that belongs to
// no remote session sees everything, as with OpenSSH's agent.
func (l *listing) fits(c *conn) bool { return !l.restricted || !c.bindings.remote() }

// cached returns the last listing if it is still right.
func (a *Agent) cached(c *conn, set *Set, now time.Time) *listing {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.listing
	if l != nil && l.own.set == set && l.own.changes == a.changes && unix(now) < l.until && l.fits(c) {
		return l
	}
	return nil
}

// keep caches l, and says whether identities that do not fit are to be
// reported: once for each set.
func (a *Agent) keep(l *listing) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listing = l
	report := l.unlisted > 0 && a.reported != l.own.set
	if report {
		a.reported = l.own.set
	}
	return report
}

// newListing lists what may be used over c, or everything if c is nil.
func newListing(o own, c *conn, now time.Time) *listing {
	l := &listing{own: o, until: ssh.CertTimeInfinity}
	for _, id := range o.all() {
		if id.expired(now) {
			continue
		}
		if id.limits != nil && len(id.limits.destinations) > 0 {
			l.restricted = true
		}
		if c != nil && id.visible(c, now) != nil {
			continue
		}
		l.add(id.blob, id.Comment)
		l.until = min(l.until, id.expires)
	}
	l.finish()
	return l
}

// add lists an identity if there is room.
func (l *listing) add(blob, comment string) {
	if l.answer == nil {
		l.answer = make([]byte, listHeader)
	}
	size := 4 + len(blob) + 4 + len(comment)
	if l.listed == maxListed || len(l.answer)+size > lengthSize+maxListMessage {
		l.unlisted++
		return
	}
	l.answer = appendString(appendString(l.answer, blob), comment)
	l.listed++
}

// finish writes the header and returns the answer.
func (l *listing) finish() []byte {
	if l.answer == nil {
		l.answer = make([]byte, listHeader)
	}
	b := l.answer
	binary.BigEndian.PutUint32(b, uint32(len(b)-lengthSize))
	b[lengthSize] = msgIdentitiesAnswer
	binary.BigEndian.PutUint32(b[lengthSize+1:], uint32(l.listed))
	return b
}

// with returns the answer with more behind it. What we hold ourselves is not
// among it a second time, listed here or not.
func (l *listing) with(more []listed) []byte {
	merged := &listing{answer: slices.Clone(l.answer), listed: l.listed}
	for _, id := range more {
		if !l.own.holds(id.blob) {
			merged.add(id.blob, id.comment)
		}
	}
	return merged.finish()
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
