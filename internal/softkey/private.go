package softkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// A reader reads the fields of a key (RFC 9987, section 5.2) up to its comment
// and returns the private key and its public key, after checking the latter
// against the fields. certified is the key of the certificate that came before
// them, or nil; behind a certificate RSA and ECDSA keys have no public fields.
type reader func(w *wire.Parser, certified crypto.PublicKey) (crypto.Signer, crypto.PublicKey, error)

// readerOf returns the reader for a type of plain keys; nil for foreign types.
func readerOf(plain string) reader {
	switch plain {
	case ssh.KeyAlgoRSA:
		return readRSA
	case ssh.KeyAlgoECDSA256:
		return readECDSA(elliptic.P256())
	case ssh.KeyAlgoECDSA384:
		return readECDSA(elliptic.P384())
	case ssh.KeyAlgoECDSA521:
		return readECDSA(elliptic.P521())
	case ssh.KeyAlgoED25519:
		return readEd25519
	}
	return nil
}

var errOtherPublic = errors.New("the private key does not belong to the public key")

// maxBits is the length of the longest numbers that OpenSSH takes.
const maxBits = 16384

// number reads an mpint that is not negative. Like OpenSSH it accepts more
// leading zeros than RFC 4251 allows.
func number(w *wire.Parser) *big.Int {
	b := w.Bytes()
	n := new(big.Int).SetBytes(b)
	switch {
	case len(b) > 0 && b[0]&0x80 != 0:
		w.Err = errors.New("a negative number")
	case n.BitLen() > maxBits:
		w.Err = fmt.Errorf("a number of %d bits", n.BitLen())
	}
	return n
}

func readRSA(w *wire.Parser, certified crypto.PublicKey) (crypto.Signer, crypto.PublicKey, error) {
	public, ok := certified.(*rsa.PublicKey)
	if !ok {
		n, e := number(w), number(w)
		if e.BitLen() > 31 {
			return nil, nil, fmt.Errorf("public exponent of %d bits", e.BitLen())
		}
		public = &rsa.PublicKey{N: n, E: int(e.Int64())}
	}
	d, iqmp, p, q := number(w), number(w), number(w), number(w)
	switch {
	case w.Err != nil:
		return nil, nil, w.Err
	case public.N.BitLen() < sshkey.MinRSABits:
		return nil, nil, fmt.Errorf("modulus of %d bits", public.N.BitLen())
	case p.BitLen() < 2 || q.BitLen() < 2 || new(big.Int).Mul(p, q).Cmp(public.N) != 0:
		return nil, nil, errors.New("p times q is not the modulus")
	}
	private := &rsa.PrivateKey{PublicKey: *public, D: d, Primes: []*big.Int{p, q}}
	// Validate checks these. Left out, they would be computed, which took 15 s for
	// the longest p and a short q.
	private.Precomputed = rsa.PrecomputedValues{Dp: exponent(d, p), Dq: exponent(d, q), Qinv: iqmp}
	if err := private.Validate(); err != nil {
		return nil, nil, fmt.Errorf("private key: %w", err)
	}
	return private, public, nil
}

// exponent returns d modulo prime-1.
func exponent(d, prime *big.Int) *big.Int {
	return new(big.Int).Mod(d, new(big.Int).Sub(prime, big.NewInt(1)))
}

func readECDSA(curve elliptic.Curve) reader {
	return func(w *wire.Parser, certified crypto.PublicKey) (crypto.Signer, crypto.PublicKey, error) {
		var name string
		var point []byte
		if certified == nil {
			name, point = w.Text(), w.Bytes()
		}
		private, err := readScalar(w, curve)
		if err != nil {
			return nil, nil, err
		}
		public := private.PublicKey
		computed, err := public.Bytes()
		switch {
		case err != nil:
			return nil, nil, err
		case certified == nil && name != fmt.Sprintf("nistp%d", curve.Params().BitSize):
			return nil, nil, fmt.Errorf("curve %q", name)
		case certified == nil && !bytes.Equal(point, computed):
			return nil, nil, errOtherPublic
		}
		return private, &public, nil
	}
}

// readScalar has OpenSSH's bounds: the number is longer than half of the
// curve's order, as a random one is, and smaller than the order minus one.
func readScalar(w *wire.Parser, curve elliptic.Curve) (*ecdsa.PrivateKey, error) {
	d, order := number(w), curve.Params().N
	switch {
	case w.Err != nil:
		return nil, w.Err
	case d.BitLen() <= order.BitLen()/2 || d.Cmp(new(big.Int).Sub(order, big.NewInt(1))) >= 0:
		return nil, errors.New("the private key is out of range")
	}
	return ecdsa.ParseRawPrivateKey(curve, d.FillBytes(make([]byte, (order.BitLen()+7)/8)))
}

// readEd25519 reads the public key and the private key, which is the seed and
// the public key again.
func readEd25519(w *wire.Parser, _ crypto.PublicKey) (crypto.Signer, crypto.PublicKey, error) {
	public, private := w.Bytes(), w.Bytes()
	if len(public) != ed25519.PublicKeySize || len(private) != ed25519.PrivateKeySize {
		return nil, nil, fmt.Errorf("public key of %d bytes, private key of %d", len(public), len(private))
	}
	key := ed25519.NewKeyFromSeed(private[:ed25519.SeedSize])
	if !key.Equal(ed25519.PrivateKey(private)) || !bytes.Equal(key[ed25519.SeedSize:], public) {
		return nil, nil, errOtherPublic
	}
	return key, key.Public(), nil
}
