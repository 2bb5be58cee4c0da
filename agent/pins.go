package agent

import (
	"slices"
	"time"
)

// sweepEvery is how often it is looked, while PINs are remembered and nobody
// asks anything, whether their keys are still there.
const sweepEvery = 30 * time.Second

// pin is a PIN that is remembered. The key has taken it.
type pin struct {
	id       *identity // of then; what counts is its Key
	value    *memory
	mortal   bool
	deadline time.Duration // by the agent's clock; if mortal
}

// rememberedPIN returns the PIN that is remembered for the key of id, or nil.
func (a *Agent) rememberedPIN(id *identity) *memory {
	a.expirePINs()
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pins[id.line]
	if p == nil || p.id.Key != id.Key {
		return nil
	}
	return p.value
}

// keepPIN keeps a PIN that the key has taken: for as long as was asked for, or
// (own) for those who wait for it now. since is Agent.forgotten from before it
// was typed.
func (a *Agent) keepPIN(id *identity, value []byte, since uint64) (kept *memory, own bool, err error) {
	kept, err = newMemory(len(value), func(b []byte) { copy(b, value) })
	if err != nil {
		return nil, false, err
	}
	return kept, !a.rememberPIN(id, kept, a.lifeOfPIN(id), since), nil
}

// lifeOfPIN is for how long the PIN of a key is remembered: as was said when it
// was added, else as the agent was told.
func (a *Agent) lifeOfPIN(id *identity) time.Duration {
	switch {
	case id.limits != nil && id.limits.pinLife != nil:
		return seconds(*id.limits.pinLife)
	case a.pinLife != nil:
		return a.pinLife(id.Name, id.fingerprint())
	}
	return 0
}

// rememberPIN remembers a PIN for some time. It does not if there is no time, or
// if meanwhile the key has gone or all PINs were forgotten.
func (a *Agent) rememberPIN(id *identity, value *memory, life time.Duration, since uint64) bool {
	if life <= 0 {
		return false
	}
	p := &pin{id: id, value: value, mortal: life != Forever}
	if p.mortal {
		p.deadline = a.clock.Now() + life
	}
	present, refused := a.lookup(id.blob)
	if refused != nil || present.Key != id.Key || !a.putPIN(p, since) {
		return false
	}
	a.log.Info("PIN remembered", "key", id.name(), "fingerprint", id.fingerprint(), "duration", lifeText(life))
	return true
}

func (a *Agent) putPIN(p *pin, since uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lock.locked || a.forgotten.Load() != since {
		return false
	}
	if old := a.pins[p.id.line]; old != nil {
		old.value.wipe()
	}
	a.pins[p.id.line] = p
	a.setPINAlarm()
	a.remembering()
	return true
}

func lifeText(life time.Duration) string {
	switch life {
	case Forever:
		return "session"
	case 0:
		return "off"
	}
	return life.String()
}

// forgetWrong forgets a PIN that has turned out to be wrong.
func (a *Agent) forgetWrong(id *identity, value *memory) {
	n := a.forget(func(p *pin) bool { return p.value == value })
	if n > 0 {
		a.log.Warn("the PIN that was remembered is wrong, and was forgotten", "key", id.name(), "fingerprint", id.fingerprint())
	}
}

// ForgetPINs forgets all PINs, and all consent that was given for a time. It
// returns how many PINs there were.
func (a *Agent) ForgetPINs() int {
	a.forgotten.Add(1)
	a.forgetGrants(func(*grant) bool { return true })
	return a.forget(func(*pin) bool { return true })
}

// forget forgets the PINs that match.
func (a *Agent) forget(match func(*pin) bool) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for line, p := range a.pins {
		if match(p) {
			p.value.wipe()
			delete(a.pins, line)
			n++
		}
	}
	if n > 0 {
		a.setPINAlarm()
	}
	return n
}

// expirePINs forgets those whose time is over.
func (a *Agent) expirePINs() {
	a.mu.Lock()
	none := len(a.pins) == 0
	a.mu.Unlock()
	if none {
		return
	}
	now := a.clock.Now()
	a.forget(func(p *pin) bool { return p.mortal && now >= p.deadline })
}

// sweepPINs forgets, besides, those whose keys are not there any more, or are
// others now.
func (a *Agent) sweepPINs() {
	a.expirePINs()
	set := a.source.Identities()
	a.forget(func(p *pin) bool { return !a.has(set, p.id.line, p.id.Key, false) })
	a.forgetGrants(func(g *grant) bool { return !a.has(set, g.id.line, g.id.Key, false) })
	a.mu.Lock()
	defer a.mu.Unlock()
	a.swept = set
	for line, known := range a.auth {
		if !a.has(set, line, known.key, true) {
			delete(a.auth, line)
		}
	}
}

// sweepIfChanged is for when the source has changed.
func (a *Agent) sweepIfChanged(set *Set) {
	a.mu.Lock()
	idle := a.swept == set
	a.mu.Unlock()
	if !idle {
		a.sweepPINs()
	}
}

// has says whether there is an identity with this key. Those of the source that
// clients have removed count only if hidden says so. a.mu is held.
func (a *Agent) has(set *Set, line string, key Key, hidden bool) bool {
	same := func(id *identity) bool { return id.line == line && id.Key == key }
	offered := func(id *identity) bool { return same(id) && (hidden || !a.hides(id)) }
	if id := set.byBlob[line]; id != nil && offered(id) {
		return true // most are found so; of the others there may be a certificate
	}
	return slices.ContainsFunc(set.ids, offered) ||
		slices.ContainsFunc(a.added.entries, func(e *entry) bool { return same(e.identity) })
}

// setPINAlarm sets the alarm for the next moment at which PINs are to be
// looked at. a.mu is held.
func (a *Agent) setPINAlarm() {
	if a.stopPINAlarm != nil {
		a.stopPINAlarm()
		a.stopPINAlarm = nil
	}
	if len(a.pins) == 0 {
		return
	}
	now := a.clock.Now()
	next := now + sweepEvery
	for _, p := range a.pins {
		if p.mortal {
			next = min(next, p.deadline)
		}
	}
	a.stopPINAlarm = a.clock.AfterFunc(max(0, next-now), a.lookAfterPINs)
}

// lookAfterPINs is the alarm.
func (a *Agent) lookAfterPINs() {
	a.sweepPINs()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setPINAlarm()
}
