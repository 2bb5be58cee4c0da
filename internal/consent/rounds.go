package consent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/softkey"
)

// rounds are the searches for auth values in progress, one for each key and each
// place that signatures are wanted from.
type rounds struct {
	mu sync.Mutex // guards the fields of every round, too
	m  map[roundKey]*round

	running int           // goroutines
	idle    chan struct{} // closed when none runs any more
}

// goWith runs f in a goroutine that wait waits for.
func (rs *rounds) goWith(f func()) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.goLocked(f)
}

func (rs *rounds) goLocked(f func()) {
	if rs.running == 0 {
		rs.idle = make(chan struct{})
	}
	rs.running++
	go func() {
		defer func() {
			rs.mu.Lock()
			defer rs.mu.Unlock()
			if rs.running--; rs.running == 0 {
				close(rs.idle)
			}
		}()
		f()
	}()
}

// wait waits for all goroutines, for at most d.
func (rs *rounds) wait(d time.Duration) bool {
	rs.mu.Lock()
	running, idle := rs.running > 0, rs.idle
	rs.mu.Unlock()
	return !running || within(d, idle)
}

// roundKey identifies a round. A PIN that was typed for requests of this machine
// must not sign one that arrived over a forwarding meanwhile, or the other way
// round, so those have rounds of their own.
type roundKey struct {
	key     Key
	keyBlob string
	origin  string // see Request.Origin
}

// round finds the auth value of a key, once for all who wait for it. It runs for
// as long as anyone waits. A client that hangs up leaves it, and the last one
// closes the dialog.
type round struct {
	o       *Owner
	key     roundKey
	ctx     context.Context
	cancel  context.CancelFunc
	members []*member          // in order of arrival
	known   context.CancelFunc // closes the last dialog because its answer is known; may be nil
	unused  error              // why a given PIN is not used; may be nil
	since   uint64             // store.forgotten, when the dialog was opened

	// signer is the member for whom the right auth value was tried, and signature
	// the result.
	signer    *member
	signature []byte
}

// member is a request that waits for a round.
type member struct {
	t       *try
	outcome chan outcome // gets one
}

// outcome is the result of a round for a member.
type outcome struct {
	sig      []byte // the signature, if the PIN was tried for this member
	err      error
	pin      *softkey.Secret // the PIN; nil: none is needed
	done     func()          // to be called when pin is not needed any more; may be nil
	panicked any
}

// answer is the auth value that a round has found.
type answer struct {
	pin   *softkey.Secret // one that is remembered, or
	value []byte          // one for this round only; both nil: none is needed
}

var errNobody = errors.New("all clients that waited for the signature have hung up")

// join waits for the round of t's key, and signs with its result.
func (rs *rounds) join(ctx context.Context, t *try) ([]byte, error) {
	m := &member{t: t, outcome: make(chan outcome, 1)}
	r := rs.enter(m)
	var o outcome
	select {
	case o = <-m.outcome:
	case <-ctx.Done():
		if !rs.leave(r, m) {
			if o = <-m.outcome; o.done != nil {
				o.done()
			}
		}
		return nil, ctx.Err()
	}
	if o.done != nil {
		defer o.done()
	}
	switch {
	case o.panicked != nil:
		panic(o.panicked) // the connection's guard handles it
	case o.sig != nil || o.err != nil:
		return o.sig, o.err
	}
	if err := t.lookup(); err != nil {
		return nil, err
	}
	if o.pin == nil {
		return t.with(ctx, nil)
	}
	sig, err := t.withPIN(ctx, o.pin)
	if errors.Is(err, softkey.ErrWiped) {
		return rs.join(ctx, t) // it was forgotten just now
	}
	return sig, err
}

// enter adds m to the round of its key, which begins if there is none.
func (rs *rounds) enter(m *member) *round {
	key := roundKey{m.t.id.Key, m.t.id.KeyBlob, m.t.Origin()}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.m[key]
	if r == nil || r.ctx.Err() != nil { // none waits for that one any more
		r = &round{o: m.t.o, key: key}
		r.ctx, r.cancel = context.WithCancel(context.Background())
		if rs.m == nil {
			rs.m = make(map[roundKey]*round)
		}
		rs.m[key] = r
		rs.goLocked(r.run)
	}
	r.members = append(r.members, m)
	return r
}

