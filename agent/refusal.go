package agent

import (
	"context"
	"errors"
	"log/slog"
)

// Cause is why a request was refused, in the fewest kinds that call for
// different things to do about it.
type Cause string

// The causes of refusals, as they are logged and told by [ParseRefusals].
const (
	CauseMalformed   Cause = "malformed request"
	CauseUnsupported Cause = "unsupported request"
	CauseUnknownKey  Cause = "no such key"
	CauseRemoved     Cause = "key was removed"
	CauseExpired     Cause = "certificate has expired"
	CauseAlgorithm   Cause = "unsupported signature algorithm"
	CauseKey         Cause = "key could not sign"
	CauseHungUp      Cause = "nobody waits for the answer"

	CauseCancelled Cause = "refused at the prompt"
	CauseNoAnswer  Cause = "nobody answered at the prompt"
	CauseNoPrompt  Cause = "no way to ask the user"
	CausePrompt    Cause = "asking the user failed"
	CauseWrongAuth Cause = "wrong PIN"
	CauseLockout   Cause = "locked out after too many wrong PINs"

	CauseLocked        Cause = "the agent is locked"
	CauseEnding        Cause = "the agent is ending"
	CauseNotLocked     Cause = "the agent is not locked"
	CauseNoPassword    Cause = "an empty password locks nothing"
	CauseWrongPassword Cause = "wrong password"

	CauseBinding     Cause = "binding to an SSH session"
	CauseConstraint  Cause = "constraint that cannot be kept"
	CauseDestination Cause = "not for this destination"
	CauseTooMany     Cause = "as many keys were added as the agent holds"
	CauseReplaced    Cause = "key was added anew meanwhile"
	CauseRemote      Cause = "not over a forwarded connection"
	CauseNoSoftware  Cause = "this agent holds no private keys in memory (--no-software-keys)"
	CauseUpstream    Cause = "upstream agent"
)

// refusal is the reason for a failure answer, of which the client learns
// nothing more than that.
type refusal struct {
	cause Cause
	err   error // more about it, may be nil
}

func (r *refusal) Error() string {
	if r.err == nil {
		return string(r.cause)
	}
	return string(r.cause) + ": " + r.err.Error()
}

func (r *refusal) Unwrap() error { return r.err }

// elsewhere says that an upstream agent may know better.
func (r *refusal) elsewhere() bool { return r.cause == CauseUnknownKey || r.cause == CauseRemoved }

// because makes a refusal of an error, unless it is one already. What went
// wrong after the client hung up, or after a shutdown's grace, went wrong for
// that reason.
func because(ctx context.Context, c Cause, err error) *refusal {
	var r *refusal
	switch {
	case ctx.Err() != nil:
		return &refusal{CauseHungUp, err}
	case errors.As(err, &r):
		return r
	}
	return &refusal{c, err}
}

// attrs are for the log.
func (r *refusal) attrs() []any {
	attrs := []any{slog.String("cause", string(r.cause))}
	if r.err != nil {
		attrs = append(attrs, slog.Any("err", r.err))
	}
	return attrs
}

// promptCause tells how asking ended that brought no answer.
func promptCause(err error) Cause {
	switch {
	case errors.Is(err, ErrRefused):
		return CauseCancelled
	case errors.Is(err, ErrNoAnswer):
		return CauseNoAnswer
	case errors.Is(err, ErrNoPrompt):
		return CauseNoPrompt
	}
	return CausePrompt
}
