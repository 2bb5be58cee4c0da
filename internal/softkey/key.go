package softkey

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
)

// A Key is a private key that is held in memory.
type Key struct {
	public crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	secret *Secret          // the private key in PKCS #8
}

// newKey copies private to locked memory. public is its public key, but must
// not point into private, which it would keep from being collected.
func newKey(private crypto.Signer, public crypto.PublicKey) (*Key, error) {
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	s, err := NewSecret(der)
	if err != nil {
		return nil, err
	}
	k := &Key{public, s}
	// The garbage collector does not know the mapping: a key that was dropped
	// without Wipe would stay in memory for as long as the agent runs.
	runtime.AddCleanup(k, (*Secret).Wipe, s)
	return k, nil
}

// Wipe overwrites the private key. A signature that is being made ends first;
// later ones fail with [ErrWiped].
func (k *Key) Wipe() { k.secret.Wipe() }

// AuthRequired returns false: the program that added the key has already asked
// for its passphrase.
func (k *Key) AuthRequired() bool { return false }

// Sign signs digest. An Ed25519 key takes the message itself, with the hash 0.
//
// The private key is parsed for each signature, so that between signatures no
// copy of it is in use but the one that Wipe overwrites.
func (k *Key) Sign(ctx context.Context, _, digest []byte, opts crypto.SignerOpts) (sig []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	hash := opts.HashFunc()
	_, whole := k.public.(ed25519.PublicKey)
	if whole != (hash == 0) || !whole && len(digest) != hash.Size() {
		return nil, fmt.Errorf("signing with a key in memory: %d bytes do not fit hash %d", len(digest), hash)
	}
	err = k.secret.Use(func(der []byte) (err error) {
		erasing(func() { sig, err = sign(der, digest, hash) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("signing with a key in memory: %w", err)
	}
	if !k.verify(hash, digest, sig) {
		// From a signature that a fault of the machine spoilt, an RSA or Ed25519
		// private key can be computed.
		return nil, errors.New("signing with a key in memory: the signature came out wrong")
	}
	return sig, nil
}

func sign(der, digest []byte, hash crypto.Hash) ([]byte, error) {
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	return private.(crypto.Signer).Sign(rand.Reader, digest, hash)
}

func (k *Key) verify(hash crypto.Hash, digest, sig []byte) bool {
	switch pub := k.public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, hash, digest, sig) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, digest, sig)
	}
	return false
}
