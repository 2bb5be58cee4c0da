package agent

import (
	"context"
	"errors"
	"log/slog"
)

// cause is why a request was refused, in the fewest kinds that call for
// different things to do about it.
type cause string

const (
	causeMalformed   cause = "malformed request"
	causeUnsupported cause = "unsupported request"
	causeUnknownKey  cause = "no such key"
	causeRemoved     cause = "key was removed"
	causeExpired     cause = "certificate has expired"
	causeAlgorithm   cause = "unsupported signature algorithm"
	causePrompt      cause = "no PIN given"
	causeWrongAuth   cause = "wrong PIN"
	causeKey         cause = "key could not sign"
	causeHungUp      cause = "nobody waits for the answer"

	causeLocked        cause = "the agent is locked"
	causeNotLocked     cause = "the agent is not locked"
	causeNoPassword    cause = "an empty password locks nothing"
	causeWrongPassword cause = "wrong password"

	causeBinding     cause = "binding to an SSH session"
	causeConstraint  cause = "constraint that cannot be kept"
	causeDestination cause = "not for this destination"
	causeConfirm     cause = "not confirmed"
	causeReplaced    cause = "key was added anew meanwhile"
	causeRemote      cause = "not over a forwarded connection"
	causeNoSoftware  cause = "this agent holds no private keys in memory (--no-software-keys)"
	causeUpstream    cause = "upstream agent"
)

// refusal is the reason for a failure answer, of which the client learns
// nothing more than that.
type refusal struct {
	cause cause
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
func (r *refusal) elsewhere() bool { return r.cause == causeUnknownKey || r.cause == causeRemoved }

// because makes a refusal of an error, unless it is one already. What went
// wrong after the client hung up, or after a shutdown's grace, went wrong for
// that reason.
func because(ctx context.Context, c cause, err error) *refusal {
	var r *refusal
	switch {
	case ctx.Err() != nil:
		return &refusal{causeHungUp, err}
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
