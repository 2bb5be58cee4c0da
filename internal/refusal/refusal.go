// Package refusal names why requests are refused, and keeps the latest refusals
// for the owner.
package refusal

import (
	"context"
	"errors"
	"log/slog"
)

// A Cause is why a request was refused. There is one for each thing that the
// owner can do about it.
type Cause string

// The causes, as they are logged and shown by `tpm-agent why`.
const (
	Malformed   Cause = "malformed request"
	Unsupported Cause = "unsupported request"
	UnknownKey  Cause = "no such key"
	Removed     Cause = "key was removed"
	Expired     Cause = "certificate has expired"
	Algorithm   Cause = "unsupported signature algorithm"
	Key         Cause = "key could not sign"
	HungUp      Cause = "the client hung up"

	Cancelled Cause = "refused at the prompt"
	NoAnswer  Cause = "no answer at the prompt"
	NoPrompt  Cause = "no way to ask the user"
	Prompt    Cause = "asking the user failed"
	WrongAuth Cause = "wrong PIN"
	Lockout   Cause = "locked out after too many wrong PINs"

	Locked        Cause = "the agent is locked"
	WrongPassword Cause = "wrong password"

	Binding     Cause = "invalid binding to an SSH session"
	Constraint  Cause = "unsupported constraint"
	Destination Cause = "not for this destination"
	TooMany     Cause = "too many added keys"
	Replaced    Cause = "key was replaced meanwhile"
	Remote      Cause = "not over a forwarded connection"
	NoSoftware  Cause = "this agent holds no private keys in memory (--no-software-keys)"
	Upstream    Cause = "upstream agent"
)

// An Error is the reason for a failure answer. The client learns only that its
// request failed.
type Error struct {
	Cause Cause
	Err   error // details; may be nil
}

// New returns an Error. err gives details and may be nil.
func New(cause Cause, err error) *Error { return &Error{cause, err} }

func (e *Error) Error() string {
	if e.Err == nil {
		return string(e.Cause)
	}
	return string(e.Cause) + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Elsewhere reports whether an upstream agent may know the key.
func (e *Error) Elsewhere() bool { return e.Cause == UnknownKey || e.Cause == Removed }

// Because returns err as an Error with the given cause, unless it is one
// already. Whatever fails after ctx has ended failed because the client hung up
// or the agent ran out of time to shut down.
func Because(ctx context.Context, cause Cause, err error) *Error {
	var e *Error
	switch {
	case ctx.Err() != nil:
		return New(HungUp, err)
	case errors.As(err, &e):
		return e
	}
	return New(cause, err)
}

// Attrs returns the error as attributes for a log.
func (e *Error) Attrs() []any {
	attrs := []any{slog.String("cause", string(e.Cause))}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("err", e.Err))
	}
	return attrs
}
