package consent

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
)

// Each wrong password delays the next try by lockDelay more.
const (
	lockDelay    = 100 * time.Millisecond
	maxLockDelay = 10 * time.Second
)

// The cost of hashing a lock password. The hash never leaves the memory of this
// process: it must stop an attacker who reads that, not one who stole a disk.
const (
	lockPasses   = 2
	lockMemory   = 8 << 10 // KiB
	lockHashSize = 32
)

// Causes of refusals for which there is nothing to do.
const (
	notLocked  refusal.Cause = "the agent is not locked"
	noPassword refusal.Cause = "the agent cannot be locked with an empty password"
	ending     refusal.Cause = "the agent is shutting down"
)

// lock is the password with which the agent is locked (RFC 9987, section 5.7), and
// how long dialogs may be open: until the agent is locked or ends.
type lock struct {
	locked atomic.Bool

	mu         sync.Mutex
	salt, hash [lockHashSize]byte
	failures   int
	notBefore  time.Duration // of the next try, by the Clock

	serving int  // calls of Owner.Begin without an End
	ended   bool // by the last End
	open    context.Context
	close   context.CancelCauseFunc // ends open, and with it all dialogs
}

// begin opens the lock.
func (l *lock) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures, l.notBefore = 0, 0
	l.locked.Store(false)
	l.reopen()
}

// reopen lets dialogs open unless the agent is locked or has ended. l.mu is held.
func (l *lock) reopen() {
	l.open, l.close = context.WithCancelCause(context.Background())
	switch {
	case l.locked.Load():
		l.close(errLockedMeanwhile)
	case l.ended:
		l.close(errEnding)
	}
}

// Begin lets the Owner ask again after an End. Each call needs an End.
func (o *Owner) Begin() {
	l := &o.lock
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serving++
	if l.ended {
		l.ended = false
		l.reopen()
	}
}

// End closes all dialogs when it was called as often as Begin. No more are
// opened then.
func (o *Owner) End() {
	l := &o.lock
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.serving--; l.serving == 0 {
		l.ended = true
		l.close(errEnding)
	}
}

// Why the Owner closes a dialog.
var (
	errLockedMeanwhile = &refusal.Error{Cause: refusal.Locked, Err: errors.New("it was locked while the question was open")}
	errEnding          = &refusal.Error{Cause: ending}
)

// whileWanted returns ctx for a question to the owner. It also ends when the
// agent is locked or shuts down, and takenAway tells why.
func (o *Owner) whileWanted(ctx context.Context) (context.Context, context.CancelFunc) {
	o.lock.mu.Lock()
	open := o.lock.open
	o.lock.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	takeAway := func() { cancel(context.Cause(open)) }
	stop := context.AfterFunc(open, takeAway)
	if open.Err() != nil {
		takeAway() // now, so that nothing is shown
	}
	return ctx, func() { stop(); cancel(nil) }
}

// takenAway returns why the Owner has closed a dialog; nil if it has not.
func takenAway(ctx context.Context) *refusal.Error {
	var why *refusal.Error
	errors.As(context.Cause(ctx), &why)
	return why
}

// set locks.
func (l *lock) set(password []byte) {
	var salt, hash [lockHashSize]byte
	rand.Read(salt[:])
	copy(hash[:], lockHash(password, salt))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.salt, l.hash = salt, hash
	l.locked.Store(true)
	l.close(errLockedMeanwhile)
}

func lockHash(password []byte, salt [lockHashSize]byte) []byte {
	return argon2.IDKey(password, salt[:], lockPasses, lockMemory, 1, lockHashSize)
}

// wrong counts a wrong password, and returns when the next may be tried.
func (l *lock) wrong(now time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures++
	l.notBefore = now + min(time.Duration(l.failures)*lockDelay, maxLockDelay)
	return l.notBefore
}

// Lock locks the agent with a password, forgets all PINs and all consent, and
// closes all dialogs.
func (o *Owner) Lock(ctx context.Context, password []byte) *refusal.Error {
	return o.inTurn(ctx, func() *refusal.Error {
		if o.Locked() {
			return refusal.New(refusal.Locked, nil)
		}
		if len(password) == 0 {
			return refusal.New(noPassword, nil)
		}
		o.lock.set(password)
		o.Forget()
		return nil
	})
}

// Unlock unlocks the agent. A wrong password delays the next try of any client;
// nothing else waits.
func (o *Owner) Unlock(ctx context.Context, password []byte) *refusal.Error {
	return o.inTurn(ctx, func() *refusal.Error {
		if !o.Locked() {
			return refusal.New(notLocked, nil)
		}
		if len(password) == 0 {
			return refusal.New(noPassword, nil)
		}
		o.lock.mu.Lock()
		salt, hash, notBefore := o.lock.salt, o.lock.hash, o.lock.notBefore
		o.lock.mu.Unlock()
		if err := o.sleepUntil(ctx, notBefore); err != nil {
			return refusal.New(refusal.HungUp, err)
		}
		if subtle.ConstantTimeCompare(lockHash(password, salt), hash[:]) == 1 {
			o.lock.begin()
			return nil
		}
		// The wait comes before the answer, too, as with OpenSSH's agent.
		if err := o.sleepUntil(ctx, o.lock.wrong(o.Clock.Now())); err != nil {
			return refusal.New(refusal.HungUp, err)
		}
		return refusal.New(refusal.WrongPassword, nil)
	})
}

// inTurn calls work when all earlier calls have returned: hanging up and
// connecting again is no quicker.
func (o *Owner) inTurn(ctx context.Context, work func() *refusal.Error) *refusal.Error {
	leave, err := o.turns.enter(ctx, "") // no key has this name
	if err != nil {
		return refusal.New(refusal.HungUp, err)
	}
	defer leave()
	return work()
}

// sleepUntil waits for a moment of the Clock.
func (o *Owner) sleepUntil(ctx context.Context, moment time.Duration) error {
	d := moment - o.Clock.Now()
	if d <= 0 {
		return ctx.Err()
	}
	passed := make(chan struct{})
	stop := o.Clock.AfterFunc(d, func() { close(passed) })
	defer stop()
	select {
	case <-passed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
