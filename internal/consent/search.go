package consent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
)

// find finds the auth value.
//
// The key's turn comes before anything is asked or tried, so that there is one
// dialog for a key at a time, and each round knows what others have tried.
func (r *round) find() (found answer, err error) {
	o := r.o
	leave, err := o.turns.enter(r.ctx, r.key.keyBlob)
	if err != nil {
		return found, err
	}
	defer leave()
	m, err := r.present()
	if err != nil {
		return found, err
	}
	id := m.t.id
	known, ok := o.book.get(id)
	switch {
	case ok && !known.needed:
		return found, nil
	case !ok && !id.Key.AuthRequired():
		if err := r.Try(r.ctx, nil); !isWrongAuth(err) {
			return found, err
		}
	}
	if found.pin = o.store.pin(id); found.pin != nil {
		return found, nil
	}
	if found.value, err = r.given(id); found.value != nil || err != nil {
		return found, err
	}
	return r.prompt(id)
}

// present returns the first member that may still use the key. Members that may
// not are told.
func (r *round) present() (*member, error) {
	for {
		m, _ := r.o.rounds.first(r)
		if m == nil {
			return nil, errNobody
		}
		err := m.t.lookup()
		if err == nil {
			return m, nil
		}
		r.o.rounds.settle(r, m, err)
	}
}

// explained tells the owner about a lockout, and returns the error for members.
func (o *Owner) explained(t *try, err error) error {
	var l LockedOut
	if !errors.As(err, &l) {
		return err
	}
	o.inform(t.question(), l.LockedOut())
	var own *LockedOutError
	if errors.As(err, &own) {
		err = lockoutEnds(own.Wait) // the cause says the rest
	}
	return refusal.New(refusal.Lockout, err)
}

// lockoutEnds returns an error with the time until a lockout ends, or nil if wait
// is 0, which means unknown.
func lockoutEnds(wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	return fmt.Errorf("the TPM gives back one try after %v at most", wait)
}

// given tries the PIN that Config.GivenPIN has for the key. One that was wrong is
// not tried again, and an unproven one is not used for the last try.
func (r *round) given(id *Identity) ([]byte, error) {
	if r.o.GivenPIN == nil {
		return nil, nil
	}
	value, version, err := r.o.GivenPIN(id.Name, id.Fingerprint)
	if err != nil {
		r.unusable(id, fmt.Errorf("cannot be used: %w", err))
	}
	if err != nil || value == nil {
		return nil, nil
	}
	if why := r.notToTry(id, version); why != nil {
		clear(value)
		r.unusable(id, fmt.Errorf("is not tried: %w", why))
		return nil, nil
	}
	err = r.Try(r.ctx, value)
	if err == nil {
		r.o.book.learn(id, func(k *knowledge) { k.taken = version })
		return value, nil
	}
	clear(value)
	if isWrongAuth(err) {
		r.o.book.learn(id, func(k *knowledge) { k.refused = version })
		r.unusable(id, errors.New("is wrong, and is not tried again"))
		err = nil
	}
	return nil, err
}

// unusable records and logs why a given PIN is not used.
func (r *round) unusable(id *Identity, why error) {
	r.unused = fmt.Errorf("the PIN that was given for it %w", why)
	r.o.Log.Warn("the PIN that was given for a key is not used", "key", id.Label(), "cause", why)
}

// notToTry returns why a version of a given PIN must not be tried, or nil.
func (r *round) notToTry(id *Identity, version string) error {
	switch known, _ := r.o.book.get(id); version {
	case known.taken:
		return nil
	case known.refused:
		return errors.New("it was wrong")
	}
	switch l, _ := r.o.lockout(r.ctx, id); l.Tries {
	case 0:
		return errors.New("no PIN is accepted after too many wrong ones")
	case 1:
		return errors.New("if it is wrong, the TPM locks")
	}
	return nil
}

// prompt asks the owner until the PIN is right or there is a reason to stop.
func (r *round) prompt(id *Identity) (found answer, err error) {
	value, err := AskPIN(r.ctx, r)
	if err != nil {
		if found.pin = r.o.store.pin(id); found.pin != nil {
			return found, nil // it was given elsewhere while the dialog was open
		}
		return found, r.failed(err)
	}
	life := r.o.life(id)
	switch {
	case len(value) == 0: // and so there is none
		return found, nil
	case life <= 0:
		return answer{value: value}, nil
	}
	kept, err := softkey.NewSecret(value)
	if err != nil {
		return answer{value: value}, nil
	}
	if !r.o.remember(id, kept, life, r.since) {
		kept.Wipe()
		return answer{value: value}, nil
	}
	clear(value)
	return answer{pin: kept}, nil
}

// failed returns the error of AskPIN as members are told. If the owner cannot be
// asked, the reason why a given PIN is not used says more.
func (r *round) failed(err error) error {
	var refused *refusal.Error
	var l *LockedOutError
	switch {
	case r.unused != nil && errors.As(err, &refused) && refused.Cause == refusal.NoPrompt:
		if refused.Err == nil {
			return refusal.New(refusal.NoPrompt, r.unused)
		}
		return refusal.New(refusal.NoPrompt, fmt.Errorf("%w; %w", r.unused, refused.Err))
	case errors.As(err, &l):
		if m, _ := r.o.rounds.first(r); m != nil {
			return r.o.explained(m.t, err)
		}
	case isWrongAuth(err):
		return refusal.New(refusal.WrongAuth, nil)
	}
	return err
}

