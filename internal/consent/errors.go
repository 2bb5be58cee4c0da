package consent

import (
	"errors"
	"fmt"
	"time"
)

// WrongAuth is implemented by errors of keys whose auth value was wrong.
type WrongAuth interface {
	error
	WrongAuth() bool
	// TriesLeft returns how many more wrong values are accepted until a lockout.
	TriesLeft() (n int, known bool)
}

// LockedOut is implemented by errors of keys that accept no auth value for now.
type LockedOut interface {
	error
	LockedOut() (wait time.Duration) // until one try is given back, at most; 0: unknown
}

// Lockout tells how many wrong auth values the TPM still accepts.
type Lockout struct {
	Tries int           // wrong values until a lockout; 0: locked out; -1: unknown or unlimited
	Wait  time.Duration // until one try is given back, at most; 0: unknown
}

// triesUnknown: no key has said yet how many wrong values it accepts.
const triesUnknown = -1

func isWrongAuth(err error) bool {
	var w WrongAuth
	return errors.As(err, &w) && w.WrongAuth()
}

// WrongPINError says that a PIN was wrong. It is a WrongAuth.
type WrongPINError struct {
	Left int // tries until the lockout; -1: unknown or unlimited
}

func (e *WrongPINError) Error() string {
	switch {
	case e.Left < 0:
		return "wrong PIN"
	case e.Left == 1:
		return "wrong PIN (1 try left before the TPM locks)"
	}
	return fmt.Sprintf("wrong PIN (%d tries left before the TPM locks)", e.Left)
}

// WrongAuth implements WrongAuth.
func (e *WrongPINError) WrongAuth() bool { return true }

// TriesLeft implements WrongAuth.
func (e *WrongPINError) TriesLeft() (int, bool) { return e.Left, e.Left >= 0 }

// LockedOutError says that no PIN is accepted because too many were wrong. It is
// a LockedOut.
type LockedOutError struct {
	Wait time.Duration // until one try is given back, at most; 0: unknown
	Err  error         // of the try that has led to the lockout; nil: it was there before
}

// Unwrap returns Err.
func (e *LockedOutError) Unwrap() error { return e.Err }

func (e *LockedOutError) Error() string {
	if e.Wait == 0 {
		return "locked out after too many wrong PINs"
	}
	return fmt.Sprintf("locked out after too many wrong PINs, for %v at most", e.Wait)
}

// LockedOut implements LockedOut.
func (e *LockedOutError) LockedOut() time.Duration { return e.Wait }
