package consent

import (
	"context"
	"errors"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
)

// ErrNoPIN says that a key needs no PIN.
var ErrNoPIN = errors.New("the key has no PIN")

// Status describes the PIN of a key.
type Status struct {
	NeedsPIN   bool // may be wrong: see Key.AuthRequired
	Remembered time.Duration
	Lockout
}

// Status returns what is known about the PIN of a key.
func (o *Owner) Status(ctx context.Context, id *Identity) Status {
	l, _ := o.lockout(ctx, id)
	s := Status{NeedsPIN: id.Key.AuthRequired(), Remembered: o.store.left(id), Lockout: l}
	if known, ok := o.book.get(id); ok {
		s.NeedsPIN = known.needed
	}
	return s
}

// Needed reports whether the owner may have to be asked before the key signs.
func (o *Owner) Needed(id *Identity) bool {
	known, ok := o.book.get(id)
	return !ok || known.needed
}

// Give remembers a PIN that was given before it is needed, if the key accepts it,
// and returns for how long. r is a signature that is thrown away: a TPM has no
// other way to check an auth value. It does not wait for an open dialog about the key,
// but answers it. A ttl of 0 is as Config.PINLife says, or forever.
//
// The error is ErrNoPIN, the key's, or says that the key is gone.
func (o *Owner) Give(ctx context.Context, r Request, value []byte, ttl time.Duration) (life time.Duration, err error) {
	since := o.store.forgotten.Load()
	t := &try{Request: r, o: o, id: r.Identity}
	if err := t.needsPIN(ctx); err != nil {
		return 0, err
	}
	if len(value) == 0 {
		return 0, errors.New("the PIN is empty")
	}
	if _, err := t.with(ctx, value); err != nil {
		return 0, err
	}
	kept, err := softkey.NewSecret(value)
	if err != nil {
		return 0, err
	}
	if life = ttl; life == 0 {
		life = o.life(t.id)
	}
	if life == 0 {
		life = restrict.Forever
	}
	if !o.remember(t.id, kept, life, since) {
		kept.Wipe()
		return 0, errors.New("meanwhile the key was removed, or all PINs were forgotten")
	}
	o.rounds.answered(t.id.KeyBlob)
	return life, nil
}

// needsPIN returns ErrNoPIN for a key without one. If the key itself says so, an
// empty value costs next to nothing.
func (t *try) needsPIN(ctx context.Context) error {
	known, ok := t.o.book.get(t.id)
	if ok && !known.needed {
		return ErrNoPIN
	}
	if ok || t.id.Key.AuthRequired() {
		return nil
	}
	_, err := t.with(ctx, nil)
	switch {
	case err == nil:
		t.o.book.learnNeeded(t.id, false)
		return ErrNoPIN
	case !isWrongAuth(err):
		return err
	}
	t.o.book.learnNeeded(t.id, true)
	return nil
}
