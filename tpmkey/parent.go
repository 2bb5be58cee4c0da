package tpmkey

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// srkHandle is where the TCG's provisioning guidance, systemd and Windows put the
// storage root key.
const srkHandle tpm2.TPMHandle = 0x81000001

// storageKey is one way to get a parent: a persistent object, or a primary key that
// is created in a hierarchy from a template.
type storageKey struct {
	handle   tpm2.TPMHandle // of the object, or of the hierarchy; key files name it so
	template template
}

// template is a storage key template. Templates that differ only in their unique
// field give different keys.
type template int

const (
	// persistent is that of an object that is in the TPM already: none.
	persistent template = iota
	// eccH is H-2 of the key file draft: P-256, unique of size zero.
	eccH
	// rsaH is H-1: RSA 2048, unique of size zero.
	rsaH
	// eccL is go-tpm's ECCSRKTemplate: P-256, unique of 32 and 32 zeros. Some
	// tools create keys under it, and write files that name H-2.
	eccL
)

func (sk storageKey) String() string {
	if sk.template == persistent {
		return fmt.Sprintf("the persistent storage key %#x", uint32(sk.handle))
	}
	names := map[template]string{eccH: "P-256", rsaH: "RSA 2048", eccL: "P-256 with a zero-filled template"}
	return fmt.Sprintf("the %s primary storage key of the %s hierarchy", names[sk.template], hierarchies[sk.handle])
}

// hierarchies names the hierarchies, as users write them.
var hierarchies = map[tpm2.TPMHandle]string{
	tpm2.TPMRHOwner: "owner", tpm2.TPMRHEndorsement: "endorsement", tpm2.TPMRHPlatform: "platform", tpm2.TPMRHNull: "null",
}

// storageKeyAt returns the storage key of a handle in a [Template] or [WrapOptions].
// 0 is the owner's primary.
func storageKeyAt(parent uint32) (storageKey, error) {
	switch {
	case parent == 0:
		return storageKey{tpm2.TPMRHOwner, eccH}, nil
	case parent>>24 == 0x81:
		return storageKey{tpm2.TPMHandle(parent), persistent}, nil
	case parent == keyfile.ParentOwner, parent == keyfile.ParentEndorsement, parent == keyfile.ParentPlatform:
		return storageKey{tpm2.TPMHandle(parent), eccH}, nil
	case parent == uint32(tpm2.TPMRHNull):
		return storageKey{}, &UnsupportedError{What: "parent in the null hierarchy", Why: "the key would be lost at the next reset of the TPM"}
	default:
		return storageKey{}, &UnsupportedError{
			What:      fmt.Sprintf("parent %#x", parent),
			Why:       "it is neither a hierarchy nor a persistent handle",
			Supported: []string{"owner (0x40000001)", "endorsement (0x4000000b)", "platform (0x4000000c)", "0x81000000 to 0x81ffffff"},
		}
	}
}

// underParent calls fn, in one turn, with the storage key for a new key. parent is as in
// a [Template]. If that is the owner's primary and the owner hierarchy has a password,
// underParent calls fn again with the storage key at [srkHandle], provided that there
// is one.
func (t *TPM) underParent(ctx context.Context, parent uint32, fn func(*link, storageKey) error) error {
	sk, err := storageKeyAt(parent)
	if err != nil {
		return err
	}
	return t.withTurn(ctx, func(l *link) error {
		err := fn(l, sk)
		if sk.handle != tpm2.TPMRHOwner || !errors.Is(err, ErrOwnerAuth) {
			return err
		}
		p, srkErr := t.readSRK(l)
		if srkErr != nil || p == nil {
			return errors.Join(err, srkErr)
		}
		return fn(l, storageKey{srkHandle, persistent})
	})
}

// parent is a storage key in the TPM. Its handle is valid inside withParent only. Its
// auth value is empty, even if its hierarchy has a password.
type parent struct {
	key    storageKey
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public *tpm2.TPMTPublic
	saved  savedContext // of a primary
}

// withParent calls fn with the storage key in the TPM. A primary is created once.
// After that its saved context is loaded, which takes a chip some milliseconds
// instead of up to a second. In between it takes no slot in the TPM.
func (t *TPM) withParent(l *link, sk storageKey, fn func(*parent) error) error {
	if sk.template == persistent {
		p, err := persistentParent(l, sk.handle)
		if err != nil {
			return err
		}
		return fn(p)
	}
	p, err := t.loadPrimary(l, sk)
	if err != nil {
		return err
	}
	err = fn(p)
	return errors.Join(err, l.release(p.handle, p.name))
}

// loadPrimary puts a primary into the TPM: from its saved context, or else by
// creating it.
func (t *TPM) loadPrimary(l *link, sk storageKey) (*parent, error) {
	if p := t.parents[sk]; p != nil {
		h, err := l.loadContext(p.saved, p.name)
		if err == nil {
			p.handle = h
			return p, nil
		}
		if !contextGone(err) {
			return nil, err
		}
		// The TPM was reset, and the context is lost.
		delete(t.parents, sk)
	}
	var rsp *tpm2.CreatePrimaryResponse
	err := l.making(firstTransient, func() (err error) {
		rsp, err = execute(l, "TPM2_CreatePrimary", tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: sk.handle, Name: tpm2.HandleName(sk.handle), Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(sk.template.public()),
		})
		return err
	})
	if err != nil {
		if isRC(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail, tpm2.TPMRCLockout) {
			err = fmt.Errorf("%w: %w", ErrOwnerAuth, err)
		}
		return nil, fmt.Errorf("creating %v: %w", sk, err)
	}
	public, err := named(rsp.OutPublic, rsp.Name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("creating %v: TPM2_CreatePrimary: %w", sk, err), l.flush(rsp.ObjectHandle))
	}
	l.held = append(l.held, string(rsp.Name.Buffer))
	p := &parent{key: sk, handle: rsp.ObjectHandle, name: rsp.Name, public: public}
	if p.saved, err = l.saveContext(p.handle); err != nil {
		return nil, errors.Join(err, l.release(p.handle, p.name))
	}
	t.parents[sk] = p
	return p, nil
}