// Lockout implements Dialog.
func (r *round) Lockout(ctx context.Context) (l Lockout, known bool) {
	m, _ := r.o.rounds.first(r)
	if m == nil {
		return Lockout{Tries: triesUnknown}, false
	}
	return r.o.lockout(ctx, m.t.id)
}

// LastTry implements Dialog.
func (r *round) LastTry(_ context.Context, l Lockout, retry bool) error {
	return r.ask(l, retry, func(ctx context.Context, p ask.AuthPrompt) error {
		return r.o.Prompter.LastTry(ctx, p)
	})
}

// Ask implements Dialog.
func (r *round) Ask(_ context.Context, l Lockout, retry bool) (value []byte, err error) {
	r.since = r.o.store.forgotten.Load()
	err = r.ask(l, retry, func(ctx context.Context, p ask.AuthPrompt) (err error) {
		value, err = r.o.Prompter.AuthValue(ctx, p)
		return err
	})
	return value, err
}

// Try implements Dialog: it signs for one member. That is finished even if the
// member leaves, as long as others wait: its cost may not be known yet, and must
// not be paid again. An empty PIN that was wrong for the key before is not tried
// again. An error other than a wrong auth value is for all members.
func (r *round) Try(_ context.Context, value []byte) error {
	m, err := r.present()
	if err != nil {
		return err
	}
	id, empty := m.t.id, len(value) == 0
	if known, _ := r.o.book.get(id); empty && known.emptyWrong {
		return &WrongPINError{triesUnknown}
	}
	sig, err := m.t.with(r.ctx, value)
	wrong := isWrongAuth(err)
	if empty && (err == nil || wrong) {
		r.o.book.learnNeeded(id, wrong)
	}
	switch {
	case wrong:
		return err
	case err != nil:
		return r.o.explained(m.t, err)
	}
	r.signer, r.signature = m, sig
	return nil
}

// ask shows a dialog for the member that has waited longest. If its client leaves
// the terminal that shows the dialog, the next member gets one.
func (r *round) ask(l Lockout, retry bool, show func(context.Context, ask.AuthPrompt) error) error {
	o := r.o
	if o.Prompter == nil {
		return refusal.New(refusal.NoPrompt, nil)
	}
	m, others := o.rounds.first(r)
	if m == nil {
		return errNobody
	}
	asking, done := o.whileWanted(r.ctx)
	defer done()
	o.rounds.mu.Lock()
	r.known = done
	o.rounds.mu.Unlock()
	err := show(asking, ask.AuthPrompt{Question: m.t.question(), Retry: retry, TriesLeft: l.Tries, Waiting: others})
	if err == nil {
		return nil
	}
	if away := takenAway(asking); away != nil {
		return away
	}
	refused := refusal.New(promptCause(err), err)
	if !errors.Is(err, ask.ErrLeft) {
		return refused
	}
	o.rounds.settle(r, m, refused)
	return r.ask(l, retry, show)
}

// maxPrompts is how often a user is asked for one PIN.
const maxPrompts = 3

// A Dialog is one way to ask a user for the PIN of one key.
type Dialog interface {
	// Lockout returns how many tries are left. known is false if that is an
	// estimate.
	Lockout(ctx context.Context) (l Lockout, known bool)

	// LastTry asks whether to spend the last try before a lockout. Only nil is a
	// yes. retry: the PIN before was wrong.
	LastTry(ctx context.Context, l Lockout, retry bool) error

	// Ask asks for the PIN. AskPIN owns the result.
	Ask(ctx context.Context, l Lockout, retry bool) ([]byte, error)

	// Try uses the PIN. An error that contains a WrongAuth leads to the next try.
	Try(ctx context.Context, pin []byte) error
}

// AskPIN asks for a PIN until one is right, at most three times, and returns it;
// the caller overwrites it. It never spends the last try before a lockout without
// consent, and never tries a PIN twice. The error is the Dialog's, a WrongAuth
// after the last try, or a *LockedOutError.
func AskPIN(ctx context.Context, d Dialog) (pin []byte, err error) {
	var wrong [][]byte
	defer func() {
		for _, w := range wrong {
			clear(w)
		}
	}()
	for n := range maxPrompts {
		retry := n > 0
		l, known := d.Lockout(ctx)
		if l.Tries == 0 && (known || retry) {
			return nil, &LockedOutError{l.Wait, err}
		}
		if l.Tries == 1 {
			if err := d.LastTry(ctx, l, retry); err != nil {
				return nil, err
			}
		}
		if pin, err = d.Ask(ctx, l, retry); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(wrong, func(w []byte) bool { return bytes.Equal(w, pin) }) {
			clear(pin) // it would only cost another try
			err = &WrongPINError{l.Tries}
			continue
		}
		if err = d.Try(ctx, pin); !isWrongAuth(err) {
			if err != nil {
				clear(pin)
				pin = nil
			}
			return pin, err
		}
		wrong = append(wrong, pin)
		var w WrongAuth
		if errors.As(err, &w) {
			if left, known := w.TriesLeft(); known && left == 0 {
				break
			}
		}
	}
	if l, _ := d.Lockout(ctx); l.Tries == 0 {
		return nil, &LockedOutError{l.Wait, err}
	}
	return nil, err
}
