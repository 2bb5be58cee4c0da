package consent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
)

// script is a Dialog with a user who gives answers one after the other, and a key
// whose PIN is "right".
type script struct {
	answers  []string // then Ask fails
	left     int      // wrong PINs until the lockout; -1: unlimited
	estimate bool     // Lockout does not know left for certain
	lost     int      // tries that others spend after the first one
	lastTry  error
	broken   error // what Try returns for the right PIN

	events []string
	given  [][]byte
}

func (s *script) Lockout(context.Context) (Lockout, bool) {
	return Lockout{Tries: s.left, Wait: time.Minute}, !s.estimate
}

func (s *script) LastTry(_ context.Context, l Lockout, retry bool) error {
	s.note("last", l, retry)
	return s.lastTry
}

func (s *script) Ask(_ context.Context, l Lockout, retry bool) ([]byte, error) {
	s.note("ask", l, retry)
	if len(s.answers) == 0 {
		return nil, ask.ErrRefused
	}
	pin := []byte(s.answers[0])
	s.answers = s.answers[1:]
	s.given = append(s.given, pin)
	return pin, nil
}

func (s *script) note(what string, l Lockout, retry bool) {
	if retry {
		what += " again"
	}
	s.events = append(s.events, fmt.Sprint(what, " ", l.Tries))
}

func (s *script) Try(_ context.Context, pin []byte) error {
	s.events = append(s.events, "try "+string(pin))
	if string(pin) == "right" {
		return s.broken
	}
	if s.left > 0 {
		s.left--
	}
	err := fmt.Errorf("signing: %w", &WrongPINError{s.left})
	s.left -= s.lost
	s.lost = 0
	return err
}

// TestAskPIN checks what AskPIN asks and tries, in which order, and how it ends.
func TestAskPIN(t *testing.T) {
	t.Parallel()
	broken := errors.New("the TPM is on fire")
	is := func(want error) func(error) bool {
		return func(err error) bool { return errors.Is(err, want) }
	}
	locked := func(err error) bool {
		var l *LockedOutError
		return errors.As(err, &l) && l.Wait == time.Minute
	}
	for name, test := range map[string]struct {
		script
		want   []string
		result string
		fails  func(error) bool // whether the error is the right one; nil: there is none
	}{
		"right at once": {
			script: script{answers: []string{"right"}, left: 3},
			want:   []string{"ask 3", "try right"}, result: "right",
		},
		"wrong, then right": {
			script: script{answers: []string{"a", "right"}, left: 3},
			want:   []string{"ask 3", "try a", "ask again 2", "try right"}, result: "right",
		},
		"an empty PIN is tried": {
			script: script{answers: []string{"", "right"}, left: 3},
			want:   []string{"ask 3", "try ", "ask again 2", "try right"}, result: "right",
		},
		"three wrong": {
			script: script{answers: []string{"a", "b", "c", "right"}, left: 9},
			want:   []string{"ask 9", "try a", "ask again 8", "try b", "ask again 7", "try c"}, fails: isWrongAuth,
		},
		"three wrong, no limit": {
			script: script{answers: []string{"a", "b", "c", "right"}, left: -1},
			want:   []string{"ask -1", "try a", "ask again -1", "try b", "ask again -1", "try c"}, fails: isWrongAuth,
		},
		"the same wrong PIN is tried once": {
			script: script{answers: []string{"a", "a", "right"}, left: 3},
			want:   []string{"ask 3", "try a", "ask again 2", "ask again 2", "try right"}, result: "right",
		},
		"the same wrong PIN three times": {
			script: script{answers: []string{"a", "a", "a"}, left: 3},
			want:   []string{"ask 3", "try a", "ask again 2", "ask again 2"}, fails: isWrongAuth,
		},
		"the last try needs consent": {
			script: script{answers: []string{"right"}, left: 1},
			want:   []string{"last 1", "ask 1", "try right"}, result: "right",
		},
		"the last try after a wrong PIN": {
			script: script{answers: []string{"a", "right"}, left: 2},
			want:   []string{"ask 2", "try a", "last again 1", "ask again 1", "try right"}, result: "right",
		},
		"no consent to the last try": {
			script: script{answers: []string{"a", "right"}, left: 2, lastTry: ask.ErrRefused},
			want:   []string{"ask 2", "try a", "last again 1"}, fails: is(ask.ErrRefused),
		},
		"locked out before": {
			script: script{answers: []string{"right"}, left: 0},
			fails:  locked,
		},
		"locked out before, by an estimate": {
			script: script{answers: []string{"right"}, left: 0, estimate: true},
			want:   []string{"ask 0", "try right"}, result: "right",
		},
		"locked out by others": {
			script: script{answers: []string{"a", "right"}, left: 9, lost: 8},
			want:   []string{"ask 9", "try a"}, fails: locked,
		},
		"locked out by others, by an estimate": {
			script: script{answers: []string{"a", "right"}, left: 9, lost: 8, estimate: true},
			want:   []string{"ask 9", "try a"}, fails: locked,
		},
		"locked out by the last try": {
			script: script{answers: []string{"a", "right"}, left: 1},
			want:   []string{"last 1", "ask 1", "try a"}, fails: locked,
		},
		"locked out by the third try": {
			script: script{answers: []string{"a", "b", "c", "right"}, left: 3},
			want:   []string{"ask 3", "try a", "ask again 2", "try b", "last again 1", "ask again 1", "try c"}, fails: locked,
		},
		"no answer": {
			script: script{left: 3},
			want:   []string{"ask 3"}, fails: is(ask.ErrRefused),
		},
		"no answer after a wrong PIN": {
			script: script{answers: []string{"a"}, left: 3},
			want:   []string{"ask 3", "try a", "ask again 2"}, fails: is(ask.ErrRefused),
		},
		"the key fails": {
			script: script{answers: []string{"a", "right"}, left: 3, broken: broken},
			want:   []string{"ask 3", "try a", "ask again 2", "try right"}, fails: is(broken),
		},
		"the key is locked out": {
			script: script{answers: []string{"right"}, left: -1, broken: &LockedOutError{Wait: time.Minute}},
			want:   []string{"ask -1", "try right"}, fails: locked,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &test.script
			pin, err := AskPIN(t.Context(), s)
			if !slices.Equal(s.events, test.want) {
				t.Errorf("events %q, want %q", s.events, test.want)
			}
			if string(pin) != test.result || test.fails == nil && err != nil || test.fails != nil && !test.fails(err) {
				t.Errorf("got %q, %v", pin, err)
			}
			for i, given := range s.given {
				if string(given) != test.result && !bytes.Equal(given, make([]byte, len(given))) {
					t.Errorf("PIN %d is still in memory: %q", i, given)
				}
			}
		})
	}
}
