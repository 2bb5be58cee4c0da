package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// rounds are the searches for auth values that are going on, one for each key
// and for each place that signatures are wanted from.
type rounds struct {
	mu sync.Mutex // guards the fields of every round, too
	m  map[roundKey]*round

	running int           // goroutines
	idle    chan struct{} // closed when none runs any more
}

// start runs f in a goroutine that wait knows of. rs.mu is held.
func (rs *rounds) start(f func()) {
	if rs.running == 0 {
		rs.idle = make(chan struct{})
	}
	rs.running++
	go func() {
		defer rs.ended()
		f()
	}()
}

func (rs *rounds) ended() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.running--
	if rs.running == 0 {
		close(rs.idle)
	}
}

// wait waits for all goroutines, but not longer than d.
func (rs *rounds) wait(d time.Duration) bool {
	rs.mu.Lock()
	running, idle := rs.running > 0, rs.idle
	rs.mu.Unlock()
	return !running || within(d, idle)
}

// roundKey: a PIN that was typed for requests of this machine must not sign
// one that came over a forwarding meanwhile, nor the other way round; so those
// have rounds of their own.
type roundKey struct {
	key    Key
	line   string
	origin string // see conn.origin
}

// round finds out the auth value of a key, once for all who wait for it. It
// goes on while somebody does: who hangs up leaves it, and the last one takes
// the dialog along.
type round struct {
	a       *Agent
	key     roundKey
	ctx     context.Context
	cancel  context.CancelFunc
	members []*member          // those who wait, in order of arrival
	answer  context.CancelFunc // ends the dialog that is open, because its answer is known; may be nil
	unused  error              // why a PIN that was given is not used; may be nil

	// signer is the member for whom the auth value was tried that was right,
	// and signature what came of it.
	signer    *member
	signature []byte
}

// member is one who waits for a round.
type member struct {
	t       *try
	ctx     context.Context
	outcome chan outcome // gets one
}

// outcome is what a round has brought.
type outcome struct {
	sig      []byte // the signature, if it was this one's that the PIN was tried with
	err      error
	pin      *memory // the PIN; nil: none is needed
	done     func()  // to be called when pin is not needed any more; may be nil
	panicked any
}

var errNobody = errors.New("nobody waits for the signature any longer")

// join waits for the round of t's key, and signs with what it brings.
func (rs *rounds) join(ctx context.Context, t *try) ([]byte, error) {
	m := &member{t: t, ctx: ctx, outcome: make(chan outcome, 1)}
	r := rs.enter(m)
	select {
	case o := <-m.outcome:
		return m.sign(o)
	case <-ctx.Done():
	}
	if !rs.leave(r, m) {
		if o := <-m.outcome; o.done != nil {
			o.done()
		}
	}
	return nil, ctx.Err()
}

func (m *member) sign(o outcome) ([]byte, error) {
	if o.done != nil {
		defer o.done()
	}
	switch {
	case o.panicked != nil:
		panic(o.panicked) // for who guards the connection
	case o.sig != nil || o.err != nil:
		return o.sig, o.err
	}
	if err := m.t.lookup(); err != nil {
		return nil, err
	}
	if o.pin == nil {
		return m.t.with(m.ctx, nil)
	}
	sig, err := m.t.withPIN(m.ctx, o.pin)
	if errors.Is(err, errWiped) {
		return m.t.sign(m.ctx) // it was forgotten just now
	}
	return sig, err
}

// enter adds m to the round that there is, or to a new one.
func (rs *rounds) enter(m *member) *round {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	key := roundKey{m.t.id.Key, m.t.id.line, m.t.origin}
	r := rs.m[key]
	if r == nil {
		r = &round{a: m.t.a, key: key}
		r.ctx, r.cancel = context.WithCancel(context.Background())
		if rs.m == nil {
			rs.m = make(map[roundKey]*round)
		}
		rs.m[key] = r
		rs.start(r.run)
	}
	r.members = append(r.members, m)
	return r
}

// leave takes out a member who waits no longer. If he is not there any more,
// he has his outcome.
func (rs *rounds) leave(r *round, m *member) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	i := slices.Index(r.members, m)
	if i < 0 {
		return false
	}
	r.members = slices.Delete(r.members, i, i+1)
	if len(r.members) == 0 {
		r.close()
	}
	return true
}

// close ends a round: who comes from now on needs another one. rounds.mu is
// held.
func (r *round) close() {
	if r.a.rounds.m[r.key] == r {
		delete(r.a.rounds.m, r.key)
	}
	r.cancel()
}

// answered ends the dialogs for a key whose PIN has become known.
func (rs *rounds) answered(line string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for key, r := range rs.m {
		if key.line == line && r.answer != nil {
			r.answer()
		}
	}
}

// first is who has waited for longest, and how many others there are.
func (r *round) first() (m *member, others int) {
	r.a.rounds.mu.Lock()
	defer r.a.rounds.mu.Unlock()
	if len(r.members) == 0 {
		return nil, 0
	}
	return r.members[0], len(r.members) - 1
}

// settle gives one member his outcome. He may have left.
func (r *round) settle(m *member, o outcome) {
	if r.a.rounds.leave(r, m) {
		m.outcome <- o
	}
}

// run is the round.
func (r *round) run() {
	defer func() {
		if p := recover(); p != nil {
			r.a.log.Error("panic while signing", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			r.finish(outcome{panicked: p})
		}
	}()
	pin, own, err := r.find()
	o := outcome{pin: pin, err: err}
	if own && pin != nil {
		o.done = pin.wipe
	}
	r.finish(o)
}

// finish gives all who wait the outcome. A PIN that is held for them only goes
// with the last one.
func (r *round) finish(o outcome) {
	r.a.rounds.mu.Lock()
	defer r.a.rounds.mu.Unlock()
	r.close()
	i := slices.Index(r.members, r.signer)
	if i >= 0 {
		r.members = slices.Delete(r.members, i, i+1)
	}
	switch wipe := o.done; {
	case wipe == nil:
	case len(r.members) == 0:
		wipe()
	default:
		var users sync.WaitGroup
		users.Add(len(r.members))
		o.done = users.Done
		r.a.rounds.start(func() { users.Wait(); wipe() })
	}
	if i >= 0 {
		r.signer.outcome <- outcome{sig: r.signature}
	}
	for _, m := range r.members {
		m.outcome <- o
	}
	r.members = nil
}
