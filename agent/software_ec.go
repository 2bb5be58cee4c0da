package agent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"math/big"
	"math/bits"

	"golang.org/x/crypto/ssh"
)

// ecdsaNumbers are those of RFC 9987, section 5.2.2. curve and point are empty
// when there is a certificate.
type ecdsaNumbers struct {
	typ   string
	curve string
	point []byte
	d     []byte
}

func readECDSA(w *wire, plain string, certified bool) *ecdsaNumbers {
	n := ecdsaNumbers{typ: plain}
	if !certified {
		n.curve, n.point = w.text(), w.string()
	}
	n.d = w.number()
	return &n
}

func (n *ecdsaNumbers) key(certified crypto.PublicKey) (*softwareKey, error) {
	pub, err := n.public(certified)
	if err != nil {
		return nil, err
	}
	scalar, err := n.scalar(pub.Curve.Params().N)
	defer clear(scalar)
	if err != nil {
		return nil, err
	}
	private, err := ecdsa.ParseRawPrivateKey(pub.Curve, scalar)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	defer forget(private)
	switch {
	case private.PublicKey.Equal(pub):
		return newSoftwareKey(pub, len(scalar), func(b []byte) { copy(b, scalar) })
	case certified != nil:
		return nil, errOtherKey
	}
	return nil, errOtherPublic
}

// scalar is d at its full length. The bounds are OpenSSH's: d is less than the
// order of the curve by two at least, and not shorter by half, as none is that
// was drawn at random.
func (n *ecdsaNumbers) scalar(order *big.Int) ([]byte, error) {
	size := (order.BitLen() + 7) / 8
	if len(n.d) > size || bitLen(n.d) <= order.BitLen()/2 {
		return nil, errOutOfRange
	}
	scalar := make([]byte, size)
	copy(scalar[size-len(n.d):], n.d)
	limit := new(big.Int).Sub(order, big.NewInt(1)).FillBytes(make([]byte, size))
	if bytes.Compare(scalar, limit) >= 0 {
		return scalar, errOutOfRange
	}
	return scalar, nil
}

func (n *ecdsaNumbers) public(certified crypto.PublicKey) (*ecdsa.PublicKey, error) {
	if certified != nil {
		pub, ok := certified.(*ecdsa.PublicKey)
		if !ok {
			return nil, errOtherKey
		}
		return pub, nil
	}
	if n.typ != "ecdsa-sha2-"+n.curve {
		return nil, fmt.Errorf("curve %q", n.curve)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curveOf(n.typ), n.point)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return pub, nil
}

// forget overwrites the number in a key that was made from bytes.
func forget(k *ecdsa.PrivateKey) {
	//lint:ignore SA1019 there is no other way to it, and nothing is computed
	clear(k.D.Bits())
}

func curveOf(typ string) elliptic.Curve {
	switch typ {
	case ssh.KeyAlgoECDSA384:
		return elliptic.P384()
	case ssh.KeyAlgoECDSA521:
		return elliptic.P521()
	}
	return elliptic.P256()
}

func signECDSA(pub *ecdsa.PublicKey, secret, digest []byte, hash crypto.Hash) ([]byte, error) {
	private, err := ecdsa.ParseRawPrivateKey(pub.Curve, secret)
	if err != nil {
		return nil, err
	}
	defer forget(private)
	return private.Sign(rand.Reader, digest, hash)
}

// ed25519Numbers are those of RFC 9987, section 5.2.3; with a certificate as
// well. private is the seed and, once more, the public key.
type ed25519Numbers struct{ public, private []byte }

func readEd25519(w *wire) *ed25519Numbers {
	return &ed25519Numbers{w.string(), w.string()}
}

func (n *ed25519Numbers) key(certified crypto.PublicKey) (*softwareKey, error) {
	if len(n.public) != ed25519.PublicKeySize || len(n.private) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("public key of %d bytes, private key of %d", len(n.public), len(n.private))
	}
	pub := ed25519.PublicKey(bytes.Clone(n.public))
	if certified != nil && !pub.Equal(certified) {
		return nil, errOtherKey
	}
	private := ed25519.NewKeyFromSeed(n.private[:ed25519.SeedSize])
	defer clear(private)
	if !pub.Equal(private.Public()) || subtle.ConstantTimeCompare(private, n.private) != 1 {
		return nil, errOtherPublic
	}
	return newSoftwareKey(pub, ed25519.PrivateKeySize, func(b []byte) { copy(b, n.private) })
}

// signEd25519 gives the standard library a key in Go's heap: it remembers keys
// by their address there.
func signEd25519(secret, message []byte) ([]byte, error) {
	private := ed25519.PrivateKey(bytes.Clone(secret))
	defer clear(private)
	return private.Sign(nil, message, crypto.Hash(0))
}

// bitLen is the length in bits of a big-endian number without leading zeros.
func bitLen(b []byte) int {
	if len(b) == 0 {
		return 0
	}
	return 8*(len(b)-1) + bits.Len8(b[0])
}
