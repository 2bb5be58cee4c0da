package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// find finds the auth value, nil if none is needed. own says that it is held
// for this round only.
//
// The key's line is entered before anything is asked or tried, so that there
// is one dialog for a key at a time, and so that others' tries are known.
func (r *round) find() (pin *memory, own bool, err error) {
	leave, err := r.a.lines.enter(r.ctx, r.key.line)
	if err != nil {
		return nil, false, err
	}
	defer leave()
	id, err := r.identity()
	if err != nil {
		return nil, false, err
	}
	if known, ok := r.a.learned(id); ok && !known.needed {
		return nil, false, nil
	} else if !ok && !id.Key.AuthRequired() {
		wrong, err := r.attempt(nil)
		if !wrong {
			if err == nil {
				r.a.learnNeeded(id, false)
			}
			return nil, false, err
		}
		r.a.learnNeeded(id, true)
	}
	if pin := r.a.rememberedPIN(id); pin != nil {
		return pin, false, nil
	}
	if pin, err := r.given(id); pin != nil || err != nil {
		return pin, true, err
	}
	pin, own, err = r.prompt(id)
	return pin, own, r.orUnused(err)
}

// orUnused is err, with the better reason where nobody could be asked for a PIN
// that was given.
func (r *round) orUnused(err error) error {
	var refused *refusal
	switch {
	case r.unused == nil || !errors.As(err, &refused) || refused.cause != CauseNoPrompt:
		return err
	case refused.err == nil:
		return &refusal{CauseNoPrompt, r.unused}
	}
	return &refusal{CauseNoPrompt, fmt.Errorf("%w; %w", r.unused, refused.err)}
}

// identity is that of a member who may still use it. Those who may not are
// told.
func (r *round) identity() (*identity, error) {
	for {
		m, _ := r.first()
		if m == nil {
			return nil, errNobody
		}
		err := m.t.lookup()
		if err == nil {
			return m.t.id, nil
		}
		r.settle(m, outcome{err: err})
	}
}

// attempt signs for one member. It goes on when that one leaves, as long as
// others wait: what it has cost may not be known yet, and must not be spent
// again. An error besides a wrong auth value is for all.
func (r *round) attempt(value []byte) (wrong bool, err error) {
	for {
		m, _ := r.first()
		if m == nil {
			return false, errNobody
		}
		if err := m.t.lookup(); err != nil {
			r.settle(m, outcome{err: err})
			continue
		}
		sig, err := m.t.with(r.ctx, value)
		switch {
		case isWrongAuth(err):
			return true, nil
		case err != nil:
			return false, r.a.explained(m.t, err)
		}
		r.signer, r.signature = m, sig
		return false, nil
	}
}

// explained is what members are told about an error of the key, and the user.
func (a *Agent) explained(t *try, err error) error {
	var l lockedOut
	if errors.As(err, &l) {
		a.inform(Notice{Question: t.question(), Wait: l.LockedOut()})
		return &refusal{CauseLockout, err}
	}
	return err
}

// given tries the PIN that is there for the key without asking anybody. One
// that was wrong is not tried again, and none is where it could lock up the
// key's keeper, unless it was right before.
func (r *round) given(id *identity) (*memory, error) {
	if r.a.givenPIN == nil {
		return nil, nil
	}
	value, version, err := r.a.givenPIN(id.Name, id.fingerprint())
	if err != nil {
		r.unusable(id, fmt.Errorf("cannot be used: %w", err))
	}
	if err != nil || value == nil {
		return nil, nil
	}
	defer clear(value)
	if why := r.notToTry(id, version); why != nil {
		r.unusable(id, fmt.Errorf("is not tried: %w", why))
		return nil, nil
	}
	wrong, err := r.attempt(value)
	switch {
	case wrong:
		r.a.learn(id, func(l *auth) { l.refused = version })
		r.unusable(id, errors.New("is wrong, and is not tried again"))
		return nil, nil
	case err != nil:
		return nil, err
	}
	r.a.learn(id, func(l *auth) { l.taken = version })
	return newMemory(len(value), func(b []byte) { copy(b, value) })
}

// unusable notes and logs why a PIN that was given is of no use.
func (r *round) unusable(id *identity, why error) {
	r.unused = fmt.Errorf("the PIN that was given for it %w", why)
	r.a.log.Warn("the PIN that was given for a key is not used", "key", id.name(), "cause", why)
}

// notToTry says why a version of a given PIN is not to be tried, if so.
func (r *round) notToTry(id *identity, version string) error {
	switch known, _ := r.a.learned(id); version {
	case known.taken:
		return nil
	case known.refused:
		return errors.New("it was wrong")
	}
	switch l, _ := r.a.lockout(r.ctx, id); l.Tries {
	case 0:
		return errors.New("no PIN is taken after too many wrong ones")
	case 1:
		return errors.New("if it is wrong, no PIN is taken any more")
	}
	return nil
}

