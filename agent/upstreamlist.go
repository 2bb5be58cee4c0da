package agent

import (
	"errors"
	"fmt"
	"maps"
	"time"
)

const (
	// rememberFor is how long the list of an upstream that has gone silent is
	// still given.
	rememberFor = time.Minute

	// maxHeld is how many keys are remembered to be with one upstream.
	maxHeld = 2 * maxListed
)

// listed is an identity as an upstream lists it. What kind of key it is
// need not be known here.
type listed struct{ blob, comment string }

// catalog is a list answer, taken apart. It is never changed.
type catalog struct {
	raw   string // without its length
	keys  []listed
	blobs map[string]bool
}

var errList = errors.New("malformed list of keys")

// parseCatalog takes the answer to REQUEST_IDENTITIES apart, RFC 9987, section
// 5.5. Nothing may be missing from it, and nothing be behind it. A key that is
// listed twice counts once.
func parseCatalog(message []byte) (*catalog, error) {
	w := wire{rest: message}
	if number := w.byte(); number != msgIdentitiesAnswer {
		return nil, fmt.Errorf("%w: message %d", errList, number)
	}
	n := w.uint32()
	if uint64(n)*8 > uint64(len(w.rest)) { // two lengths each
		return nil, fmt.Errorf("%w: %d keys in %d bytes", errList, n, len(w.rest))
	}
	c := &catalog{raw: string(message), keys: make([]listed, 0, n), blobs: make(map[string]bool, n)}
	for range n {
		k := listed{string(w.string()), string(w.string())}
		if k.blob != "" && !c.blobs[k.blob] {
			c.keys, c.blobs[k.blob] = append(c.keys, k), true
		}
	}
	if w.err != nil {
		return nil, fmt.Errorf("%w: %w", errList, w.err)
	}
	if len(w.rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind it", errList, len(w.rest))
	}
	return c, nil
}

// merge puts lists behind each other, each key at its first place.
func merge(lists []*catalog) []listed {
	var keys []listed
	seen := make(map[string]bool)
	for _, c := range lists {
		if c == nil {
			continue
		}
		for _, k := range c.keys {
			if !seen[k.blob] {
				keys, seen[k.blob] = append(keys, k), true
			}
		}
	}
	return keys
}

// history is what an upstream has listed before. Its catalogs and maps are
// replaced, never changed.
type history struct {
	last *catalog // the last list for a client without bindings, or nil
	at   time.Time
	held map[string]bool // the keys that it has listed, to whomever
}

// learn notes a list that has just come.
func (u *upstream) learn(c *catalog, unbound bool) {
	u.listedNow()
	u.mu.Lock()
	defer u.mu.Unlock()
	m := &u.history
	if unbound {
		m.last, m.at, m.held = c, time.Now(), c.blobs
		return
	}
	// A client with bindings does not see all. What it sees may be hidden
	// from clients that have none.
	m.held = union(m.held, c.blobs)
}

// union returns a if b has nothing new, and b if both were too many.
func union(a, b map[string]bool) map[string]bool {
	var grown map[string]bool
	for blob := range b {
		if a[blob] {
			continue
		}
		if grown == nil {
			grown = make(map[string]bool, len(a)+len(b))
			maps.Copy(grown, a)
		}
		grown[blob] = true
	}
	switch {
	case grown == nil:
		return a
	case len(grown) > maxHeld:
		return b
	}
	return grown
}

// parse is parseCatalog, without its work if the list is still the same.
func (u *upstream) parse(message []byte) (*catalog, error) {
	u.mu.Lock()
	last := u.history.last
	u.mu.Unlock()
	if last != nil && last.raw == string(message) {
		return last, nil
	}
	return parseCatalog(message)
}

// remembered is what a client gets while there is no answer: the list for
// others like it, or nil. Those with bindings each see what is theirs to see,
// which nobody remembers.
func (u *upstream) remembered(unbound bool) *catalog {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !unbound || u.history.last == nil || time.Since(u.history.at) > rememberFor {
		return nil
	}
	return u.history.last
}

// holds says whether the upstream has listed the key.
func (u *upstream) holds(blob string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.history.held[blob]
}

// forget: keys were removed, so that the list is not what it was.
func (u *upstream) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.history = history{}
}
