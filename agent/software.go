package agent

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/crypto/ssh"
)

// softwareKey is a private key that is held in memory. It is checked: what
// memory has belongs to public.
type softwareKey struct {
	public crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	memory *memory
}

// newSoftwareKey has fill write the secret, of size bytes, to where it is held.
func newSoftwareKey(public crypto.PublicKey, size int, fill func(b []byte)) (*softwareKey, error) {
	m, err := newMemory(size, fill)
	if err != nil {
		return nil, err
	}
	k := &softwareKey{public, m}
	// The garbage collector knows nothing of the memory: a key that somebody
	// forgot to wipe would stay in it for as long as the agent runs.
	runtime.AddCleanup(k, (*memory).wipe, m)
	return k, nil
}

// wipe overwrites the private key and gives its memory back; a signature that
// is being made ends first. There are none afterwards.
func (k *softwareKey) wipe() { k.memory.wipe() }

// AuthRequired implements Key: the PIN, if there was one, was asked for by
// whoever added the key.
func (k *softwareKey) AuthRequired() bool { return false }

// Sign implements Key. Ed25519 takes the message itself for digest, and 0 for
// its hash.
//
// The structures that the standard library signs with are made for each
// signature, so that between signatures there is no copy of the key but the
// one that wipe overwrites.
func (k *softwareKey) Sign(ctx context.Context, _, digest []byte, opts crypto.SignerOpts) (sig []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	hash := opts.HashFunc()
	if err := k.checkHash(hash, digest); err != nil {
		return nil, err
	}
	err = k.memory.use(func(secret []byte) (err error) {
		erasing(func() { sig, err = k.sign(secret, digest, hash) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("signing with a key in memory: %w", err)
	}
	if !k.verify(hash, digest, sig) {
		return nil, errFault
	}
	return sig, nil
}

// errFault is a signature that came out wrong. It must not leave: from one that
// an error of the machine spoilt, an RSA or an Ed25519 key can be computed.
var errFault = errors.New("signing with a key in memory: the signature came out wrong")

func (k *softwareKey) checkHash(hash crypto.Hash, digest []byte) error {
	_, whole := k.public.(ed25519.PublicKey)
	switch {
	case whole && hash != 0:
		return fmt.Errorf("an Ed25519 key signs messages, not digests by %v", hash)
	case !whole && (hash == 0 || len(digest) != hash.Size()):
		return fmt.Errorf("digest of %d bytes for hash %d", len(digest), hash)
	}
	return nil
}

func (k *softwareKey) sign(secret, digest []byte, hash crypto.Hash) ([]byte, error) {
	switch pub := k.public.(type) {
	case *rsa.PublicKey:
		return signRSA(pub, secret, digest, hash)
	case *ecdsa.PublicKey:
		return signECDSA(pub, secret, digest, hash)
	default:
		return signEd25519(secret, digest)
	}
}

func (k *softwareKey) verify(hash crypto.Hash, digest, sig []byte) bool {
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

// numbers are the fields of a private key, as they are in the request.
type numbers interface {
	// key checks them and holds them. certified is the key of the certificate
	// that they came with; nil if there was none.
	key(certified crypto.PublicKey) (*softwareKey, error)
}

var (
	errOtherKey    = errors.New("the certificate is for another key")
	errOutOfRange  = errors.New("the private key is out of range")
	errOtherPublic = errors.New("the private key does not belong to the public key")
)

// readNumbers reads what is behind the type or behind the certificate, which
// has the public key already; but Ed25519 repeats it.
func readNumbers(w *wire, plain string, certified bool) numbers {
	switch plain {
	case ssh.KeyAlgoRSA:
		return readRSA(w, certified)
	case ssh.KeyAlgoED25519:
		return readEd25519(w)
	default:
		return readECDSA(w, plain, certified)
	}
}
