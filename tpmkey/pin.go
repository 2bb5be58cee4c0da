package tpmkey

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// Parent tells one storage key from all others.
type Parent struct {
	// Name is nameAlg and digest of its public area (TPM 2.0 Part 1, 16). It
	// was computed here, not taken from the TPM's answer.
	Name []byte
	// At is where it was found: "0x81000001" for a persistent handle, a
	// hierarchy ("owner") for the primary that the draft's P-256 template
	// gives there, "owner-rsa" and "owner-zeros" for other templates. A
	// hierarchy's seed fixes what is at such a place; another Name there is
	// another TPM, or one that was cleared.
	At string
}

// Pin is what the caller remembers of a key from earlier runs.
type Pin struct {
	// Parent is the Name of the storage key that the key was loaded under;
	// nil when nothing is remembered.
	Parent []byte
	// Changed says that the key file's private part is not the one that was
	// loaded then: it was wrapped anew, or is damaged.
	Changed bool
}

// ParentChangedError means that the TPM does not have the storage key that a
// key was loaded under before: it is another TPM, or was cleared, or a persistent
// key was replaced; or something between the TPM and us puts a key of its own in place of the TPM's. No
// session was started with the other one. It wraps [ErrWrongTPM].
type ParentChangedError struct {
	Want []byte // the Name that is remembered
	Have Parent // what the TPM has in that place
}

// Error implements error.
func (e *ParentChangedError) Error() string {
	if strings.HasPrefix(e.Have.At, "0x") {
		return fmt.Sprintf("another storage key is at %s than before: it was replaced, or this TPM was cleared, or is another one", e.Have.At)
	}
	return "made in another TPM, or this TPM was cleared: its storage key has changed"
}

// Unwrap returns [ErrWrongTPM].
func (e *ParentChangedError) Unwrap() error { return ErrWrongTPM }

// Pin tells the key what is remembered of it. From then on only the storage key
// of that Name is used: a session is salted to no other. Where the key file has
// changed since, others are tried as well, because it may have been wrapped for
// another one. Without a pin the first storage key under which the key loads is
// kept to. Pin must be called before the key is used.
func (k *Key) Pin(p Pin) { k.pin = p }

// Parent returns the storage key under which the key has loaded; its Name is
// nil before the first time.
func (k *Key) Parent() Parent {
	if p := k.parent.Load(); p != nil {
		return Parent{bytes.Clone(p.Name), p.At}
	}
	return Parent{}
}

// ParentName returns the Name of the storage key under which the key has
// loaded, nil before the first time.
func (k *Key) ParentName() []byte { return k.Parent().Name }

// Load puts the key into the TPM and takes it out again, to see whether it is
// of this TPM. No PIN is needed. The errors are those of [Key.Sign].
func (k *Key) Load(ctx context.Context) error {
	return k.tpm.withTurn(ctx, func(l *link) error {
		return k.withLoaded(l, func(tpm2.NamedHandle) error { return nil })
	})
}

// at is the place of a storage key, in the words of [Parent].
func (sk storageKey) at() string {
	if sk.persistent != 0 {
		return fmt.Sprintf("%#x", uint32(sk.persistent))
	}
	suffix := map[template]string{rsaH: "-rsa", eccL: "-zeros"}
	return hierarchyName(sk.hierarchy) + suffix[sk.template]
}

func (p *parent) identity(sk storageKey) Parent { return Parent{bytes.Clone(p.name.Buffer), sk.at()} }

// place is where the key's storage key is. One that is found at the handle where
// the owner's primary is kept, and known to be that, is at the owner's place: it
// stays there when the handle is given up.
func (k *Key) place(p *parent, sk storageKey) Parent {
	at := p.identity(sk)
	if sk.persistent == 0 || k.file.Parent == uint32(sk.persistent) {
		return at
	}
	for primary, known := range k.tpm.parents {
		if bytes.Equal(known.name.Buffer, at.Name) {
			at.At = primary.at()
		}
	}
	return at
}

// named takes the public area out of an answer and computes its Name, which
// must be the one in the answer. A Name that is only copied would pin nothing:
// whoever exchanges the public area on its way could leave the Name as it was.
func (l *link) named(command string, area tpm2.TPM2BPublic, claimed tpm2.TPM2BName) (*tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	public, err := area.Contents()
	if err != nil {
		return nil, claimed, fmt.Errorf("%s: the public area: %w", command, err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, claimed, fmt.Errorf("%s: the Name of the public area: %w", command, err)
	}
	if !bytes.Equal(name.Buffer, claimed.Buffer) {
		return nil, claimed, fmt.Errorf("%s: the answer has another Name than its public area", command)
	}
	return public, *name, nil
}

// pinned is the Name that the key's storage key must have, nil if it may be any.
func (k *Key) pinned() []byte {
	if p := k.parent.Load(); p != nil {
		return p.Name
	}
	if k.pin.Changed {
		return nil
	}
	return k.pin.Parent
}

// mustBe holds a storage key against the Name that it must have.
func (p *parent) mustBe(sk storageKey, want []byte) error {
	if want == nil || bytes.Equal(want, p.name.Buffer) {
		return nil
	}
	return &ParentChangedError{Want: bytes.Clone(want), Have: p.identity(sk)}
}

// wrongParentError is the TPM's answer that a key is not under this storage key.
type wrongParentError struct {
	doing  string // "loading" or "importing"
	under  string
	parent Parent
	err    error // of TPM2_Load or TPM2_Import
}

func (e *wrongParentError) Error() string {
	why := ErrWrongTPM.Error()
	if e.doing == "importing" {
		why = "the key was wrapped for another storage key, or for another TPM, or this TPM was cleared since, or the key file is damaged"
	}
	return fmt.Sprintf("%s the key under %s: %s: %v", e.doing, e.under, why, e.err)
}

func (e *wrongParentError) Unwrap() []error { return []error{ErrWrongTPM, e.err} }

// plain is the error without a guess at its cause.
func (e *wrongParentError) plain() error {
	return fmt.Errorf("%s the key under %s: %w", e.doing, e.under, e.err)
}

// refusal is why a key does not load, given the storage keys that refused it and
// the errors that matter. Whether the one that is remembered is among them makes
// the difference between a file that is damaged, if only in its public part, and a
// key of another TPM.
func (k *Key) refusal(tried []*wrongParentError, errs []error) error {
	err := errors.Join(errs...)
	want, loaded := k.pin.Parent, k.parent.Load()
	if loaded != nil {
		want = loaded.Name
	}
	if want == nil || !errors.Is(err, ErrWrongTPM) {
		return err
	}
	for _, t := range tried {
		switch same := bytes.Equal(t.parent.Name, want); {
		case same && loaded != nil: // from the same octets
			return fmt.Errorf("the TPM refuses what it loaded before: %w", t.plain())
		case same:
			return fmt.Errorf("%w: %w", ErrDamaged, t.plain())
		}
	}
	var refused *wrongParentError
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", &ParentChangedError{Want: bytes.Clone(want), Have: refused.parent}, refused.plain())
	}
	return err
}
