package tpmkey

import (
	"cmp"
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
	persistent tpm2.TPMHandle
	hierarchy  tpm2.TPMHandle
	template   template
}

// template is a storage key template. Templates that differ only in their unique
// field give different keys.
type template int

const (
	// eccH is H-2 of the key file draft: P-256, unique of size zero.
	eccH template = iota + 1
	// rsaH is H-1: RSA 2048, unique of size zero.
	rsaH
	// eccL is go-tpm's ECCSRKTemplate: P-256, unique of 32 and 32 zeros. Some
	// tools create keys under it, and write files that name H-2.
	eccL
)

func (sk storageKey) String() string {
	if sk.persistent != 0 {
		return fmt.Sprintf("the persistent storage key %#x", uint32(sk.persistent))
	}
	names := map[template]string{eccH: "P-256", rsaH: "RSA 2048", eccL: "P-256 with a zero-filled template"}
	return fmt.Sprintf("the %s primary storage key of the %s hierarchy", names[sk.template], hierarchies[sk.hierarchy])
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
		return storageKey{hierarchy: tpm2.TPMRHOwner, template: eccH}, nil
	case parent>>24 == 0x81:
		return storageKey{persistent: tpm2.TPMHandle(parent)}, nil
	case parent == keyfile.ParentOwner, parent == keyfile.ParentEndorsement, parent == keyfile.ParentPlatform:
		return storageKey{hierarchy: tpm2.TPMHandle(parent), template: eccH}, nil
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

// fileParent returns the handle by which a key file names the storage key.
func (sk storageKey) fileParent() uint32 { return uint32(cmp.Or(sk.persistent, sk.hierarchy)) }

// orSRK calls fn with the storage key for a new key. If that is the owner's primary
// and the owner hierarchy has a password, orSRK calls fn again with the storage key
// at [srkHandle], provided that there is one.
func (t *TPM) orSRK(l *link, sk storageKey, fn func(storageKey) error) error {
	err := fn(sk)
	if sk.hierarchy != tpm2.TPMRHOwner || !errors.Is(err, ErrOwnerAuth) {
		return err
	}
	p, srkErr := t.readSRK(l)
	if srkErr != nil || p == nil {
		return errors.Join(err, srkErr)
	}
	return fn(storageKey{persistent: srkHandle})
}

// parent is a storage key in the TPM. Its handle is valid inside withParent only.
type parent struct {
	key    storageKey
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public *tpm2.TPMTPublic
	saved  savedContext // of a primary
}

// auth authorizes the use of p by a session for the empty auth value. Storage keys
// have that even if their hierarchy has a password.
func (p *parent) auth(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: s}
}

// withParent calls fn with the storage key in the TPM. A primary is created once.
// After that its saved context is loaded, which takes a chip some milliseconds
// instead of up to a second. In between it takes no slot in the TPM.
func (t *TPM) withParent(l *link, sk storageKey, fn func(*parent) error) error {
	if sk.persistent != 0 {
		p, err := persistentParent(l, sk.persistent)
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
	p, err := createPrimary(l, sk)
	if err != nil {
		return nil, err
	}
	if p.saved, err = l.saveContext(p.handle); err != nil {
		return nil, errors.Join(err, l.release(p.handle, p.name))
	}
	t.parents[sk] = p
	return p, nil
}

func createPrimary(l *link, sk storageKey) (*parent, error) {
	var rsp *tpm2.CreatePrimaryResponse
	err := l.making(firstTransient, func() (err error) {
		rsp, err = execute(l, "TPM2_CreatePrimary", tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: sk.hierarchy, Name: tpm2.HandleName(sk.hierarchy), Auth: tpm2.PasswordAuth(nil)},
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
	l.hold(rsp.Name)
	return &parent{key: sk, handle: rsp.ObjectHandle, name: rsp.Name, public: public}, nil
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
	return &parent{key: storageKey{persistent: h}, handle: h, name: rsp.Name, public: public}, nil
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
		return []candidate{{storageKey: storageKey{persistent: tpm2.TPMHandle(k.Parent)}}}, nil
	}
	// 0 (from old versions of tpm2tss-genkey) and transient handles (which mean
	// nothing outside the process that wrote them) mean the owner hierarchy.
	named := storageKey{hierarchy: tpm2.TPMRHOwner, template: eccH}
	if k.Parent>>24 == 0x40 {
		named.hierarchy = tpm2.TPMHandle(k.Parent)
	}
	if k.RSAParent {
		named.template = rsaH
	}
	if named.hierarchy != tpm2.TPMRHOwner {
		return []candidate{{storageKey: named}}, nil
	}
	p, err := t.readSRK(l)
	if err != nil {
		return nil, err
	}
	list := []candidate{{storageKey: named}}
	if !k.RSAParent {
		list = append(list, candidate{storageKey{hierarchy: tpm2.TPMRHOwner, template: eccL}, true})
	}
	at := candidate{storageKey{persistent: srkHandle}, true}
	switch isRSA := p.is(tpm2.TPMAlgRSA); {
	case p == nil:
	case isRSA == k.RSAParent:
		list = slices.Insert(list, 0, at)
	case isRSA:
		list = append(list, at)
	}
	return list, nil
}

// is reports whether p is a storage key of the algorithm. A nil p is not.
func (p *parent) is(alg tpm2.TPMAlgID) bool { return p != nil && p.public.Type == alg }

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
