package tpmkey

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Errors that a caller may branch on. They come wrapped.
var (
	// ErrClosed is returned after [TPM.Close].
	ErrClosed = errors.New("the TPM is closed")
	// ErrWrongTPM means that a key does not load under any storage key that
	// this TPM has for it. Damage looks the same to a TPM, unless it is known
	// that the storage key is the right one: see [ErrDamaged].
	ErrWrongTPM = errors.New("the key was made under another storage key, or in another TPM, or this TPM was cleared since, or the key file is damaged")
	// ErrDamaged means that a key file is damaged: the TPM has the storage key
	// that it was loaded under before, and refuses it.
	ErrDamaged = errors.New("the key file is damaged")
	// ErrNoParent means that nothing is at the persistent handle of a storage
	// key, which a key file names or the caller.
	ErrNoParent = errors.New("the storage key is not in this TPM")
	// ErrOwnerAuth means that a storage key would have to be made in a
	// hierarchy that has a password.
	ErrOwnerAuth = errors.New("the hierarchy of the storage key has a password")
	// ErrBadSignature means that the TPM, or something between it and us,
	// returned a signature that does not verify. It was not passed on.
	ErrBadSignature = errors.New("the TPM returned a signature that does not verify")
)

// CommandError is a TPM's refusal of a command.
type CommandError struct {
	Command string // as in TPM 2.0 Part 3, such as "TPM2_Load"
	RC      tpm2.TPMRC
}

// Error implements error.
func (e *CommandError) Error() string { return e.Command + ": " + e.RC.Error() }

// Unwrap returns the response code: errors.Is works with tpm2.TPMRC values.
func (e *CommandError) Unwrap() error { return e.RC }

// AuthError means that the auth value (the PIN) was wrong or is missing.
type AuthError struct {
	// Left is the number of further wrong auth values that the TPM takes
	// before it locks every protected object of the machine; -1 when it
	// is not known, or the key is not protected by the lockout.
	Left int
	err  error
}

// Error implements error.
func (e *AuthError) Error() string {
	switch {
	case e.Left < 0:
		return "wrong PIN"
	case e.Left == 0:
		return "wrong PIN, and the TPM is locked now"
	case e.Left == 1:
		return "wrong PIN (1 try left before the TPM locks)"
	default:
		return fmt.Sprintf("wrong PIN (%d tries left before the TPM locks)", e.Left)
	}
}

// Unwrap returns the [CommandError].
func (e *AuthError) Unwrap() error { return e.err }

// WrongAuth tells a caller who does not import this package what happened.
func (e *AuthError) WrongAuth() bool { return true }

// TriesLeft returns Left, and whether it is known.
func (e *AuthError) TriesLeft() (n int, known bool) { return e.Left, e.Left >= 0 }

// LockoutError means that the TPM takes no auth value because there were too
// many wrong ones, of any key and any program on this machine.
type LockoutError struct {
	// Wait is the time after which the TPM forgets one wrong try, at most;
	// 0 when the TPM does not say.
	Wait time.Duration
	err  error
}

// Error implements error.
func (e *LockoutError) Error() string {
	const (
		locked = "the TPM is locked after too many wrong PINs, of any program on this machine"
		wayOut = "tpm2_dictionarylockout --clear-lockout ends it at once, for who has the TPM's lockout password"
	)
	if e.Wait == 0 {
		return locked + "; " + wayOut
	}
	return fmt.Sprintf("%s; the next try is possible in at most %v; %s", locked, e.Wait, wayOut)
}

// Unwrap returns the [CommandError].
func (e *LockoutError) Unwrap() error { return e.err }

// LockedOut returns Wait. It tells a caller who does not import this package
// what happened.
func (e *LockoutError) LockedOut() time.Duration { return e.Wait }

// PCRError means that the TPM does not use a key because PCRs do not have the
// values that its policy wants: the machine was started in another way.
type PCRError struct {
	Bank string // "sha256"
	// PCRs are those of the policy. Only the digest of all their values is
	// known: of several, it cannot be told which of them differ.
	PCRs []int
	// Signed is set where a signed policy wants the values, with its name,
	// which may be empty; otherwise they are those of the key's making.
	Signed bool
	Policy string
}

// Error implements error.
func (e *PCRError) Error() string {
	which, has := "PCR "+strconv.Itoa(e.PCRs[0]), "has"
	if len(e.PCRs) > 1 {
		which, has = "one or more of the PCRs "+joinInts(e.PCRs, ", "), "have"
	}
	switch {
	case e.Signed && e.Policy != "":
		return fmt.Sprintf("%s (%s) %s another value than the signed policy %q wants", which, e.Bank, has, e.Policy)
	case e.Signed:
		return fmt.Sprintf("%s (%s) %s another value than the signed policy wants", which, e.Bank, has)
	}
	return fmt.Sprintf("%s (%s) %s changed since the key was made", which, e.Bank, has)
}

func joinInts(list []int, sep string) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, sep)
}

// UnsupportedError means that this TPM, or tpm-agent, cannot do what was asked.
type UnsupportedError struct {
	What      string   // what was asked, such as "RSA 4096"
	Why       string   // the reason, when it is not just that the TPM has none
	Supported []string // what can be done instead
}

// Error implements error.
func (e *UnsupportedError) Error() string {
	s := e.What + ": "
	if e.Why == "" {
		s += "this TPM does not have it"
	} else {
		s += e.Why
	}
	if len(e.Supported) > 0 {
		s += " (supported: " + strings.Join(e.Supported, ", ") + ")"
	}
	return s
}

// isRC reports whether err is the TPM's refusal with one of codes.
func isRC(err error, codes ...tpm2.TPMRC) bool {
	for _, rc := range codes {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

// refused reports whether err is the TPM's own answer, as opposed to a
// connection that failed.
func refused(err error) bool {
	var ce *CommandError
	return errors.As(err, &ce)
}