// prompt asks and signs, until the PIN is right or there is a reason to stop.
func (r *round) prompt(id *identity) (pin *memory, own bool, err error) {
	var wrong [][]byte // kept until the end, not to spend another try on any of them
	defer func() {
		for _, w := range wrong {
			clear(w)
		}
	}()
	for n := range maxPrompts {
		since := r.a.forgotten.Load()
		value, err := r.ask(n > 0)
		if pin := r.a.rememberedPIN(id); pin != nil && err != nil {
			return pin, false, nil // given elsewhere while the dialog was open
		}
		if err != nil {
			return nil, false, err
		}
		if known, _ := r.a.learned(id); slices.ContainsFunc(wrong, func(w []byte) bool { return bytes.Equal(w, value) }) ||
			len(value) == 0 && known.emptyWrong {
			clear(value) // and is still wrong: it would only cost another try
			continue
		}
		isWrong, err := r.attempt(value)
		if !isWrong {
			defer clear(value)
			switch {
			case err != nil:
				return nil, false, err
			case len(value) == 0: // and so there is none
				r.a.learnNeeded(id, false)
				return nil, false, nil
			}
			return r.a.keepPIN(id, value, since)
		}
		if len(value) == 0 {
			r.a.learn(id, func(l *auth) { l.emptyWrong = true })
		}
		wrong = append(wrong, value)
	}
	return nil, false, r.allWrong()
}

// allWrong is why nobody is asked again: the last of the wrong PINs may have been
// the last that the TPM takes.
func (r *round) allWrong() error {
	m, _ := r.first()
	if m == nil {
		return errNobody
	}
	if l, _ := r.a.lockout(r.ctx, m.t.id); l.Tries == 0 {
		return r.a.lockedOut(m.t.question(), l.Wait)
	}
	return &refusal{cause: CauseWrongAuth}
}

// lockedOut tells the user of a lockout, and is what members are told.
func (a *Agent) lockedOut(q Question, wait time.Duration) error {
	a.inform(Notice{Question: q, Wait: wait})
	return &refusal{CauseLockout, lockoutEnds(wait)}
}

// ask opens the dialog, for the one who has waited for longest. If that one
// leaves the terminal on which it is, it is for the next.
func (r *round) ask(retry bool) ([]byte, error) {
	for {
		m, others := r.first()
		if m == nil {
			return nil, errNobody
		}
		value, err := r.askFor(m, AuthPrompt{Question: m.t.question(), Retry: retry, Waiting: others})
		if !errors.Is(err, ErrLeft) {
			return value, err
		}
		r.settle(m, outcome{err: err})
	}
}

func (r *round) askFor(m *member, p AuthPrompt) ([]byte, error) {
	a := r.a
	if a.prompter == nil {
		return nil, &refusal{cause: CauseNoPrompt}
	}
	asking, done := a.whileWanted(r.ctx)
	defer done()
	asking, answered := context.WithCancel(asking)
	defer answered()
	r.dialog(answered)
	defer r.dialog(nil)
	value, err := a.askWithin(asking, m.t, p)
	if away := takenAway(asking); err != nil && away != nil {
		return nil, away
	}
	return value, err
}

// askWithin asks for a PIN, if the TPM would take it; and before the last try,
// whether it is to be made.
func (a *Agent) askWithin(ctx context.Context, t *try, p AuthPrompt) ([]byte, error) {
	l, known := a.lockout(ctx, t.id)
	p.TriesLeft = l.Tries
	if l.Tries == 0 && (known || p.Retry) {
		return nil, a.lockedOut(p.Question, l.Wait)
	}
	if l.Tries == 1 {
		if err := a.prompter.LastTry(ctx, p); err != nil {
			return nil, &refusal{promptCause(err), err}
		}
	}
	value, err := a.prompter.AuthValue(ctx, p)
	if err != nil {
		return nil, &refusal{promptCause(err), err}
	}
	return value, nil
}

// lockoutEnds says when, if that is known.
func lockoutEnds(wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	return fmt.Errorf("the TPM gives back one try after %v at most", wait)
}

func (r *round) dialog(answered context.CancelFunc) {
	r.a.rounds.mu.Lock()
	defer r.a.rounds.mu.Unlock()
	r.answer = answered
}

func (t *try) question() Question {
	return Question{Name: t.id.Name, Comment: t.id.Comment, Fingerprint: t.id.fingerprint(), Peer: t.peer, Use: t.use}
}
