package agent

import (
	"context"
	"crypto"
	"errors"
	"time"
)

const (
	// maxPrompts is how often a user is asked for one PIN.
	maxPrompts = 3

	// triesUnknown: no key has said yet how many wrong auth values it takes.
	triesUnknown = -1

	// lockoutPatience is how long a prompt waits to be told how many tries are
	// left, if the TPM is busy with somebody's signature.
	lockoutPatience = 5 * time.Second
)

// Lockout is what the keeper of a key says of wrong auth values.
type Lockout struct {
	// Tries is how many wrong ones it takes until it locks up, 0 when it has;
	// -1: not known, or the key is not protected like that.
	Tries int
	// Wait is the time until it gives one try back, at most; 0: not known.
	Wait time.Duration
}

// lockoutKnower is a Key that can tell how many tries are left before one is
// spent.
type lockoutKnower interface {
	Lockout(ctx context.Context) (Lockout, error)
}

// wrongAuth is how a Key says that the auth value was not the right one.
type wrongAuth interface {
	error
	WrongAuth() bool
	TriesLeft() (n int, known bool)
}

func isWrongAuth(err error) bool {
	var w wrongAuth
	return errors.As(err, &w) && w.WrongAuth()
}

// lockedOut is how a Key says that it takes no auth value for now.
type lockedOut interface {
	error
	LockedOut() (wait time.Duration)
}

// auth is what signing has taught about a key: whether it needs a PIN. What
// the key says beforehand is a hint, and to find out with an empty auth value
// costs one of the tries before lockout, so it is done once.
type auth struct {
	key    Key // a new one behind the same public key has to be learned anew
	needed bool
	// refused is the version of the PIN from Config.GivenPIN that was wrong,
	// taken the one that was right.
	refused, taken string
	// emptyWrong: an empty PIN was given and was wrong.
	emptyWrong bool
}

// learned returns what is known of the key of id.
func (a *Agent) learned(id *identity) (known auth, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.auth[id.line]
	if !ok || l.key != id.Key {
		return auth{key: id.Key}, false
	}
	return l, true
}

func (a *Agent) learn(id *identity, change func(*auth)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.auth[id.line]
	if l.key != id.Key {
		l = auth{key: id.Key, needed: true}
	}
	change(&l)
	a.auth[id.line] = l
}

// learnNeeded notes what became of an empty auth value.
func (a *Agent) learnNeeded(id *identity, needed bool) {
	a.learn(id, func(l *auth) { l.needed, l.emptyWrong = needed, needed })
}

// triesLeft is shared by all keys: a TPM counts the wrong values for all that
// is in it. The number stays until a key gives another, for a right value
// does not put it up again.
func (a *Agent) triesLeft() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tries
}

// wrongValue counts what a wrong auth value has cost. A key that cannot tell
// how many tries are left has still spent one.
func (a *Agent) wrongValue(w wrongAuth) {
	n, known := w.TriesLeft()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case known:
		a.tries = n
	case a.tries > 1:
		a.tries--
	}
}

// rightValue: what takes an auth value is not locked up, or not any more.
func (a *Agent) rightValue() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tries == 0 {
		a.tries = triesUnknown
	}
}

// lockout asks the key how many tries are left. One that does not know may have
// told when it was given a wrong value, which may have changed since.
func (a *Agent) lockout(ctx context.Context, id *identity) (l Lockout, known bool) {
	k, ok := id.Key.(lockoutKnower)
	if !ok {
		return Lockout{Tries: a.triesLeft()}, false
	}
	ctx, cancel := context.WithTimeout(ctx, lockoutPatience)
	defer cancel()
	l, err := k.Lockout(ctx)
	if err != nil {
		return Lockout{Tries: a.triesLeft()}, false
	}
	return l, true
}

// try is one signature on its way.
type try struct {
	a      *Agent
	id     *identity
	limits *constraints // those that were judged
	peer   Peer
	use    Use
	origin string
	digest []byte
	hash   crypto.Hash
}

// sign signs with what is known of the key: that it needs no PIN, or one that
// is remembered. All else is done once for all who want the same key at the
// same time: prompts, because nobody wants two dialogs for one key, and the
// first signature with an empty auth value, because if the key has a PIN after
// all then each costs a try, and 32 connections of a parallel rsync would be a
// lockout.
func (t *try) sign(ctx context.Context) ([]byte, error) {
	if known, ok := t.a.learned(t.id); ok && !known.needed {
		sig, err := t.with(ctx, nil)
		if !isWrongAuth(err) {
			return sig, err
		}
		t.a.learnNeeded(t.id, true)
	}
	if pin := t.a.rememberedPIN(t.id); pin != nil {
		sig, err := t.withPIN(ctx, pin)
		if !isWrongAuth(err) && !errors.Is(err, errWiped) {
			return sig, err
		}
	}
	return t.a.rounds.join(ctx, t)
}

// lookup fails when the identity is not there any more, or the agent locked.
func (t *try) lookup() error {
	id, refused := t.a.again(t.id.blob, t.limits)
	if refused != nil {
		return refused
	}
	if id.Key != t.id.Key {
		return &refusal{cause: CauseReplaced}
	}
	t.id = id
	return nil
}

// with signs with one auth value, unless nobody waits for it any longer.
func (t *try) with(ctx context.Context, value []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sig, err := t.id.Key.Sign(ctx, value, t.digest, t.hash)
	t.a.judge(err, value)
	return sig, err
}

// withPIN signs with a PIN that is held. One that is wrong is forgotten.
func (t *try) withPIN(ctx context.Context, pin *memory) (sig []byte, err error) {
	err = pin.use(func(value []byte) (err error) {
		sig, err = t.with(ctx, value)
		return err
	})
	if isWrongAuth(err) {
		t.a.forgetWrong(t.id, pin)
	}
	return sig, err
}

// judge draws conclusions from what a key said to an auth value.
func (a *Agent) judge(err error, value []byte) {
	var w wrongAuth
	switch {
	case errors.As(err, &w) && w.WrongAuth():
		a.wrongValue(w)
	case err == nil && len(value) > 0:
		a.rightValue()
	}
}
