package agent

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// wiper is a Key whose private part is in memory, and can be overwritten there.
// It may be in use at the time.
type wiper interface{ Wipe() }

// maxAdded is how many identities clients can add, four times what they accept in
// a list. Each private key has pages of its own, of which the kernel gives a
// process 65530 (vm.max_map_count); without them Go's runtime ends it. A host that
// the agent is forwarded to could otherwise add that many.
const maxAdded = 4 * wire.MaxListed

// entry is an identity that was added at run time.
type entry struct {
	*identity
	mortal   bool
	deadline time.Duration // by the Clock; if mortal
}

// never is no deadline.
const never = time.Duration(1<<63 - 1)

// addedKeys are the identities that clients have added, in the order in which they
// did. One that is added again keeps its place.
type addedKeys struct {
	clock  consent.Clock
	expire func() // is called after the next deadline
	max    int

	next atomic.Int64 // the first deadline, or never
	set  atomic.Pointer[Set]

	mu        sync.Mutex
	entries   []*entry
	byBlob    map[string]*entry
	stopAlarm func() // may be nil
}

func newAdded(clock consent.Clock, expire func()) *addedKeys {
	d := &addedKeys{clock: clock, expire: expire, max: maxAdded, byBlob: make(map[string]*entry)}
	d.set.Store(new(Set))
	d.next.Store(int64(never))
	return d
}

// get returns the entry of an identity, or nil.
func (d *addedKeys) get(blob string) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byBlob[blob]
}

// put adds e, and returns the identity that it replaces, if any. It returns false
// if there are too many already.
func (d *addedKeys) put(e *entry) (replaced []*identity, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.byBlob[e.blob]
	switch {
	case old != nil:
		replaced = append(replaced, old.identity)
		d.entries[slices.Index(d.entries, old)] = e
	case len(d.entries) >= d.max:
		return nil, false
	default:
		d.entries = append(d.entries, e)
	}
	d.byBlob[e.blob] = e
	d.changed()
	return replaced, true
}

// remove removes the entries that match and returns their identities.
func (d *addedKeys) remove(match func(*entry) bool) (gone []*identity) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries = slices.DeleteFunc(d.entries, func(e *entry) bool {
		if !match(e) {
			return false
		}
		gone = append(gone, e.identity)
		delete(d.byBlob, e.blob)
		return true
	})
	if len(gone) > 0 {
		d.changed()
	}
	return gone
}

// changed makes a new Set and sets the alarm for the next deadline. d.mu is held.
func (d *addedKeys) changed() {
	next, set := never, new(Set)
	for _, e := range d.entries {
		set.ids = append(set.ids, e.identity)
		if e.mortal {
			next = min(next, e.deadline)
		}
	}
	d.set.Store(set)
	d.next.Store(int64(next))
	if d.stopAlarm != nil {
		d.stopAlarm()
		d.stopAlarm = nil
	}
	if next != never {
		d.stopAlarm = d.clock.AfterFunc(max(0, next-d.clock.Now()), d.expire)
	}
}

// wipe overwrites the private keys of ids that are in memory.
func wipe(ids []*identity) {
	for _, id := range ids {
		if w, ok := id.Key.(wiper); ok {
			w.Wipe()
		}
	}
	if len(ids) > 0 {
		softkey.Collect()
	}
}

// removals are the identities of sources that clients have removed. They belong to
// the source, so they are only hidden, and come back with [Keyring.Reload]. A
// removals is never changed, only replaced.
type removals struct {
	blobs map[string]bool // identities
	keys  map[string]bool // keys, with all certificates that they have or will have
}

func (r *removals) has(id *identity) bool { return r.blobs[id.blob] || r.keys[id.KeyBlob] }

// with returns the removals with ids among them, and how many are new.
func (r *removals) with(ids ...*identity) (more *removals, n int) {
	more = &removals{blobs: clone(r.blobs), keys: r.keys}
	for _, id := range ids {
		if !r.has(id) {
			more.blobs[id.blob] = true
			n++
		}
	}
	return more, n
}

// withKeys returns the removals with the keys of ids among them, as far as sets
// have these keys.
func (r *removals) withKeys(sets []*Set, ids []*identity) *removals {
	gone := make(map[string]bool, len(ids))
	for _, id := range ids {
		gone[id.KeyBlob] = true
	}
	more := &removals{blobs: r.blobs, keys: clone(r.keys)}
	for _, s := range sets {
		for _, id := range s.ids {
			if gone[id.KeyBlob] {
				more.keys[id.KeyBlob] = true
			}
		}
	}
	return more
}

func clone(m map[string]bool) map[string]bool {
	if m == nil {
		return make(map[string]bool)
	}
	return maps.Clone(m)
}
