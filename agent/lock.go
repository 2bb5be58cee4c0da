package agent

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"time"

	"golang.org/x/crypto/argon2"
)

// A wrong password delays the next try by this much more each time.
const (
	lockDelay    = 100 * time.Millisecond
	maxLockDelay = 10 * time.Second
)

// What hashing a lock password costs. The hash never leaves this process's
// memory: it must keep out who reads that, not who has stolen a disk.
const (
	lockPasses   = 2
	lockMemory   = 8 << 10 // KiB; Agent.lockMemory is what counts
	lockHashSize = 32
)

// lock is how the agent is locked, RFC 9987, section 5.7. Its fields are
// guarded by Agent.mu.
type lock struct {
	locked     bool
	salt, hash [lockHashSize]byte

	failures  int
	notBefore time.Duration // by the agent's clock; the next try

	// prompts ends when the agent gets locked, and with it all dialogs.
	prompts    context.Context
	endPrompts context.CancelFunc
}

func newLock() lock {
	var l lock
	l.prompts, l.endPrompts = context.WithCancel(context.Background())
	return l
}

func (a *Agent) isLocked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lock.locked
}

// lockUnlock answers LOCK and UNLOCK. Tries are made one at a time, those that
// failed hold up the next one, whoever makes it: hanging up and dialling again
// is no quicker. Nobody but the tries waits.
func (a *Agent) lockUnlock(ctx context.Context, c *conn, request []byte) []byte {
	number, w := request[0], &wire{rest: request[1:]}
	password := w.string()
	by := c.asker()
	if w.err != nil {
		a.refuse(by, requestName(number), nil, &refusal{CauseMalformed, w.err})
		return failure()
	}
	leave, err := a.lines.enter(ctx, "") // no key has this name
	if err != nil {
		a.refuse(by, requestName(number), nil, &refusal{CauseHungUp, err})
		return failure()
	}
	defer leave()
	turn := a.lockNow
	if number == msgUnlock {
		turn = a.unlockNow
	}
	if r := turn(ctx, password); r != nil {
		a.refuse(by, requestName(number), nil, r)
		return failure()
	}
	a.log.Info(requestName(number)+"ed", "peer", by)
	return success()
}

func (a *Agent) lockNow(_ context.Context, password []byte) *refusal {
	switch {
	case a.isLocked():
		return &refusal{cause: CauseLocked}
	case len(password) == 0:
		return &refusal{cause: CauseNoPassword}
	}
	var salt, hash [lockHashSize]byte
	rand.Read(salt[:])
	copy(hash[:], a.lockHash(password, salt))
	a.mu.Lock()
	a.lock.salt, a.lock.hash = salt, hash
	a.lock.locked = true
	a.lock.endPrompts()
	a.mu.Unlock()
	a.ForgetPINs()
	return nil
}

func (a *Agent) unlockNow(ctx context.Context, password []byte) *refusal {
	a.mu.Lock()
	locked, salt, hash, notBefore := a.lock.locked, a.lock.salt, a.lock.hash, a.lock.notBefore
	a.mu.Unlock()
	switch {
	case !locked:
		return &refusal{cause: CauseNotLocked}
	case len(password) == 0:
		return &refusal{cause: CauseNoPassword}
	}
	if err := a.sleepUntil(ctx, notBefore); err != nil {
		return &refusal{CauseHungUp, err}
	}
	if subtle.ConstantTimeCompare(a.lockHash(password, salt), hash[:]) != 1 {
		// The wait comes before the answer, too, as with OpenSSH's agent.
		if err := a.sleepUntil(ctx, a.wrongPassword()); err != nil {
			return &refusal{CauseHungUp, err}
		}
		return &refusal{cause: CauseWrongPassword}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lock.endPrompts()
	a.lock = newLock()
	return nil
}

// wrongPassword counts a wrong password, and returns when the next may be
// tried.
func (a *Agent) wrongPassword() time.Duration {
	now := a.clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lock.failures++
	delay := min(time.Duration(a.lock.failures)*lockDelay, maxLockDelay)
	a.lock.notBefore = now + delay
	return a.lock.notBefore
}

// sleepUntil waits for a moment of the agent's clock.
func (a *Agent) sleepUntil(ctx context.Context, moment time.Duration) error {
	d := moment - a.clock.Now()
	if d <= 0 {
		return ctx.Err()
	}
	passed := make(chan struct{})
	stop := a.clock.AfterFunc(d, func() { close(passed) })
	defer stop()
	select {
	case <-passed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *Agent) lockHash(password []byte, salt [lockHashSize]byte) []byte {
	return argon2.IDKey(password, salt[:], lockPasses, a.lockMemory, 1, lockHashSize)
}

// whileWanted is ctx for a question to the user. It ends also when the agent
// gets locked or is to end, and takenAway says so.
func (a *Agent) whileWanted(ctx context.Context) (context.Context, context.CancelFunc) {
	a.mu.Lock()
	locked, ending := a.lock.prompts, a.service.ending
	a.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	stopLocked := context.AfterFunc(locked, func() { cancel(errLockedMeanwhile) })
	stopEnding := context.AfterFunc(ending, func() { cancel(errEnding) })
	if ending.Err() != nil {
		cancel(errEnding) // now, so that nothing is shown
	}
	return ctx, func() { stopLocked(); stopEnding(); cancel(nil) }
}

// Why the agent takes a question away.
var (
	errLockedMeanwhile = &refusal{CauseLocked, errors.New("it was locked while the question was open")}
	errEnding          = &refusal{cause: CauseEnding}
)

// takenAway is why the agent has ended a question; nil if it has not.
func takenAway(ctx context.Context) *refusal {
	for _, r := range []*refusal{errLockedMeanwhile, errEnding} {
		if context.Cause(ctx) == error(r) {
			return r
		}
	}
	return nil
}