// leave removes a member that does not wait any longer. It returns false if the
// member has its outcome.
func (rs *rounds) leave(r *round, m *member) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	i := slices.Index(r.members, m)
	if i < 0 {
		return false
	}
	r.members = slices.Delete(r.members, i, i+1)
	if len(r.members) == 0 {
		r.cancel()
	}
	return true
}

// answered closes the dialogs for a key whose PIN has become known.
func (rs *rounds) answered(keyBlob string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for key, r := range rs.m {
		if key.keyBlob == keyBlob && r.known != nil {
			r.known()
		}
	}
}

// first returns the member that has waited longest, and how many others wait.
func (rs *rounds) first(r *round) (m *member, others int) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(r.members) == 0 {
		return nil, 0
	}
	return r.members[0], len(r.members) - 1
}

// settle gives one member its outcome, unless it has left.
func (rs *rounds) settle(r *round, m *member, err error) {
	if rs.leave(r, m) {
		m.outcome <- outcome{err: err}
	}
}

// run is the round.
func (r *round) run() {
	defer func() {
		if p := recover(); p != nil {
			r.o.Log.Error("panic while signing", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			r.o.rounds.finish(r, outcome{panicked: p}, nil)
		}
	}()
	found, err := r.find()
	defer clear(found.value)
	r.o.rounds.finish(r, outcome{pin: found.pin, err: err}, found.value)
}

// finish gives all members the outcome. A PIN that is only for them, value, is
// overwritten after the last one.
func (rs *rounds) finish(r *round, o outcome, value []byte) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.m[r.key] == r {
		delete(rs.m, r.key)
	}
	r.cancel()
	if i := slices.Index(r.members, r.signer); i >= 0 {
		r.members = slices.Delete(r.members, i, i+1)
		r.signer.outcome <- outcome{sig: r.signature}
	}
	if len(value) > 0 && len(r.members) > 0 {
		o.pin, o.err = softkey.NewSecret(value)
	}
	if len(value) > 0 && o.pin != nil {
		var users sync.WaitGroup
		users.Add(len(r.members))
		o.done = users.Done
		rs.goLocked(func() { users.Wait(); o.pin.Wipe() })
	}
	for _, m := range r.members {
		m.outcome <- o
	}
	r.members = nil
}

// Waiting returns how many requests wait for a PIN.
func (o *Owner) Waiting() (n int) {
	o.rounds.mu.Lock()
	defer o.rounds.mu.Unlock()
	for _, r := range o.rounds.m {
		n += len(r.members)
	}
	return n
}

// turns are queues, one for each name. A queue exists while someone is in it.
// The zero value has none.
type turns struct {
	mu sync.Mutex
	m  map[string]*turn
}

// turn lets one in at a time, in order of arrival: a channel serves its senders
// first come, first served.
type turn struct {
	inside chan struct{}
	users  int // waiting or inside; guarded by turns.mu
}

// enter waits for its turn, which lasts until leave is called. It gives up when
// ctx ends.
func (t *turns) enter(ctx context.Context, name string) (leave func(), err error) {
	t.mu.Lock()
	if t.m == nil {
		t.m = make(map[string]*turn)
	}
	mine := t.m[name]
	if mine == nil {
		mine = &turn{inside: make(chan struct{}, 1)}
		t.m[name] = mine
	}
	mine.users++
	t.mu.Unlock()
	select {
	case mine.inside <- struct{}{}:
		return func() { <-mine.inside; t.part(name, mine) }, nil
	case <-ctx.Done():
		t.part(name, mine)
		return nil, ctx.Err()
	}
}

func (t *turns) part(name string, turn *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if turn.users--; turn.users == 0 {
		delete(t.m, name)
	}
}
