package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// Key is the key of a key file, for use in one TPM. It is safe for use by several
// goroutines.
type Key struct {
	tpm      *TPM
	file     *keyfile.TPMKey
	name     tpm2.TPM2BName
	nameHash crypto.Hash
	// pin is the Name of the storage key that the caller remembers, nil for none.
	// pinChanged: the key file has changed since. See [Key.Pin].
	pin        []byte
	pinChanged bool
	// policy authorizes the use of the key; nil if its auth value does.
	policy *policy

	// parent is the storage key under which the key has loaded. Only the holder
	// of the TPM's turn sets it.
	parent atomic.Pointer[Parent]
	// Only the holder of the TPM's turn may touch the fields below.
	source   *storageKey // under which the key has loaded
	imported []byte      // TPM2B_PRIVATE without its size, once loaded
	saved    savedContext
}

// Key returns the key of a key file. It does not use the TPM. A key that can never
// sign for SSH gives an [UnsupportedError] that says why.
func (t *TPM) Key(file *keyfile.TPMKey) (*Key, error) {
	if err := usable(file.Public); err != nil {
		return nil, err
	}
	k := &Key{tpm: t, file: file, name: tpm2.TPM2BName{Buffer: file.Public.Name()}, nameHash: nameHash(file.Public.NameAlg)}
	if !file.Public.Attributes.UserWithAuth() {
		var err error
		if k.policy, err = newPolicy(file); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// File returns the key file that the key was made from.
func (k *Key) File() *keyfile.TPMKey { return k.file }

// Public returns the public key: an *ecdsa.PublicKey or an *rsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.file.Public.Key }

// AuthRequired reports whether to ask for the auth value before the first [Key.Sign].
// It is a hint from the key file; the TPM decides. It is false for a key that does
// not take part in the lockout, because trying the empty auth value costs nothing,
// and for a key whose policy does not ask for the auth value.
func (k *Key) AuthRequired() bool { return k.file.UsesAuth() && !k.file.Public.Attributes.NoDA() }

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

// withLoaded calls fn with the key in the TPM, and flushes it afterwards. The key is
// loaded from its saved context, which needs no parent, or else from its file. A saved
// context is lost when the TPM is reset.
func (k *Key) withLoaded(l *link, fn func(tpm2.NamedHandle) error) error {
	var h tpm2.TPMHandle
	var err error
	if k.saved != nil {
		h, err = l.loadContext(k.saved, k.name)
		switch {
		case contextGone(err):
			k.saved = nil
		case err != nil:
			return err
		}
	}
	if k.saved == nil {
		if h, err = k.loadFromFile(l); err != nil {
			return err
		}
		// If the TPM refuses to save the context, the key can sign anyway. It is
		// loaded under its parent each time.
		if k.saved, err = l.saveContext(h); err != nil && l.broken != nil {
			return err
		}
	}
	err = fn(tpm2.NamedHandle{Handle: h, Name: k.name})
	return errors.Join(err, l.release(h, k.name))
}

// loadFromFile loads the key under the storage key that worked before, or under the
// primary that is remembered if there is one already, or else under the first of the
// candidates that the TPM takes.
func (k *Key) loadFromFile(l *link) (tpm2.TPMHandle, error) {
	if k.source == nil && k.file.Parent>>24 != 0x81 {
		k.source = k.tpm.parents.named(k.pin)
	}
	if k.source != nil {
		h, err := k.loadUnder(l, *k.source)
		if err == nil || !wrongParent(err) {
			return h, err
		}
		k.source = nil
	}
	list, err := k.tpm.candidates(l, k.file)
	if err != nil {
		return 0, err
	}
	var tried []*wrongParentError
	var errs []error
	for _, c := range list {
		if err := l.alive(); err != nil {
			return 0, err
		}
		h, err := k.loadUnder(l, c.storageKey)
		if err == nil {
			k.source = &c.storageKey
			return h, nil
		}
		if !wrongParent(err) && (!c.guess || l.broken != nil) {
			return 0, err
		}
		if refused, ok := errors.AsType[*wrongParentError](err); ok {
			tried = append(tried, refused)
		}
		if !c.guess {
			errs = append(errs, err)
		}
	}
	return 0, k.refusal(tried, errs)
}

// loadUnder puts the storage key sk into the TPM and loads the key under it.
func (k *Key) loadUnder(l *link, sk storageKey) (h tpm2.TPMHandle, err error) {
	err = k.tpm.withParent(l, sk, func(p *parent) (err error) {
		h, err = k.loadWith(l, p)
		return err
	})
	if err != nil && h != 0 {
		// The key is loaded, but its parent could not be flushed.
		return 0, errors.Join(err, l.release(h, k.name))
	}
	return h, err
}

// loadWith runs TPM2_Load under p. A key that was wrapped elsewhere needs TPM2_Import
// first. If p is not the storage key that is remembered, nothing is sent to the TPM.
func (k *Key) loadWith(l *link, p *parent) (tpm2.TPMHandle, error) {
	if err := l.alive(); err != nil {
		return 0, err
	}
	want := k.pin
	switch known := k.parent.Load(); {
	case known != nil:
		want = known.Name
	case k.pinChanged:
		want = nil // any
	}
	if err := p.mustBe(want); err != nil {
		return 0, fmt.Errorf("loading the key under %v: %w", p.key, err)
	}
	private := k.file.Privkey[2:]
	if k.file.Type == keyfile.Importable {
		var err error
		if private, err = k.tpm2Import(l, p); err != nil {
			return 0, err
		}
		if err := l.alive(); err != nil {
			return 0, err
		}
	}
	l.held = append(l.held, string(k.name.Buffer))
	rsp, err := execute(l, "TPM2_Load", tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](k.file.Pubkey[2:]),
	})
	if err != nil {
		l.unhold(k.name, err)
		if isRC(err, tpm2.TPMRCIntegrity) {
			return 0, &wrongParentError{fmt.Sprintf("loading the key under %v", p.key), ErrWrongTPM.Error(), p.identity(), err}
		}
		return 0, fmt.Errorf("loading the key under %v: %w", p.key, err)
	}
	if !bytes.Equal(rsp.Name.Buffer, k.name.Buffer) {
		return 0, errors.Join(errors.New("TPM2_Load: the TPM loaded another key than the file's"), l.release(rsp.ObjectHandle, k.name))
	}
	at := k.place(p)
	k.parent.Store(&at)
	k.imported = private
	return rsp.ObjectHandle, nil
}

