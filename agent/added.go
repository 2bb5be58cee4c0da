package agent

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// wiper is a Key whose private part is in memory, and can be made to vanish
// from there. It may be in use at the time.
type wiper interface{ wipe() }

// maxAdded is how many identities clients can add, four times what they take in
// a list. Each private key has pages of its own, of which the kernel gives a
// process 65530 (vm.max_map_count): without them Go's runtime ends it. Who the
// agent is forwarded to could go as far as that.
const maxAdded = 4 * maxListed

// entry is an identity that was added at run time.
type entry struct {
	*identity
	mortal   bool
	deadline time.Duration // by the agent's clock; if mortal
}

// addedKeys are the identities that clients have added, in the order in which that
// was done; one that is added again keeps its place. It is guarded by
// Agent.mu; what it returns for wiping is wiped outside.
type addedKeys struct {
	entries []*entry
	byBlob  map[string]*entry
	byLine  map[string]int // how many there are of one key and its certificates
	next    time.Duration  // the first deadline, or never
}

// never is no deadline.
const never = time.Duration(1<<63 - 1)

func newAdded() addedKeys {
	return addedKeys{byBlob: make(map[string]*entry), byLine: make(map[string]int), next: never}
}

func (d *addedKeys) get(blob string) *identity {
	if e := d.byBlob[blob]; e != nil {
		return e.identity
	}
	return nil
}

// put adds e, unless there are most already, and returns the identity in whose
// place it came, if any.
func (d *addedKeys) put(e *entry, most int) (replaced []*identity, ok bool) {
	old := d.byBlob[e.blob]
	switch {
	case old != nil:
		replaced = append(replaced, old.identity)
		d.entries[slices.Index(d.entries, old)] = e
	case len(d.entries) >= most:
		return nil, false
	default:
		d.entries = append(d.entries, e)
		d.byLine[e.line]++
	}
	d.byBlob[e.blob] = e
	d.updateNext()
	return replaced, true
}

// remove removes those that match and returns them.
func (d *addedKeys) remove(match func(*entry) bool) (gone []*identity) {
	d.entries = slices.DeleteFunc(d.entries, func(e *entry) bool {
		if !match(e) {
			return false
		}
		gone = append(gone, e.identity)
		delete(d.byBlob, e.blob)
		if d.byLine[e.line]--; d.byLine[e.line] == 0 {
			delete(d.byLine, e.line)
		}
		return true
	})
	d.updateNext()
	return gone
}

func (d *addedKeys) updateNext() {
	d.next = never
	for _, e := range d.entries {
		if e.mortal {
			d.next = min(d.next, e.deadline)
		}
	}
}

// wipe makes the private parts of ids vanish.
func wipe(ids []*identity) {
	for _, id := range ids {
		if w, ok := id.Key.(wiper); ok {
			w.wipe()
		}
	}
	if len(ids) > 0 {
		collect()
	}
}

// removals are the identities of the source that clients have removed. They
// belong to the source, so they are only hidden, and come back with
// [Agent.Reload]. A removals is never changed, only replaced: a copy taken
// under the lock can be read outside it.
type removals struct {
	blobs map[string]bool // identities
	lines map[string]bool // keys, with all certificates that they have or will have
}

func (r removals) has(id *identity) bool { return r.blobs[id.blob] || r.lines[id.line] }

// and returns the removals with ids among them, and how many are new.
func (r removals) and(ids ...*identity) (more removals, n int) {
	more = removals{blobs: with(r.blobs), lines: r.lines}
	for _, id := range ids {
		if !r.has(id) {
			more.blobs[id.blob] = true
			n++
		}
	}
	return more, n
}

// andKeys returns the removals with the keys of ids among them, as far as set
// has them or a certificate of theirs.
func (r removals) andKeys(set *Set, ids []*identity) removals {
	gone := make(map[string]bool, len(ids))
	for _, id := range ids {
		gone[id.line] = true
	}
	more := removals{blobs: r.blobs, lines: with(r.lines)}
	for _, id := range set.ids {
		if gone[id.line] {
			more.lines[id.line] = true
		}
	}
	return more
}

// with is a copy of m that can be written.
func with(m map[string]bool) map[string]bool {
	if m == nil {
		return make(map[string]bool)
	}
	return maps.Clone(m)
}

// own is what the agent holds itself at one moment: the source's identities
// without those that are hidden, and the ones added. Of two with the same blob
// the added one counts.
type own struct {
	set     *Set
	removed removals
	order   []*identity // those added
	added   map[string]*identity
	lines   map[string]bool // of those added
	changes uint64          // Agent.changes
}

// own looks at everything.
func (a *Agent) own() own {
	o := own{set: a.source.Identities(), added: make(map[string]*identity), lines: make(map[string]bool)}
	a.mu.Lock()
	defer a.mu.Unlock()
	o.removed, o.changes = a.removed, a.changes
	for _, e := range a.added.entries {
		o.order = append(o.order, e.identity)
		o.added[e.blob], o.lines[e.line] = e.identity, true
	}
	return o
}

