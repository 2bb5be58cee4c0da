package tpmkey

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// WrapOptions describes the result of wrapping a private key. The fields are those of
// [Template]; nothing is encrypted to a storage key that does not have ParentName.
type WrapOptions struct {
	Auth       []byte
	Parent     uint32
	ParentName []byte
}

// Wrap encrypts a private key, an *ecdsa.PrivateKey or *rsa.PrivateKey, to a storage
// key. It returns an importable key file, which only the TPM that has the storage key
// can import (see [TPM.Import]). Wrap uses no TPM: one that does not have the key's
// algorithm will refuse the file.
//
// Keys that no TPM takes, or that are no SSH keys, give an [UnsupportedError]. Keys
// whose numbers contradict each other are refused. The caller remains responsible for
// wiping private.
func Wrap(to *StorageKey, private crypto.PrivateKey, o WrapOptions) (*keyfile.TPMKey, error) {
	named, err := storageKeyAt(o.Parent)
	if err != nil {
		return nil, err
	}
	key, err := newExternal(private)
	if err != nil {
		return nil, err
	}
	defer clear(key.secret)
	return key.wrap(to, named, o)
}

// wrap makes the outer duplication wrapper of TPM 2.0 Part 1, 23.3.2.3. It is
// encrypted to the storage key and authenticated, so it is safe on the bus without a
// session. There is no inner wrapper.
func (e *external) wrap(to *StorageKey, named storageKey, o WrapOptions) (*keyfile.TPMKey, error) {
	if err := namable(to, named); err != nil {
		return nil, err
	}
	if o.ParentName != nil && !bytes.Equal(o.ParentName, to.Name()) {
		return nil, &ParentChangedError{Want: bytes.Clone(o.ParentName), Have: Parent{to.Name(), named.at()}}
	}
	// Zeros at the end of an auth value do not count. A TPM drops them when it
	// creates a key, but not when it imports one.
	full := authValue(o.Auth, crypto.SHA256)
	defer clear(full)
	value := bytes.TrimRight(full, "\x00")
	public := e.object(len(value) == 0)
	pubkey := tpm2.Marshal(tpm2.New2B(public))
	parsed, err := keyfile.ParsePublic(pubkey)
	if err != nil {
		return nil, fmt.Errorf("wrapping the key: %w", err)
	}
	sensitive := e.sensitive(public.Type, value)
	defer clear(sensitive)
	duplicate, secret, err := tpm2.CreateDuplicate(rand.Reader, to.kem, parsed.Name(), sensitive)
	if err != nil {
		return nil, fmt.Errorf("wrapping the key: %w", err)
	}
	return &keyfile.TPMKey{
		Type:      keyfile.Importable,
		EmptyAuth: len(value) == 0,
		Secret:    tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: secret}),
		RSAParent: named.template != persistent && to.RSA(),
		Parent:    uint32(named.handle),
		Pubkey:    pubkey,
		Privkey:   tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: duplicate}),
		Public:    parsed,
	}, nil
}

// namable refuses a storage key that a key file cannot name: a hierarchy means the
// key that H-2 or H-1 gives there, and no other.
func namable(to *StorageKey, named storageKey) error {
	if named.template == persistent || to.fits(eccH) || to.fits(rsaH) {
		return nil
	}
	return &UnsupportedError{
		What:      "this storage key as the " + hierarchies[named.handle] + " hierarchy's",
		Why:       "a key file can name only those of the TCG's templates (P-256 and RSA 2048) by their hierarchy",
		Supported: []string{"the storage key's persistent handle as parent"},
	}
}

// object returns the public area of the key in the TPM: that of a new key, without
// the attributes that say that the key has never been outside the TPM.
func (e *external) object(noDA bool) tpm2.TPMTPublic {
	p := e.algorithm.public(noDA)
	p.ObjectAttributes.FixedTPM = false
	p.ObjectAttributes.FixedParent = false
	p.ObjectAttributes.SensitiveDataOrigin = false
	p.Unique = e.unique
	return p
}

// sensitive returns the TPMT_SENSITIVE (TPM 2.0 Part 2, 12.3.2.4) in one buffer,
// which the caller must wipe. Its seed is empty: only storage keys need one.
func (e *external) sensitive(kind tpm2.TPMIAlgPublic, value []byte) []byte {
	b := make([]byte, 0, 8+len(value)+len(e.secret))
	b = binary.BigEndian.AppendUint16(b, uint16(kind))
	return appendSized(appendSized(appendSized(b, value), nil), e.secret)
}