// wrongParent reports whether the key may load under another storage key.
func wrongParent(err error) bool {
	return errors.Is(err, ErrWrongTPM) || errors.Is(err, ErrNoParent)
}

// contextGone reports whether err is a permanent refusal of TPM2_ContextLoad: the TPM
// was reset since the context was saved, or it is a different TPM.
func contextGone(err error) bool {
	refused, ok := errors.AsType[*commandError](err)
	return ok && !passing(refused.rc)
}

// tpm2Import runs TPM2_Import for a key that was wrapped elsewhere. It returns the
// TPM2B_PRIVATE, without its size, for loading under p. That is kept in memory once it
// has loaded.
func (k *Key) tpm2Import(l *link, p *parent) ([]byte, error) {
	if k.imported != nil {
		return k.imported, nil
	}
	rsp, err := execute(l, "TPM2_Import", tpm2.Import{
		ParentHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: tpm2.PasswordAuth(nil)},
		ObjectPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](k.file.Pubkey[2:]),
		Duplicate:    tpm2.TPM2BPrivate{Buffer: k.file.Privkey[2:]},
		InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: k.file.Secret[2:]},
		Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	})
	if err == nil {
		return rsp.OutPrivate.Buffer, nil
	}
	importing := fmt.Sprintf("importing the key under %v", p.key)
	if wrapsOther(p, err) {
		const why = "the key was wrapped for another storage key, or for another TPM, or this TPM was cleared since, or the key file is damaged"
		return nil, &wrongParentError{importing, why, p.identity(), err}
	}
	return nil, fmt.Errorf("%s: %w", importing, err)
}

// wrapsOther reports whether err says that the key was wrapped for a different
// storage key than p. Either the integrity value is wrong, or the seed cannot be
// decrypted at all, for example one for an RSA key by an ECC key. libtpms reports a
// failure of OAEP as TPM_RC_FAILURE.
func wrapsOther(p *parent, err error) bool {
	if isRC(err, tpm2.TPMRCIntegrity) || p.public.Type == tpm2.TPMAlgRSA && isRC(err, tpm2.TPMRCFailure) {
		return true
	}
	f1, ok := errors.AsType[tpm2.TPMFmt1Error](err)
	if !ok {
		return false
	}
	ofParameter, n := f1.Parameter()
	return ofParameter && n == 4 // inSymSeed
}

// usable returns why a key can never sign for SSH, nil if it can.
func usable(p *keyfile.Public) error {
	var scheme tpm2.TPMAlgID
	var hashes []uint16
	refuse := func(why string, args ...any) error {
		return &UnsupportedError{What: "key file", Why: fmt.Sprintf(why, args...)}
	}
	if p.Attributes.Restricted() {
		return refuse("a restricted key signs nothing that comes from outside the TPM")
	}
	switch pub := p.Key.(type) {
	case *ecdsa.PublicKey:
		hash, ok := curveHashes[pub.Curve]
		switch {
		case !p.Attributes.Sign():
			return refuse("it has no sign attribute")
		case !ok:
			return refuse("SSH does not know its curve %s", pub.Curve.Params().Name)
		}
		scheme, hashes = tpm2.TPMAlgECDSA, []uint16{uint16(hashAlgs[hash])}
	case *rsa.PublicKey:
		if !p.Attributes.Sign() && !p.Attributes.Decrypt() {
			return refuse("it has neither the sign nor the decrypt attribute")
		}
		scheme, hashes = tpm2.TPMAlgRSASSA, []uint16{uint16(tpm2.TPMAlgSHA256), uint16(tpm2.TPMAlgSHA512)}
	default:
		return refuse("its type is neither ECDSA nor RSA")
	}
	switch {
	case p.Scheme == uint16(tpm2.TPMAlgNull):
	case p.Scheme != uint16(scheme):
		return refuse("it prescribes the scheme %#04x, which SSH does not use", p.Scheme)
	case !slices.Contains(hashes, p.SchemeHash):
		return refuse("it prescribes the hash %#04x, which SSH does not use with it", p.SchemeHash)
	}
	return nil
}

// nameHash returns the hash of a nameAlg: SHA-384, SHA-512, or SHA-256 for all
// others, which keys for SSH do not have.
func nameHash(alg uint16) crypto.Hash {
	if h, err := tpm2.TPMIAlgHash(alg).Hash(); err == nil && h != crypto.SHA1 {
		return h
	}
	return crypto.SHA256
}
