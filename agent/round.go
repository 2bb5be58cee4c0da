package agent

import (
	"bytes"
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
	if own {
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

// find finds the auth value, nil if none is needed. own says that it is held
// for this round only.
//
// The key's line is entered before anything is asked or tried, so that there
// is one dialog for a key at a time, and so that others' tries are known.
func (r *round) find() (pin *memory, own bool, err error) {
	leave, err := r.a.lines.enter(r.ctx, r.key.line)
	if err != nil {
		return nil, false, err
	}
	defer leave()
	id, err := r.identity()
	if err != nil {
		return nil, false, err
	}
	if known, ok := r.a.learned(id); ok && !known.needed {
		return nil, false, nil
	} else if !ok && !id.Key.AuthRequired() {
		wrong, err := r.attempt(nil)
		if !wrong {
			if err == nil {
				r.a.learnNeeded(id, false)
			}
			return nil, false, err
		}
		r.a.learnNeeded(id, true)
	}
	if pin := r.a.rememberedPIN(id); pin != nil {
		return pin, false, nil
	}
	if pin, err := r.given(id); pin != nil || err != nil {
		return pin, true, err
	}
	return r.prompt(id)
}

// identity is that of a member who may still use it. Those who may not are
// told.
func (r *round) identity() (*identity, error) {
	for {
		m, _ := r.first()
		if m == nil {
			return nil, errNobody
		}
		err := m.t.lookup()
		if err == nil {
			return m.t.id, nil
		}
		r.settle(m, outcome{err: err})
	}
}

// attempt signs for one member. Whether the auth value is wrong is found out
// at the price of one try, whoever leaves meanwhile; an error besides is for
// all.
func (r *round) attempt(value []byte) (wrong bool, err error) {
	for {
		m, _ := r.first()
		if m == nil {
			return false, errNobody
		}
		if err := m.t.lookup(); err != nil {
			r.settle(m, outcome{err: err})
			continue
		}
		sig, err := m.t.with(m.ctx, value)
		switch {
		case isWrongAuth(err):
			return true, nil
		case err != nil && m.ctx.Err() != nil:
			r.settle(m, outcome{err: err}) // which says nothing about the value
		case err != nil:
			return false, r.a.explained(m.t, err)
		default:
			r.signer, r.signature = m, sig
			return false, nil
		}
	}
}

// explained is what members are told about an error of the key, and the user.
func (a *Agent) explained(t *try, err error) error {
	var l lockedOut
	if errors.As(err, &l) {
		a.inform(Notice{Question: t.question(), Lockout: true, Wait: l.LockedOut()})
		return &refusal{CauseLockout, err}
	}
	return err
}

// given tries the PIN that is there for the key without asking anybody. One
// that was wrong is not tried again, and none is where it could lock up the
// key's keeper, unless it was right before.
func (r *round) given(id *identity) (*memory, error) {
	if r.a.givenPIN == nil {
		return nil, nil
	}
	value, version, err := r.a.givenPIN(id.Name, id.fingerprint())
	if err != nil {
		r.a.log.Warn("the PIN that was given for a key cannot be used", "key", id.name(), "cause", err)
	}
	if err != nil || value == nil {
		return nil, nil
	}
	defer clear(value)
	known, _ := r.a.learned(id)
	if l, _ := r.a.lockout(r.ctx, id); known.refused == version || known.taken != version && l.risky() {
		r.a.log.Warn("the PIN that was given for a key is not tried", "key", id.name(), "wrong", known.refused == version)
		return nil, nil
	}
	wrong, err := r.attempt(value)
	switch {
	case wrong:
		r.a.learn(id, func(l *auth) { l.refused = version })
		r.a.log.Warn("the PIN that was given for a key is wrong, and is not tried again", "key", id.name())
		return nil, nil
	case err != nil:
		return nil, err
	}
	r.a.learn(id, func(l *auth) { l.taken = version })
	return newMemory(len(value), func(b []byte) { copy(b, value) })
}

// risky: one wrong value locks up, or has.
func (l Lockout) risky() bool { return l.Tries == 0 || l.Tries == 1 }

// prompt asks and signs, until the PIN is right or there is a reason to stop.
func (r *round) prompt(id *identity) (pin *memory, own bool, err error) {
	var wrong [][]byte // kept until the end, not to spend another try on any of them
	defer func() {
		for _, w := range wrong {
			clear(w)
		}
	}()
	for n := range maxPrompts {
		value, err := r.ask(n > 0)
		if pin := r.a.rememberedPIN(id); pin != nil && err != nil {
			return pin, false, nil // given elsewhere while the dialog was open
		}
		if err != nil {
			return nil, false, err
		}
		if known, _ := r.a.learned(id); slices.ContainsFunc(wrong, func(w []byte) bool { return bytes.Equal(w, value) }) ||
			len(value) == 0 && known.emptyWrong {
			clear(value) // and is still wrong: it would only cost another try
			continue
		}
		isWrong, err := r.attempt(value)
		if !isWrong {
			defer clear(value)
			if err != nil {
				return nil, false, err
			}
			return r.a.keepPIN(id, value)
		}
		if len(value) == 0 {
			r.a.learn(id, func(l *auth) { l.emptyWrong = true })
		}
		wrong = append(wrong, value)
	}
	return nil, false, &refusal{cause: CauseWrongAuth}
}

// ask opens the dialog, for the one who has waited for longest.
func (r *round) ask(retry bool) ([]byte, error) {
	m, others := r.first()
	if m == nil {
		return nil, errNobody
	}
	a := r.a
	if a.prompter == nil {
		return nil, &refusal{cause: CauseNoPrompt}
	}
	asking, done := a.untilLocked(r.ctx)
	defer done()
	asking, answered := context.WithCancel(asking)
	defer answered()
	r.dialog(answered)
	defer r.dialog(nil)
	p := AuthPrompt{Question: m.t.question(), Retry: retry, Waiting: others}
	value, err := a.askWithin(asking, m.t, p)
	if err != nil && a.isLocked() {
		return nil, &refusal{CauseLocked, err}
	}
	return value, err
}

// askWithin asks for a PIN, if the TPM would take it; and before the last try,
// whether it is to be made.
func (a *Agent) askWithin(ctx context.Context, t *try, p AuthPrompt) ([]byte, error) {
	l, known := a.lockout(ctx, t.id)
	p.TriesLeft = l.Tries
	if l.Tries == 0 && (known || p.Retry) {
		a.inform(Notice{Question: p.Question, Lockout: true, Wait: l.Wait})
		return nil, &refusal{CauseLockout, lockoutEnds(l.Wait)}
	}
	if l.Tries == 1 {
		if err := a.prompter.LastTry(ctx, p); err != nil {
			return nil, &refusal{promptCause(err), err}
		}
	}
	value, err := a.prompter.AuthValue(ctx, p)
	if err != nil {
		return nil, &refusal{promptCause(err), err}
	}
	return value, nil
}

// lockoutEnds says when, if that is known.
func lockoutEnds(wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	return fmt.Errorf("the TPM gives back one try after %v at most", wait)
}

func (r *round) dialog(answered context.CancelFunc) {
	r.a.rounds.mu.Lock()
	defer r.a.rounds.mu.Unlock()
	r.answer = answered
}

func (t *try) question() Question {
	return Question{Name: t.id.Name, Comment: t.id.Comment, Fingerprint: t.id.fingerprint(), Peer: t.peer, Use: t.use}
}

// noticeTime is how long a notice may stay.
const noticeTime = time.Minute

// inform tells the user something, one thing at a time, while everything goes
// on. It stays when the client goes, which it does as soon as it has its
// answer.
func (a *Agent) inform(n Notice) {
	if a.prompter == nil || !a.informing.CompareAndSwap(false, true) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), noticeTime)
	ctx, done := a.untilLocked(ctx)
	a.rounds.mu.Lock()
	defer a.rounds.mu.Unlock()
	a.endNotice = cancel
	a.rounds.start(func() {
		defer a.informing.Store(false)
		defer cancel()
		defer done()
		a.prompter.Inform(ctx, n)
	})
}

// settleDown ends notices, and waits for what goes on for clients that have
// gone. It is an error if that does not end.
func (a *Agent) settleDown() error {
	a.rounds.mu.Lock()
	if a.endNotice != nil {
		a.endNotice()
	}
	a.rounds.mu.Unlock()
	if !a.rounds.wait(a.grace) {
		return errors.New("a key or a prompt did not end when it was cancelled")
	}
	return nil
}
