package tpmkey

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// Parent identifies a storage key.
type Parent struct {
	// Name is nameAlg and digest of its public area (TPM 2.0 Part 1, 16). It was
	// computed here, not copied from the TPM's response.
	Name []byte
	// At is where it was found: "0x81000001" for a persistent handle; a hierarchy
	// ("owner") for the primary of the draft's P-256 template; "owner-rsa" and
	// "owner-zeros" for other templates. The seed of the hierarchy determines the
	// key there: a different Name in the same place means a different TPM, or one
	// that was cleared.
	At string
}

// ParentChangedError means that the TPM does not have the storage key under which a
// key was loaded before: it is a different TPM, or it was cleared, or a persistent
// key was replaced, or an interposer on the bus substitutes a key of its own. No
// session was started with the new storage key. The error wraps [ErrWrongTPM].
type ParentChangedError struct {
	Want []byte // the Name that is remembered
	Have Parent // what the TPM has in that place
}

func (e *ParentChangedError) Error() string {
	if strings.HasPrefix(e.Have.At, "0x") {
		return fmt.Sprintf("a different storage key is at %s: it was replaced, or this TPM was cleared or replaced", e.Have.At)
	}
	return "made in another TPM, or this TPM was cleared: its storage key has changed"
}

func (e *ParentChangedError) Unwrap() error { return ErrWrongTPM }

// Pin tells the key which storage key it was loaded under in earlier runs. parent is
// the Name of that storage key, nil if none is remembered. From then on only the
// storage key with that Name is used, and a session is salted to no other. changed
// says that the private part of the key file is not the one that was loaded then;
// other storage keys are then tried as well, because the key may have been wrapped
// again. A key without a pin keeps the first storage key under which it loads. Pin
// must be called before the key is used.
func (k *Key) Pin(parent []byte, changed bool) { k.pin, k.pinChanged = parent, changed }

// Parent returns the storage key under which the key has loaded. Its Name is nil
// before the first time.
func (k *Key) Parent() Parent {
	if p := k.parent.Load(); p != nil {
		return Parent{bytes.Clone(p.Name), p.At}
	}
	return Parent{}
}

// ParentName returns the Name of the storage key under which the key has loaded, nil
// before the first time.
func (k *Key) ParentName() []byte { return k.Parent().Name }

// Load loads the key into the TPM and flushes it again, to check that it belongs to
// this TPM. It needs no PIN. The errors are those of [Key.Sign].
func (k *Key) Load(ctx context.Context) error {
	return k.tpm.withTurn(ctx, func(l *link) error {
		return k.withLoaded(l, func(tpm2.NamedHandle) error { return nil })
	})
}

// at returns the place of a storage key, as in [Parent].
func (sk storageKey) at() string {
	if sk.persistent != 0 {
		return fmt.Sprintf("%#x", uint32(sk.persistent))
	}
	suffix := map[template]string{rsaH: "-rsa", eccL: "-zeros"}
	return hierarchies[sk.hierarchy] + suffix[sk.template]
}

func (p *parent) identity() Parent { return Parent{bytes.Clone(p.name.Buffer), p.key.at()} }

// place returns the key's storage key. If it was found at [srkHandle] and is known to
// be the owner's primary, its place is the owner's: that stays true when the handle
// is evicted.
func (k *Key) place(p *parent) Parent {
	at := p.identity()
	if p.key.persistent == 0 || k.file.Parent == uint32(p.key.persistent) {
		return at
	}
	for primary, known := range k.tpm.parents {
		if bytes.Equal(known.name.Buffer, at.Name) {
			at.At = primary.at()
		}
	}
	return at
}

// named decodes the public area of a response and computes its Name, which must be
// the one in the response. A copied Name would pin nothing: an interposer that
// replaces the public area can leave the Name as it was.
func named(area tpm2.TPM2BPublic, claimed tpm2.TPM2BName) (*tpm2.TPMTPublic, error) {
	public, err := area.Contents()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(public)
	if err == nil && !bytes.Equal(name.Buffer, claimed.Buffer) {
		err = errors.New("the Name in the response is not that of its public area")
	}
	return public, err
}

// pinned returns the Name that the key's storage key must have, nil for any.
func (k *Key) pinned() []byte {
	if p := k.parent.Load(); p != nil {
		return p.Name
	}
	if k.pinChanged {
		return nil
	}
	return k.pin
}

// mustBe checks that the storage key has the Name want. A nil want accepts any.
func (p *parent) mustBe(want []byte) error {
	if want == nil || bytes.Equal(want, p.name.Buffer) {
		return nil
	}
	return &ParentChangedError{Want: bytes.Clone(want), Have: p.identity()}
}

// wrongParentError is the TPM's refusal to load a key under a storage key.
type wrongParentError struct {
	doing  string // such as "loading the key under …"
	why    string // a guess at the cause
	parent Parent
	err    error // of TPM2_Load or TPM2_Import
}

func (e *wrongParentError) Error() string { return fmt.Sprintf("%s: %s: %v", e.doing, e.why, e.err) }

func (e *wrongParentError) Unwrap() []error { return []error{ErrWrongTPM, e.err} }

// plain returns the error without the guess.
func (e *wrongParentError) plain() error { return fmt.Errorf("%s: %w", e.doing, e.err) }

// refusal returns why a key does not load, from the storage keys that refused it and
// the errors that matter. If the storage key that is remembered is among them, the
// file is damaged (perhaps only in its public part). If not, the key belongs to a
// different TPM.
func (k *Key) refusal(tried []*wrongParentError, errs []error) error {
	err := errors.Join(errs...)
	want, loaded := k.pin, k.parent.Load()
	if loaded != nil {
		want = loaded.Name
	}
	if want == nil || !errors.Is(err, ErrWrongTPM) {
		return err
	}
	for _, t := range tried {
		switch same := bytes.Equal(t.parent.Name, want); {
		case same && loaded != nil: // it has loaded from the same octets
			return fmt.Errorf("the TPM refuses what it loaded before: %w", t.plain())
		case same:
			return fmt.Errorf("%w: %w", ErrDamaged, t.plain())
		}
	}
	if refused, ok := errors.AsType[*wrongParentError](err); ok {
		return fmt.Errorf("%w: %w", &ParentChangedError{Want: bytes.Clone(want), Have: refused.parent}, refused.plain())
	}
	return err
}
