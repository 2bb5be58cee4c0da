package tpmkey

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Errors that a caller may branch on. They come wrapped.
var (
	// ErrWrongTPM means that a key does not load under any storage key that this
	// TPM has for it. To a TPM, a damaged key file looks the same; if the storage
	// key is known to be the right one, the error is [ErrDamaged].
	ErrWrongTPM = errors.New("the key was made under another storage key, or in another TPM, or this TPM was cleared since, or the key file is damaged")
	// ErrDamaged means that a key file is damaged: the TPM has the storage key
	// under which the key was loaded before, and refuses to load the file.
	ErrDamaged = errors.New("the key file is damaged")
	// ErrNoParent means that the persistent handle of the storage key is empty.
	ErrNoParent = errors.New("the storage key is not in this TPM")
	// ErrOwnerAuth means that the storage key would have to be created in a
	// hierarchy that has a password.
	ErrOwnerAuth = errors.New("the hierarchy of the storage key has a password")
)

// AuthError means that the auth value (the PIN) is wrong or missing.
type AuthError struct {
	// Left is how many more wrong auth values the TPM takes before it locks every
	// protected object of the machine. It is -1 if that is unknown, or if the key
	// does not take part in the lockout.
	Left int
	err  error
}

func (e *AuthError) Error() string {
	switch e.Left {
	case -1:
		return "wrong PIN"
	case 0:
		return "wrong PIN, and the TPM is locked now"
	case 1:
		return "wrong PIN (1 try left before the TPM locks)"
	default:
		return fmt.Sprintf("wrong PIN (%d tries left before the TPM locks)", e.Left)
	}
}

func (e *AuthError) Unwrap() error { return e.err }

// WrongAuth returns true. Callers that do not import this package recognize the error
// by it.
func (e *AuthError) WrongAuth() bool { return true }

// TriesLeft returns Left and reports whether it is known.
func (e *AuthError) TriesLeft() (n int, known bool) { return e.Left, e.Left >= 0 }

// LockoutError means that the TPM takes no auth value because there were too many
// wrong ones, for any key and from any program on this machine.
type LockoutError struct {
	// Wait is the longest time until the TPM forgets one wrong try. It is 0 if
	// the TPM does not say.
	Wait time.Duration
	err  error
}

func (e *LockoutError) Error() string {
	s := "the TPM is locked after too many wrong PINs, of any program on this machine; "
	if e.Wait != 0 {
		s += fmt.Sprintf("the next try is possible in at most %v; ", e.Wait)
	}
	return s + "to unlock it now, run tpm2_dictionarylockout --clear-lockout, which may need the TPM's lockout password"
}

func (e *LockoutError) Unwrap() error { return e.err }

// LockedOut returns Wait. Callers that do not import this package recognize the error
// by it.
func (e *LockoutError) LockedOut() time.Duration { return e.Wait }

// PCRError means that the TPM refuses to use a key because PCRs do not have the
// values that its policy requires: the machine was started in a different way.
type PCRError struct {
	Bank string // "sha256"
	// PCRs are those of the policy. The file has only the digest of all their
	// values, so it is unknown which of them differ.
	PCRs []int
	// Signed means that a signed policy requires the values. Policy is its name
	// and may be empty. Otherwise the values are those from the time when the key
	// was created.
	Signed bool
	Policy string
}

func (e *PCRError) Error() string {
	which, has := "PCR "+joinInts(e.PCRs), "has"
	if len(e.PCRs) > 1 {
		which, has = "one or more of the PCRs "+joinInts(e.PCRs), "have"
	}
	if !e.Signed {
		return fmt.Sprintf("%s (%s) %s changed since the key was made", which, e.Bank, has)
	}
	policy := "the signed policy"
	if e.Policy != "" {
		policy += fmt.Sprintf(" %q", e.Policy)
	}
	return fmt.Sprintf("%s (%s) %s a different value than %s requires", which, e.Bank, has, policy)
}

// joinInts returns the numbers as "1, 2, 3".
func joinInts(list []int) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(list), "[]"), " ", ", ")
}

// ParentChangedError means that the TPM does not have the storage key under which a
// key was loaded before: it is a different TPM, or it was cleared, or a persistent
// key was replaced, or an interposer on the bus substitutes a key of its own. No
// session was started with the new storage key. The error wraps [ErrWrongTPM].
type ParentChangedError struct {
	Want []byte // the Name that is remembered
	Have Parent // what the TPM has in that place
}

func (e *ParentChangedError) Error() string {
	if strings.HasPrefix(e.Have.At, "0x") {
		return fmt.Sprintf("a different storage key is at %s: it was replaced, or this TPM was cleared or replaced", e.Have.At)
	}
	return "made in another TPM, or this TPM was cleared: its storage key has changed"
}

func (e *ParentChangedError) Unwrap() error { return ErrWrongTPM }

// UnsupportedError means that this TPM or this package cannot do what was asked.
type UnsupportedError struct {
	What      string   // such as "RSA 4096"
	Why       string   // the reason; empty if the TPM just does not have it
	Supported []string // what to use instead
}

func (e *UnsupportedError) Error() string {
	s := e.What + ": " + cmp.Or(e.Why, "this TPM does not have it")
	if len(e.Supported) > 0 {
		s += " (supported: " + strings.Join(e.Supported, ", ") + ")"
	}
	return s
}
