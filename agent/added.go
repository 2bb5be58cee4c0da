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
	next    time.Duration // the first deadline, or never
}

// never is no deadline.
const never = time.Duration(1<<63 - 1)

func newAdded() addedKeys { return addedKeys{byBlob: make(map[string]*entry), next: never} }

func (d *addedKeys) get(blob string) *identity {
	if e := d.byBlob[blob]; e != nil {
		return e.identity
	}
	return nil
}

// put adds e, and returns the identity in whose place it came, if any.
func (d *addedKeys) put(e *entry) (replaced []*identity) {
	if old := d.byBlob[e.blob]; old != nil {
		replaced = append(replaced, old.identity)
		d.entries[slices.Index(d.entries, old)] = e
	} else {
		d.entries = append(d.entries, e)
	}
	d.byBlob[e.blob] = e
	d.updateNext()
	return replaced
}

// remove removes those that match and returns them.
func (d *addedKeys) remove(match func(*entry) bool) (gone []*identity) {
	d.entries = slices.DeleteFunc(d.entries, func(e *entry) bool {
		if !match(e) {
			return false
		}
		gone = append(gone, e.identity)
		delete(d.byBlob, e.blob)
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

// removals are the identities of the source that clients have removed, by
// blob. They belong to the source, so they are only hidden, and come back with
// [Agent.Reload]. A removals is never changed, only replaced: a copy taken
// under the lock can be read outside it.
type removals map[string]bool

// and returns the removals with ids among them, and how many are new.
func (r removals) and(ids ...*identity) (more removals, n int) {
	more = maps.Clone(r)
	if more == nil {
		more = make(removals, len(ids))
	}
	for _, id := range ids {
		more[id.blob] = true
	}
	return more, len(more) - len(r)
}

// own is what the agent holds itself at one moment: the source's identities
// without those removed, and the ones added. Of two with the same blob the
// added one counts.
type own struct {
	set     *Set
	removed removals
	order   []*identity // those added
	added   map[string]*identity
	changes uint64 // Agent.changes
}

// own looks at everything.
func (a *Agent) own() own {
	o := own{set: a.source.Identities(), added: make(map[string]*identity)}
	a.mu.Lock()
	defer a.mu.Unlock()
	o.removed, o.changes = a.removed, a.changes
	for _, e := range a.added.entries {
		o.order = append(o.order, e.identity)
		o.added[e.blob] = e.identity
	}
	return o
}

func (o own) holds(blob string) bool {
	return o.added[blob] != nil || (o.set.byBlob[blob] != nil && !o.removed[blob])
}

// all are the identities in the order in which they are listed: an added one
// that is in the source as well has its place there.
func (o own) all() []*identity {
	ids := make([]*identity, 0, len(o.set.ids)+len(o.order))
	for _, id := range o.set.ids {
		if front := o.added[id.blob]; front != nil {
			ids = append(ids, front)
		} else if !o.removed[id.blob] {
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
	locked, id, removed := a.lock.locked, a.added.get(blob), a.removed[blob]
	a.mu.Unlock()
	if id == nil {
		id = set.byBlob[blob]
	} else {
		removed = false
	}
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

// hold adds an identity. The source's identities with the same key stay hidden
// from now on, certificates included: the constraints are about the key, and
// must not be got around by another name for it. They come back with Reload.
// A certificate that has expired already was not added by oversight: one can
// still sign for a time in the past, and so it stays offered.
func (a *Agent) hold(id *identity) {
	if id.expired(time.Now()) {
		id.expires = ssh.CertTimeInfinity
	}
	e := &entry{identity: id}
	if seconds, mortal := a.lifetimeOf(id.limits); mortal {
		e.mortal, e.deadline = true, a.clock.Now()+seconds
	}
	set := a.source.Identities()
	var hidden []*identity
	for _, other := range set.ids {
		if other.line == id.line {
			hidden = append(hidden, other)
		}
	}
	a.mu.Lock()
	if len(hidden) > 0 {
		a.removed, _ = a.removed.and(hidden...)
	}
	replaced := a.added.put(e)
	a.changed()
	a.mu.Unlock()
	wipe(replaced)
	a.expire() // a lifetime of 0 is over now
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
	if a.added.next == never {
		a.mu.Unlock()
		return
	}
	now := a.clock.Now()
	if now < a.added.next {
		a.mu.Unlock()
		return
	}
	gone := a.added.remove(func(e *entry) bool { return e.mortal && now >= e.deadline })
	a.changed()
	a.mu.Unlock()
	wipe(gone)
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

// drop removes added identities, and wipes them.
func (a *Agent) drop(match func(*entry) bool) []*identity {
	a.mu.Lock()
	gone := a.added.remove(match)
	if len(gone) > 0 {
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