// persistentParent reads the public area of a persistent storage key. An object that
// is not a restricted decryption key cannot be a parent and is refused.
func persistentParent(l *link, h tpm2.TPMHandle) (*parent, error) {
	rsp, err := execute(l, "TPM2_ReadPublic", tpm2.ReadPublic{ObjectHandle: h})
	if err != nil {
		if isRC(err, tpm2.TPMRCHandle) {
			return nil, fmt.Errorf("%w: nothing is at %#x: %w", ErrNoParent, uint32(h), err)
		}
		return nil, fmt.Errorf("reading the storage key %#x: %w", uint32(h), err)
	}
	public, err := named(rsp.OutPublic, rsp.Name)
	if err != nil {
		return nil, fmt.Errorf("reading the storage key %#x: TPM2_ReadPublic: %w", uint32(h), err)
	}
	if a := public.ObjectAttributes; !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return nil, &UnsupportedError{What: fmt.Sprintf("parent %#x", uint32(h)), Why: "the object there is not a storage key"}
	}
	return &parent{key: storageKey{h, persistent}, handle: h, name: rsp.Name, public: public}, nil
}

// srk is the object at [srkHandle]. It is read once per connection.
type srk struct {
	known  bool    // it was read
	parent *parent // nil if there is no storage key
}

// readSRK returns the storage key at [srkHandle], nil if there is none.
func (t *TPM) readSRK(l *link) (*parent, error) {
	if t.srk.known {
		return t.srk.parent, nil
	}
	p, err := persistentParent(l, srkHandle)
	_, unsupported := errors.AsType[*UnsupportedError](err)
	if err != nil && !errors.Is(err, ErrNoParent) && !unsupported {
		return nil, err
	}
	t.srk = srk{known: true, parent: p}
	return p, nil
}

// candidate is a storage key that a key may have been created under. If it is a
// guess, any refusal by the TPM leads to the next candidate.
type candidate struct {
	storageKey
	guess bool
}

// candidates returns the storage keys to try for a key file, in order. The owner's
// primary is first tried at its usual persistent handle: this needs no primary to be
// created, and no owner password. The mistakes of other tools come last. An RSA
// primary is never created on a guess, because that may take a chip a minute.
func (t *TPM) candidates(l *link, k *keyfile.TPMKey) ([]candidate, error) {
	if k.Parent>>24 == 0x81 {
		return []candidate{{storageKey: storageKey{tpm2.TPMHandle(k.Parent), persistent}}}, nil
	}
	// 0 (from old versions of tpm2tss-genkey) and transient handles (which mean
	// nothing outside the process that wrote them) mean the owner hierarchy.
	named := storageKey{tpm2.TPMRHOwner, eccH}
	if k.Parent>>24 == 0x40 {
		named.handle = tpm2.TPMHandle(k.Parent)
	}
	if k.RSAParent {
		named.template = rsaH
	}
	if named.handle != tpm2.TPMRHOwner {
		return []candidate{{storageKey: named}}, nil
	}
	p, err := t.readSRK(l)
	if err != nil {
		return nil, err
	}
	list := []candidate{{storageKey: named}}
	if !k.RSAParent {
		list = append(list, candidate{storageKey{tpm2.TPMRHOwner, eccL}, true})
	}
	at := candidate{storageKey{srkHandle, persistent}, true}
	switch {
	case p == nil:
	case (p.public.Type == tpm2.TPMAlgRSA) == k.RSAParent:
		list = slices.Insert(list, 0, at)
	case !k.RSAParent:
		list = append(list, at)
	}
	return list, nil
}

// public returns the template's public area. go-tpm's templates differ from the
// draft's in their unique field only.
func (tp template) public() tpm2.TPMTPublic {
	p := tpm2.ECCSRKTemplate
	switch tp {
	case eccH:
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	case rsaH:
		p = tpm2.RSASRKTemplate
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	return p
}

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

// at returns the place of a storage key, as in [Parent].
func (sk storageKey) at() string {
	if sk.template == persistent {
		return fmt.Sprintf("%#x", uint32(sk.handle))
	}
	suffix := map[template]string{rsaH: "-rsa", eccL: "-zeros"}
	return hierarchies[sk.handle] + suffix[sk.template]
}

func (p *parent) identity() Parent { return Parent{bytes.Clone(p.name.Buffer), p.key.at()} }

// place returns the key's storage key. If it was found at [srkHandle] and is known to
// be the owner's primary, its place is the owner's: that stays true when the handle
// is evicted.
func (k *Key) place(p *parent) Parent {
	at := p.identity()
	if p.key.template != persistent || k.file.Parent == uint32(p.key.handle) {
		return at
	}
	if primary := k.tpm.parents.named(at.Name); primary != nil {
		at.At = primary.at()
	}
	return at
}

// primaries are the primary storage keys that were created, with their contexts.
type primaries map[storageKey]*parent

// named returns the primary with this Name, nil if there is none.
func (ps primaries) named(name []byte) *storageKey {
	for primary, known := range ps {
		if bytes.Equal(known.name.Buffer, name) {
			return &primary
		}
	}
	return nil
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
