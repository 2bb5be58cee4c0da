package tpmkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"sync/atomic"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// Key is a key of a key file, for use in one TPM. It is safe for use by several
// goroutines.
type Key struct {
	tpm  *TPM
	file *keyfile.TPMKey
	name tpm2.TPM2BName
	pin  Pin
	// policy is what authorizes the use of the key, nil where its auth value
	// does.
	policy *policy

	// parent is the storage key under which the key has loaded. Whoever has
	// the TPM's turn sets it.
	parent atomic.Pointer[Parent]
	// Whoever has the TPM's turn may touch the fields below.
	source   *storageKey // under which the key loaded
	imported []byte      // TPM2B_PRIVATE without its size, once loaded
	saved    savedContext
}

// Key returns the key of a key file, without asking the TPM anything. A key
// that can never sign for SSH gives an [UnsupportedError] that says why.
func (t *TPM) Key(file *keyfile.TPMKey) (*Key, error) {
	if err := usable(file); err != nil {
		return nil, err
	}
	k := &Key{tpm: t, file: file, name: tpm2.TPM2BName{Buffer: file.Public.Name()}}
	if !file.Public.Attributes.Has(keyfile.AttrUserWithAuth) {
		var err error
		if k.policy, err = newPolicy(file); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Public returns the public key: an *ecdsa.PublicKey or an *rsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.file.Public.Key }

// AuthRequired reports whether to ask for the auth value before the first
// [Key.Sign]. It is a hint from the key file; the TPM decides. Where a wrong
// auth value costs nothing, because the key does not take part in the lockout,
// the empty one may be tried first. A key that is used by a policy which does
// not ask for the auth value needs none.
func (k *Key) AuthRequired() bool {
	return k.file.UsesAuth() && !k.file.Public.Attributes.Has(keyfile.AttrNoDA)
}

// usable tells why a key can never sign for SSH, if so.
func usable(file *keyfile.TPMKey) error {
	p := file.Public
	refuse := func(why string, args ...any) error {
		return &UnsupportedError{What: "key file", Why: fmt.Sprintf(why, args...)}
	}
	a := p.Attributes
	switch {
	case a.Has(keyfile.AttrRestricted):
		return refuse("a restricted key signs nothing that comes from outside the TPM")
	}
	switch pub := p.Key.(type) {
	case *ecdsa.PublicKey:
		if !a.Has(keyfile.AttrSign) {
			return refuse("it has no sign attribute")
		}
		want, ok := curveHash(pub.Curve)
		if !ok {
			return refuse("SSH does not know its curve %s", pub.Curve.Params().Name)
		}
		return usableScheme(p, tpm2.TPMAlgECDSA, []crypto.Hash{want}, refuse)
	case *rsa.PublicKey:
		if !a.Has(keyfile.AttrSign) && !a.Has(keyfile.AttrDecrypt) {
			return refuse("it has neither the sign nor the decrypt attribute")
		}
		return usableScheme(p, tpm2.TPMAlgRSASSA, []crypto.Hash{crypto.SHA256, crypto.SHA512}, refuse)
	default:
		return refuse("its type is neither ECDSA nor RSA")
	}
}

// usableScheme checks the scheme that the key itself prescribes, if it does.
func usableScheme(p *keyfile.Public, alg tpm2.TPMAlgID, hashes []crypto.Hash, refuse func(string, ...any) error) error {
	if p.Scheme == uint16(tpm2.TPMAlgNull) {
		return nil
	}
	if p.Scheme != uint16(alg) {
		return refuse("it prescribes the scheme %#04x, which SSH does not use", p.Scheme)
	}
	for _, h := range hashes {
		if p.SchemeHash == uint16(hashAlg(h)) {
			return nil
		}
	}
	return refuse("it prescribes the hash %#04x, which SSH does not use with it", p.SchemeHash)
}

// curveHash is the hash that SSH fixes for a curve (RFC 5656, 6.2.1).
func curveHash(c elliptic.Curve) (crypto.Hash, bool) {
	switch c {
	case elliptic.P256():
		return crypto.SHA256, true
	case elliptic.P384():
		return crypto.SHA384, true
	case elliptic.P521():
		return crypto.SHA512, true
	default:
		return 0, false
	}
}

// hashAlg returns the TPM's number of a hash, TPM_ALG_NULL if it has none.
func hashAlg(h crypto.Hash) tpm2.TPMAlgID {
	switch h {
	case crypto.SHA1:
		return tpm2.TPMAlgSHA1
	case crypto.SHA256:
		return tpm2.TPMAlgSHA256
	case crypto.SHA384:
		return tpm2.TPMAlgSHA384
	case crypto.SHA512:
		return tpm2.TPMAlgSHA512
	default:
		return tpm2.TPMAlgNull
	}
}

// File returns the key file that the key was made from.
func (k *Key) File() *keyfile.TPMKey { return k.file }
