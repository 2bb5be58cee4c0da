package agent

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"slices"
)

// maxPrompts is how often a user is asked for one signature.
const maxPrompts = 3

// triesUnknown: no key has said yet how many wrong auth values it takes.
const triesUnknown = -1

// auth is what signing has taught about a key: whether it needs a PIN. What
// the key says beforehand is a hint, and to find out with an empty auth value
// costs one of the tries before lockout, so it is done once.
type auth struct {
	key    Key // a new one behind the same public key has to be learned anew
	needed bool
}

// learned returns what is known of the key of id.
func (a *Agent) learned(id *identity) (needed, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.auth[id.line]
	if !ok || l.key != id.Key {
		return false, false
	}
	return l.needed, true
}

func (a *Agent) learn(id *identity, needed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.auth[id.line] = auth{id.Key, needed}
}

// triesLeft is shared by all keys: a TPM counts the wrong values for all that
// is in it. The number stays until a key gives another, for a right value
// does not put it up again.
func (a *Agent) triesLeft() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tries
}

// wrongValue counts what a wrong auth value has cost. A key that cannot tell
// how many tries are left has still spent one.
func (a *Agent) wrongValue(w wrongAuth) {
	n, known := w.TriesLeft()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case known:
		a.tries = n
	case a.tries > 1:
		a.tries--
	}
}

// rightValue: what takes an auth value is not locked up, or not any more.
func (a *Agent) rightValue() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tries == 0 {
		a.tries = triesUnknown
	}
}

// wrongAuth is how a Key says that the auth value was not the right one.
type wrongAuth interface {
	error
	WrongAuth() bool
	TriesLeft() (n int, known bool)
}

// try is one signature on its way, with the auth values that were wrong for
// it.
type try struct {
	a      *Agent
	id     *identity
	limits *constraints // those that were judged
	peer   Peer
	digest []byte
	hash   crypto.Hash
	wrong  [][]byte
}

// sign asks for the PIN if it must.
//
// A key of which it is known that it needs none signs at once, as often as
// clients ask. All else is done one at a time for each key: prompts, because
// nobody wants two dialogs for one key, and the first signature with an empty
// auth value, because if the key has a PIN after all then each costs a try,
// and 32 connections of a parallel rsync would be a lockout.
func (t *try) sign(ctx context.Context) ([]byte, error) {
	if needed, known := t.a.learned(t.id); known && !needed {
		sig, err := t.with(ctx, nil)
		if !isWrongAuth(err) {
			return sig, err
		}
		t.a.learn(t.id, true)
	}
	leave, err := t.a.lines.enter(ctx, t.id.line)
	if err != nil {
		return nil, err
	}
	defer leave()
	defer t.wipe()
	return t.signInLine(ctx)
}

// signInLine looks the identity up again whenever there was time to remove or
// replace it.
func (t *try) signInLine(ctx context.Context) ([]byte, error) {
	if err := t.lookup(); err != nil {
		return nil, err
	}
	needed, _ := t.a.learned(t.id)
	if !needed && !t.id.Key.AuthRequired() {
		sig, err := t.with(ctx, nil)
		if !isWrongAuth(err) {
			if err == nil {
				t.a.learn(t.id, false)
			}
			return sig, err
		}
		t.a.learn(t.id, true)
	}
	return t.prompt(ctx)
}

// prompt asks and signs, until the PIN is right or there is a reason to stop.
func (t *try) prompt(ctx context.Context) ([]byte, error) {
	for n := range maxPrompts {
		if n > 0 && t.a.triesLeft() == 0 {
			break // the next one would only be told that the lockout has begun
		}
		value, err := t.ask(ctx, n > 0)
		if err != nil {
			return nil, err
		}
		if err := t.lookup(); err != nil {
			clear(value)
			return nil, err
		}
		if t.wasWrong(value) {
			clear(value) // and is still: it would only cost another try
			continue
		}
		sig, err := t.with(ctx, value)
		if !isWrongAuth(err) {
			clear(value)
			return sig, err
		}
	}
	return nil, &refusal{cause: CauseWrongAuth}
}

func (t *try) ask(ctx context.Context, retry bool) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if t.a.prompter == nil {
		return nil, &refusal{cause: CauseNoPrompt}
	}
	asking, done := t.a.untilLocked(ctx)
	defer done()
	value, err := t.a.prompter.AuthValue(asking, AuthPrompt{
		Question: Question{
			Name:        t.id.Name,
			Comment:     t.id.Comment,
			Fingerprint: t.id.fingerprint(),
			Peer:        t.peer,
		},
		Retry:     retry,
		TriesLeft: t.a.triesLeft(),
	})
	switch {
	case err != nil && t.a.isLocked():
		return nil, &refusal{CauseLocked, err}
	case err != nil:
		return nil, &refusal{promptCause(err), err}
	}
	return value, nil
}

// lookup fails when the identity is not there any more.
func (t *try) lookup() error {
	id, refused := t.a.again(t.id.blob, t.limits)
	if refused != nil {
		return refused
	}
	t.id = id
	return nil
}

// with signs with one auth value, unless nobody waits for it any longer.
func (t *try) with(ctx context.Context, value []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sig, err := t.id.Key.Sign(ctx, value, t.digest, t.hash)
	var w wrongAuth
	switch {
	case errors.As(err, &w) && w.WrongAuth():
		t.a.wrongValue(w)
		t.wrong = append(t.wrong, value)
	case err == nil && len(value) > 0:
		t.a.rightValue()
	}
	return sig, err
}

func (t *try) wasWrong(value []byte) bool {
	return slices.ContainsFunc(t.wrong, func(w []byte) bool { return bytes.Equal(w, value) })
}

// wipe overwrites the auth values. The wrong ones were kept until now, not to
// spend another try on any of them.
func (t *try) wipe() {
	for _, w := range t.wrong {
		clear(w)
	}
}

func isWrongAuth(err error) bool {
	var w wrongAuth
	return errors.As(err, &w) && w.WrongAuth()
}