// hides says whether an identity of the source is not offered.
func (o own) hides(id *identity) bool { return o.lines[id.line] || o.removed.has(id) }

func (o own) holds(blob string) bool {
	id := o.set.byBlob[blob]
	return o.added[blob] != nil || id != nil && !o.hides(id)
}

// all are the identities in the order in which they are listed: an added one
// that is in the source as well has its place there.
func (o own) all() []*identity {
	ids := make([]*identity, 0, len(o.set.ids)+len(o.order))
	for _, id := range o.set.ids {
		if front := o.added[id.blob]; front != nil {
			ids = append(ids, front)
		} else if !o.hides(id) {
			ids = append(ids, id)
		}
	}
	for _, id := range o.order {
		if o.set.byBlob[id.blob] == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// lookup finds the identity that a client names by its blob, if it may be used
// now. With a refusal the identity may be there as well, for the log.
func (a *Agent) lookup(blob string) (*identity, *refusal) {
	a.expire()
	set, now := a.source.Identities(), time.Now()
	a.sweepIfChanged(set)
	a.mu.Lock()
	locked, id, removed := a.lock.locked, a.added.get(blob), false
	if id == nil {
		id = set.byBlob[blob]
		removed = id != nil && a.hides(id)
	}
	a.mu.Unlock()
	switch {
	case locked:
		return id, &refusal{cause: CauseLocked}
	case id == nil:
		return nil, &refusal{cause: CauseUnknownKey}
	case removed:
		return id, &refusal{cause: CauseRemoved}
	case id.expired(now):
		return id, &refusal{cause: CauseExpired}
	}
	return id, nil
}

// hides says whether an identity of the source is not offered: it was removed,
// or its key was added. The constraints of that are about the key, and must not
// be got around by another name for it, such as a certificate that comes later.
// a.mu is held.
func (a *Agent) hides(id *identity) bool { return a.added.byLine[id.line] > 0 || a.removed.has(id) }

// hold adds an identity. A certificate that has expired already was not added by
// oversight: one can still sign for a time in the past, and so it stays offered.
// It is false if there is no room.
func (a *Agent) hold(id *identity) bool {
	if id.expired(time.Now()) {
		id.expires = ssh.CertTimeInfinity
	}
	e := &entry{identity: id}
	if seconds, mortal := a.lifetimeOf(id.limits); mortal {
		e.mortal, e.deadline = true, a.clock.Now()+seconds
	}
	a.mu.Lock()
	replaced, ok := a.added.put(e, a.maxAdded)
	if ok {
		a.changed()
	}
	a.mu.Unlock()
	wipe(replaced)
	a.expire() // a lifetime of 0 is over now
	return ok
}

// lifetimeOf is for how long an identity with these constraints is held.
func (a *Agent) lifetimeOf(c *constraints) (lifetime time.Duration, mortal bool) {
	switch {
	case c.lifetime != nil:
		return time.Duration(*c.lifetime) * time.Second, true
	case a.lifetime > 0:
		return a.lifetime, true
	}
	return 0, false
}

// expire removes what has reached its deadline.
func (a *Agent) expire() {
	a.mu.Lock()
	next := a.added.next
	a.mu.Unlock()
	if next == never {
		return
	}
	now := a.clock.Now()
	if now < next {
		return
	}
	gone := a.drop(func(e *entry) bool { return e.mortal && now >= e.deadline })
	a.sweepPINs()
	for _, id := range gone {
		a.log.Info("lifetime is over, removed", "key", id.name(), "fingerprint", id.fingerprint())
	}
}

// changed notes that what is held has changed, and sets the alarm for the next
// deadline. a.mu is held.
func (a *Agent) changed() {
	a.changes++
	if a.stopAlarm != nil {
		a.stopAlarm()
		a.stopAlarm = nil
	}
	if next := a.added.next; next != never {
		a.stopAlarm = a.clock.AfterFunc(max(0, next-a.clock.Now()), a.expire)
	}
}

// drop removes added identities, and wipes them. Their keys do not come to light
// again in the source, without the constraints that they had, until Reload.
func (a *Agent) drop(match func(*entry) bool) []*identity {
	set := a.source.Identities()
	a.mu.Lock()
	gone := a.added.remove(match)
	if len(gone) > 0 {
		a.removed = a.removed.andKeys(set, gone)
		a.changed()
	}
	a.mu.Unlock()
	wipe(gone)
	return gone
}

// Forget removes all keys that were added, all PINs and all consent that was
// given for a time, and wipes them from memory, also when the agent is locked.
// The keys of the source stay.
func (a *Agent) Forget() {
	n := len(a.drop(func(*entry) bool { return true }))
	a.log.Info("forgot all keys that were added, and all PINs", "keys", n, "PINs", a.ForgetPINs())
}
