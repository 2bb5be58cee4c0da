package tpmkey

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
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
		scheme, hashes = tpm2.TPMAlgECDSA, []uint16{uint16(hashAlg(hash))}
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

// curveHashes are the hashes that SSH fixes for the curves (RFC 5656, 6.2.1).
var curveHashes = map[elliptic.Curve]crypto.Hash{
	elliptic.P256(): crypto.SHA256, elliptic.P384(): crypto.SHA384, elliptic.P521(): crypto.SHA512,
}

// hashAlgs are the TPM's numbers of hashes.
var hashAlgs = map[crypto.Hash]tpm2.TPMAlgID{
	crypto.SHA1: tpm2.TPMAlgSHA1, crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512,
}

// hashAlg returns the TPM's number of a hash, TPM_ALG_NULL if it has none.
func hashAlg(h crypto.Hash) tpm2.TPMAlgID { return cmp.Or(hashAlgs[h], tpm2.TPMAlgNull) }

// nameHash returns the hash of a nameAlg: SHA-384, SHA-512, or SHA-256 for all
// others, which keys for SSH do not have.
func nameHash(alg uint16) crypto.Hash {
	if h, err := tpm2.TPMIAlgHash(alg).Hash(); err == nil && h != crypto.SHA1 {
		return h
	}
	return crypto.SHA256
}
