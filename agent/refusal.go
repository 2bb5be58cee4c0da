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
