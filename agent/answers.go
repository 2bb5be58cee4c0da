package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"time"
)

// ownerAnswers are the extensions of owner.go. Those that tell of keys are not
// answered while the agent is locked.
var ownerAnswers = map[string]struct {
	answer     func(a *Agent, ctx context.Context, c *conn, w *wire) ([]byte, error)
	whenLocked bool
}{
	extKeyStatus:  {answer: (*Agent).keyStatus},
	extUnlockKey:  {answer: (*Agent).unlockKey},
	extForgetPINs: {answer: (*Agent).forgetPINs, whenLocked: true},
	extRefusals:   {answer: (*Agent).refusals},
	extHeldKeys:   {answer: (*Agent).heldKeys},
}

// answerOwner answers one of them. The error is about the request, which could
// not be read.
func (a *Agent) answerOwner(ctx context.Context, c *conn, name string, w *wire) []byte {
	body, err := ownerAnswers[name].answer(a, ctx, c, w)
	if err != nil {
		a.refuse(c.asker(), name, nil, &refusal{CauseMalformed, err})
		return failure()
	}
	return frame(append(appendString([]byte{msgExtensionResponse}, name), body...))
}

var errRestOfMessage = errors.New("something behind the message")

// whole says whether a request was read to its end, and has nothing behind it.
func (w *wire) whole() error {
	if w.err == nil && len(w.rest) > 0 {
		return errRestOfMessage
	}
	return w.err
}

func (a *Agent) keyStatus(ctx context.Context, _ *conn, w *wire) ([]byte, error) {
	blob := w.string()
	if err := w.whole(); err != nil {
		return nil, err
	}
	id, refused := a.lookup(string(blob))
	if refused != nil {
		return nil, nil // is ErrNoKey
	}
	l, _ := a.lockout(ctx, id)
	known, ok := a.learned(id)
	s := KeyStatus{
		Name:       id.name(),
		NeedsPIN:   id.Key.AuthRequired(),
		Remembered: a.rememberedPIN(id) != nil,
		TriesLeft:  l.Tries,
		Wait:       l.Wait,
	}
	if ok {
		s.NeedsPIN = known.needed
	}
	return s.marshal(nil), nil
}

func (a *Agent) forgetPINs(_ context.Context, c *conn, w *wire) ([]byte, error) {
	if err := w.whole(); err != nil {
		return nil, err
	}
	n := a.ForgetPINs()
	a.log.Info("forgot all PINs", "PINs", n, "peer", c.asker())
	return binary.BigEndian.AppendUint32(nil, uint32(n)), nil
}

func (a *Agent) refusals(_ context.Context, _ *conn, w *wire) (b []byte, err error) {
	if err := w.whole(); err != nil {
		return nil, err
	}
	for _, r := range a.recent.list() {
		b = r.marshal(b)
	}
	return b, nil
}

func (a *Agent) unlockKey(ctx context.Context, c *conn, w *wire) ([]byte, error) {
	blob, value, ttl := w.string(), w.string(), seconds(w.uint32())
	if err := w.whole(); err != nil {
		return nil, err
	}
	id, refused := a.lookup(string(blob))
	if refused != nil {
		a.refuse(c.asker(), "unlock key", nil, refused, slog.String("fingerprint", fingerprintOf(blob)))
		return marshalUnlock(0, ErrNoKey), nil
	}
	life, err := a.unlock(ctx, id, value, ttl, a.forgotten.Load())
	if err != nil && !errors.Is(err, ErrNoPIN) {
		a.refuse(c.asker(), "unlock key", id, unlockRefusal(ctx, err))
	}
	return marshalUnlock(life, err), nil
}

// unlock remembers a PIN, if the key takes it, and returns for how long. It does
// not wait for a dialog of the key that is open, but answers it.
func (a *Agent) unlock(ctx context.Context, id *identity, value []byte, ttl time.Duration, since uint64) (life time.Duration, err error) {
	if err := a.needsPIN(ctx, id); err != nil {
		return 0, err
	}
	if len(value) == 0 {
		return 0, errors.New("the PIN is empty")
	}
	if err := a.check(ctx, id, value); err != nil {
		return 0, ownerError(err)
	}
	kept, err := newMemory(len(value), func(b []byte) { copy(b, value) })
	if err != nil {
		return 0, err
	}
	life = a.unlockLife(id, ttl)
	if !a.rememberPIN(id, kept, life, since) {
		kept.wipe()
		return 0, errors.New("meanwhile the key was removed, or all PINs were forgotten")
	}
	a.rounds.answered(id.line)
	return life, nil
}

// unlockLife is for how long a PIN is remembered that was given ahead of use.
func (a *Agent) unlockLife(id *identity, asked time.Duration) time.Duration {
	if asked == 0 {
		asked = a.lifeOfPIN(id)
	}
	if asked == 0 {
		return Forever
	}
	return asked
}

// needsPIN returns ErrNoPIN for a key without one. Where the key itself says so,
// an empty value costs nothing, or next to it.
func (a *Agent) needsPIN(ctx context.Context, id *identity) error {
	known, ok := a.learned(id)
	if ok && !known.needed {
		return ErrNoPIN
	}
	if ok || id.Key.AuthRequired() {
		return nil
	}
	err := a.check(ctx, id, nil)
	switch {
	case err == nil:
		a.learnNeeded(id, false)
		return ErrNoPIN
	case !isWrongAuth(err):
		return ownerError(err)
	}
	a.learnNeeded(id, true)
	return nil
}

// check has the key sign something that nobody has asked for and nobody gets:
// a TPM has no other way to check an auth value.
func (a *Agent) check(ctx context.Context, id *identity, value []byte) error {
	_, hash, err := scheme(id.plain, flagRSASHA256, false)
	if err != nil {
		return err
	}
	nothing := make([]byte, 32)
	rand.Read(nothing)
	_, err = id.Key.Sign(ctx, value, digest(hash, nothing), hash)
	a.judge(err, value)
	return err
}

// ownerError is an error of a key as its owner is told it.
func ownerError(err error) error {
	var w wrongAuth
	var l lockedOut
	switch {
	case errors.As(err, &w) && w.WrongAuth():
		n, known := w.TriesLeft()
		if !known {
			n = triesUnknown
		}
		return &WrongPINError{n}
	case errors.As(err, &l):
		return &LockedOutError{l.LockedOut()}
	}
	return err
}

func unlockRefusal(ctx context.Context, err error) *refusal {
	var w *WrongPINError
	var l *LockedOutError
	switch {
	case errors.As(err, &w):
		return &refusal{CauseWrongAuth, err}
	case errors.As(err, &l):
		return &refusal{CauseLockout, err}
	}
	return because(ctx, CauseKey, err)
}
