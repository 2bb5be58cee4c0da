package tpmkey

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// WrapOptions says what becomes of a private key that is wrapped.
type WrapOptions struct {
	// Auth is the PIN as typed; empty for none. It has the same effect as in
	// [Template].
	Auth []byte
	// Parent is the handle by which the key file names the storage key, as
	// in [Template]; 0 is the owner hierarchy.
	Parent uint32
	// ParentName is the Name that the storage key must have, nil for any. If
	// it has another one, there is a [ParentChangedError], and nothing is
	// encrypted to it.
	ParentName []byte
}

// Wrap encrypts a private key, an *ecdsa.PrivateKey or *rsa.PrivateKey, to a
// storage key. What it returns is an importable key file, for [TPM.Import] in
// the TPM that has the storage key and nowhere else. No TPM is asked: one that
// does not have the key's algorithm will refuse it.
//
// Keys that no TPM takes, or that no SSH key file should hold, give an
// [UnsupportedError]; keys whose numbers contradict each other are refused.
// private stays the caller's, to be wiped or kept.
func Wrap(to *StorageKey, private crypto.PrivateKey, o WrapOptions) (*keyfile.TPMKey, error) {
	named, err := storageKeyAt(o.Parent)
	if err != nil {
		return nil, err
	}
	key, err := newExternal(private)
	if err != nil {
		return nil, err
	}
	defer key.wipe()
	return key.wrap(to, named, o)
}

// wrap makes the outer duplication wrapper of TPM 2.0 Part 1, 23.3.2.3. It is
// encrypted to the storage key and authenticated, so that it needs no session
// to be safe on the bus. There is no inner wrapper.
func (e *external) wrap(to *StorageKey, named storageKey, o WrapOptions) (*keyfile.TPMKey, error) {
	if err := namable(to, named); err != nil {
		return nil, err
	}
	if o.ParentName != nil && !bytes.Equal(o.ParentName, to.Name()) {
		return nil, &ParentChangedError{Want: bytes.Clone(o.ParentName), Have: Parent{to.Name(), named.at()}}
	}
	// Zeros at the end of an auth value do not count. A TPM drops them when it
	// makes a key; in what it imports, there are none from the start.
	full := authValue(o.Auth, crypto.SHA256)
	defer clear(full)
	value := bytes.TrimRight(full, "\x00")
	public := e.object(len(value) == 0)
	pubkey := tpm2.Marshal(tpm2.New2B(public))
	parsed, err := keyfile.ParsePublic(pubkey)
	if err != nil {
		return nil, fmt.Errorf("wrapping the key: %w", err)
	}
	sensitive, err := e.sensitive(public.Type, value)
	if err != nil {
		return nil, fmt.Errorf("wrapping the key: %w", err)
	}
	defer clear(sensitive)
	kem, err := tpm2.ImportEncapsulationKey(to.public)
	if err != nil {
		return nil, fmt.Errorf("wrapping the key: %w", err)
	}
	duplicate, secret, err := tpm2.CreateDuplicate(rand.Reader, kem, parsed.Name(), sensitive)
	if err != nil {
		return nil, fmt.Errorf("wrapping the key: %w", err)
	}
	return &keyfile.TPMKey{
		Type:      keyfile.Importable,
		EmptyAuth: len(value) == 0,
		Secret:    tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: secret}),
		RSAParent: named.persistent == 0 && to.RSA(),
		Parent:    named.fileParent(),
		Pubkey:    pubkey,
		Privkey:   tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: duplicate}),
		Public:    parsed,
	}, nil
}

// namable refuses a storage key that a key file cannot name: a hierarchy means
// the key that H-2 or H-1 gives there, and no other.
func namable(to *StorageKey, named storageKey) error {
	if named.persistent != 0 || to.fits(eccH) || to.fits(rsaH) {
		return nil
	}
	return &UnsupportedError{
		What:      "this storage key as the " + hierarchyName(named.hierarchy) + " hierarchy's",
		Why:       "a key file can name only those of the TCG's templates (P-256 and RSA 2048) by their hierarchy",
		Supported: []string{"the storage key's persistent handle as parent"},
	}
}

// object returns the public area of the key as it will be in the TPM: as that
// of a new one, but that it was not always there, and has been elsewhere.
func (e *external) object(noDA bool) tpm2.TPMTPublic {
	p := e.algorithm.public(noDA)
	p.ObjectAttributes.FixedTPM = false
	p.ObjectAttributes.FixedParent = false
	p.ObjectAttributes.SensitiveDataOrigin = false
	p.Unique = e.unique
	return p
}

// sensitive returns the TPMT_SENSITIVE (TPM 2.0 Part 2, 12.3.2.4), in one
// buffer that can be wiped. Its seed is empty: only storage keys need one.
func (e *external) sensitive(kind tpm2.TPMIAlgPublic, value []byte) ([]byte, error) {
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, 8+len(value)+len(e.secret)))
	b.AddUint16(uint16(kind))
	addSized(b, value)
	addSized(b, nil)
	addSized(b, e.secret)
	return b.Bytes()
}
