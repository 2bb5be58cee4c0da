package tpmkey

import (
	"context"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Lockout is the state of a TPM's protection against guessing (TPM 2.0 Part 1, 19.8).
// The TPM counts the wrong auth values of all protected objects together.
type Lockout struct {
	// Tries is how many wrong auth values the TPM takes before it locks. 0 means
	// that it is locked. -1 means that there is no limit: the key does not take
	// part, or the TPM does not count.
	Tries int
	// Wait is the longest time until the TPM gives one try back, while the
	// machine runs. It is 0 if there is none to give back, or if it is unknown.
	Wait time.Duration

	Counter  int           // TPM_PT_LOCKOUT_COUNTER: wrong auth values so far
	Max      int           // TPM_PT_MAX_AUTH_FAIL: the Counter at which it locks
	Interval time.Duration // TPM_PT_LOCKOUT_INTERVAL: after it the Counter goes down by one
}

// Lockout asks the TPM for the state of its lockout.
func (t *TPM) Lockout(ctx context.Context) (lo Lockout, err error) {
	err = t.withTurn(ctx, func(l *link) error {
		lo, err = l.lockout()
		return err
	})
	return lo, err
}

// Lockout asks the TPM how many wrong auth values it takes for this key. A key that
// does not take part in the lockout has no limit, and the TPM is not asked.
func (k *Key) Lockout(ctx context.Context) (Lockout, error) {
	if k.file.Public.Attributes.NoDA() || k.policy != nil && !k.policy.usesAuth() {
		return Lockout{Tries: -1}, nil
	}
	return k.tpm.Lockout(ctx)
}

// lockout reads the properties of the lockout, in one command.
func (l *link) lockout() (Lockout, error) {
	const count = 17 // as far as TPM_PT_LOCKOUT_INTERVAL (TPM 2.0 Part 2, 6.13)
	p, err := properties(l, tpm2.TPMPTPermanent, count)
	if err != nil {
		return Lockout{}, err
	}
	lo := Lockout{
		Counter:  int(p[tpm2.TPMPTLockoutCounter]),
		Max:      int(p[tpm2.TPMPTMaxAuthFail]),
		Interval: time.Duration(p[tpm2.TPMPTLockoutInterval]) * time.Second,
	}
	lo.Tries = max(lo.Max-lo.Counter, 0)
	switch {
	case p[tpm2.TPMPTPermanent]&(1<<9) != 0: // inLockout (TPM 2.0 Part 2, 8.6)
		lo.Tries = 0
	case lo.Interval == 0 && lo.Tries > 0:
		lo.Tries = -1 // it does not count (TPM 2.0 Part 3, 25.3)
	}
	if lo.Counter > 0 || lo.Tries == 0 {
		lo.Wait = lo.Interval
	}
	return lo, nil
}

// authError converts a refusal of an auth value into an [AuthError] or
// [LockoutError], with the state of the lockout if the TPM tells it. It returns other
// errors as they are.
func (l *link) authError(err error) error {
	switch {
	case isRC(err, tpm2.TPMRCBadAuth):
		return &AuthError{Left: -1, err: err} // not protected by the lockout
	case isRC(err, tpm2.TPMRCAuthFail):
		left := -1
		if lo, loErr := l.lockout(); loErr == nil {
			left = lo.Tries
		}
		return &AuthError{Left: left, err: err}
	case isRC(err, tpm2.TPMRCLockout):
		lo, _ := l.lockout()
		return &LockoutError{Wait: lo.Wait, err: err}
	default:
		return err
	}
}
