package consent

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
)

// lookEvery is how often to look whether keys are still there while their PINs
// are remembered and no client asks.
const lookEvery = 30 * time.Second

// store has the PINs and the consent that are remembered.
type store struct {
	clock       Clock
	log         *slog.Logger
	remembering func()
	look        func() // is called when it is time to look at what is remembered

	// forgotten is how often everything was forgotten. What was typed before is
	// not remembered after it.
	forgotten atomic.Uint64

	mu        sync.Mutex
	pins      map[string]*pin
	grants    []*grant
	stopAlarm func() // may be nil
}

func newStore(c Config, look func()) store {
	return store{clock: c.Clock, log: c.Log, remembering: c.Remembering, look: look, pins: make(map[string]*pin)}
}

// span is a time that ends at deadline, unless it is forever.
type span struct {
	forever  bool
	deadline time.Duration // by the Clock
}

func (s span) over(now time.Duration) bool { return !s.forever && now >= s.deadline }

// left returns how much time is left.
func (s span) left(now time.Duration) time.Duration {
	if s.forever {
		return restrict.Forever
	}
	return max(0, s.deadline-now)
}

// pin is a PIN that the key has accepted.
type pin struct {
	span
	id    *Identity
	value *softkey.Secret
}

// pin returns the PIN that is remembered for a key, or nil.
func (s *store) pin(id *Identity) *softkey.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[id.KeyBlob]
	switch {
	case p == nil || p.id.Key != id.Key:
		return nil
	case p.over(s.clock.Now()):
		s.forgetLocked(func(q *pin) bool { return q == p })
		return nil
	}
	return p.value
}

// left returns for how long the PIN of a key is still remembered.
func (s *store) left(id *Identity) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[id.KeyBlob]
	if p == nil || p.id.Key != id.Key {
		return 0
	}
	return p.left(s.clock.Now())
}

// put remembers a PIN, unless everything was forgotten since.
func (s *store) put(id *Identity, value *softkey.Secret, life time.Duration, since uint64) bool {
	if !s.add(&pin{span{life == restrict.Forever, s.clock.Now() + life}, id, value}, since) {
		return false
	}
	s.log.Info("PIN remembered", "key", id.Label(), "fingerprint", id.Fingerprint, "duration", restrict.LifeText(life))
	return true
}

func (s *store) add(p *pin, since uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgotten.Load() != since {
		return false
	}
	if old := s.pins[p.id.KeyBlob]; old != nil {
		old.value.Wipe()
	}
	s.pins[p.id.KeyBlob] = p
	s.setAlarm()
	s.remembering()
	return true
}

// forgetAll forgets all PINs and all consent, and returns how many PINs there
// were.
func (s *store) forgetAll() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten.Add(1)
	s.grants = nil
	return s.forgetLocked(func(*pin) bool { return true })
}

// forget forgets the PINs that match, and returns how many did.
func (s *store) forget(match func(*pin) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forgetLocked(match)
}

func (s *store) forgetLocked(match func(*pin) bool) int {
	before := len(s.pins)
	maps.DeleteFunc(s.pins, func(_ string, p *pin) bool {
		gone := match(p)
		if gone {
			p.value.Wipe()
		}
		return gone
	})
	if len(s.pins) < before {
		s.setAlarm()
	}
	return before - len(s.pins)
}

// sweep forgets what has ended, or belongs to keys that are not offered.
func (s *store) sweep(offered func(keyBlob string, key Key) bool) {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(func(p *pin) bool { return p.over(now) || !offered(p.id.KeyBlob, p.id.Key) })
	s.grants = slices.DeleteFunc(s.grants, func(g *grant) bool { return g.outlived(now) || !offered(g.id.KeyBlob, g.id.Key) })
}

// setAlarm sets the alarm for the next look. s.mu is held.
func (s *store) setAlarm() {
	if s.stopAlarm != nil {
		s.stopAlarm()
		s.stopAlarm = nil
	}
	if len(s.pins) == 0 {
		return
	}
	now := s.clock.Now()
	next := lookEvery
	for _, p := range s.pins {
		next = min(next, p.left(now))
	}
	s.stopAlarm = s.clock.AfterFunc(next, func() {
		s.look()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.setAlarm()
	})
}

// grant is consent to the use of a key that holds for some time. It is for one
// key and for the use that its owner was told about: the same login or
// namespace, from the same place.
type grant struct {
	span
	id      *Identity
	use     string         // see scopeOf
	process *peer.Instance // nil: any
}

// scopeOf returns all that the owner was told about a use.
func scopeOf(u ask.Use) string { return fmt.Sprintf("%#v", u) }

// outlived reports whether a grant is of no use any more.
func (g *grant) outlived(now time.Duration) bool {
	if g.process != nil {
		running := peer.Peer{PID: g.process.PID}.Instance()
		return running == nil || *running != *g.process
	}
	return g.over(now)
}

// granted reports whether consent holds for a request.
func (s *store) granted(t *try) bool {
	now, running := s.clock.Now(), t.Peer.Instance()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.grants, func(g *grant) bool {
		return g.id.KeyBlob == t.id.KeyBlob && g.id.Key == t.id.Key && g.use == scopeOf(t.use) &&
			!g.over(now) && (g.process == nil || running != nil && *running == *g.process)
	})
}

// grant remembers consent, unless everything was forgotten since.
func (s *store) grant(t *try, how ask.Grant, since uint64) {
	g := &grant{id: t.id, use: scopeOf(t.use), span: span{forever: true}}
	switch how {
	case ask.GrantProcess:
		if g.process = t.Peer.Instance(); g.process == nil {
			return
		}
	case ask.GrantMinutes:
		g.span = span{deadline: s.clock.Now() + ask.GrantTime}
	case ask.GrantUntilLocked:
	default:
		return
	}
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants = slices.DeleteFunc(s.grants, func(g *grant) bool { return g.outlived(now) })
	if s.forgotten.Load() == since {
		s.grants = append(s.grants, g)
		s.remembering()
	}
}

// PINLeft returns for how long the PIN of a key is still remembered.
func (o *Owner) PINLeft(id *Identity) time.Duration { return o.store.left(id) }

// life returns for how long the PIN of a key is remembered: as its owner said
// when it was added, else as the agent was told.
func (o *Owner) life(id *Identity) time.Duration {
	switch {
	case id.PINLife != nil:
		return *id.PINLife
	case o.PINLife != nil:
		return o.PINLife(id.Name, id.Fingerprint)
	}
	return 0
}

// remember remembers a PIN, unless its life is 0, the key is gone, or everything
// was forgotten since.
func (o *Owner) remember(id *Identity, value *softkey.Secret, life time.Duration, since uint64) bool {
	if life <= 0 || !o.store.put(id, value, life, since) {
		return false
	}
	o.Sweep()
	return o.store.pin(id) == value
}

// forgetWrong forgets a PIN that has turned out to be wrong.
func (o *Owner) forgetWrong(id *Identity, value *softkey.Secret) {
	if o.store.forget(func(p *pin) bool { return p.value == value }) > 0 {
		o.Log.Warn("the remembered PIN is wrong and was forgotten", "key", id.Label(), "fingerprint", id.Fingerprint)
	}
}

// Forget forgets all PINs, and all consent that was given for a time. It returns
// how many PINs there were.
func (o *Owner) Forget() int { return o.store.forgetAll() }

// Sweep forgets what belongs to keys that are not offered any more.
func (o *Owner) Sweep() {
	offered, exists := o.Present()
	o.store.sweep(offered)
	o.book.sweep(exists)
}
