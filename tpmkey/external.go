package tpmkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// exponent is the only public exponent that every TPM takes (TPM 2.0 Part 2,
// 12.2.3.5).
const exponent = 65537

// external is a checked private key from outside the TPM.
type external struct {
	algorithm Algorithm
	unique    tpm2.TPMUPublicID
	secret    []byte // the scalar, or one prime, in full width
}

// newExternal checks and converts a private key. An inconsistent key never gets to
// the TPM, which may not notice.
func newExternal(private crypto.PrivateKey) (*external, error) {
	switch k := private.(type) {
	case *ecdsa.PrivateKey:
		return externalECDSA(k)
	case *rsa.PrivateKey:
		return externalRSA(k)
	default:
		return nil, unsupportedKey(fmt.Sprintf("%T", private))
	}
}

func externalECDSA(k *ecdsa.PrivateKey) (*external, error) {
	a, err := algorithmOf(&k.PublicKey)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 Bytes would panic
	if k.D == nil {
		return nil, errors.New("the ECDSA key has no private part")
	}
	var scalar []byte
	point, err := eccPoint(&k.PublicKey)
	if err == nil {
		scalar, err = k.Bytes()
	}
	if err != nil {
		return nil, fmt.Errorf("the ECDSA key is not consistent: %w", err)
	}
	again, err := ecdsa.ParseRawPrivateKey(k.Curve, scalar)
	if err != nil || !again.PublicKey.Equal(&k.PublicKey) {
		return nil, errors.New("the ECDSA key is not consistent: its public and its private part do not belong together")
	}
	// scalar belongs to crypto/ecdsa, which caches it.
	return &external{a, tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point), bytes.Clone(scalar)}, nil
}

func externalRSA(k *rsa.PrivateKey) (*external, error) {
	a, err := algorithmOf(&k.PublicKey)
	if err != nil {
		return nil, err
	}
	switch {
	case len(k.Primes) < 2 || slices.ContainsFunc(append(k.Primes[:2:2], k.D), func(n *big.Int) bool { return n == nil || n.Sign() <= 0 }):
		return nil, errors.New("the RSA key lacks its primes or its private exponent")
	case len(k.Primes) > 2:
		return nil, &UnsupportedError{What: fmt.Sprintf("RSA key of %d primes", len(k.Primes)), Why: "a TPM takes only keys of two primes"}
	case k.E != exponent:
		return nil, &UnsupportedError{What: fmt.Sprintf("RSA key with the exponent %d", k.E), Why: "a TPM takes only the exponent 65537"}
	}
	if err := k.Validate(); err != nil {
		return nil, fmt.Errorf("the RSA key is not consistent: %w", err)
	}
	half := a.Bits() / 2
	if p, q := k.Primes[0].BitLen(), k.Primes[1].BitLen(); p != half || q != half {
		return nil, &UnsupportedError{
			What: fmt.Sprintf("RSA key with primes of %d and %d bits", p, q),
			Why:  "a TPM takes only primes of the same size",
		}
	}
	modulus := &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()}
	return &external{a, tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, modulus), k.Primes[0].FillBytes(make([]byte, half/8))}, nil
}

// algorithmOf returns the algorithm of a public key. It returns an [UnsupportedError]
// if there is none.
func algorithmOf(pub crypto.PublicKey) (Algorithm, error) {
	what := fmt.Sprintf("%T", pub)
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub.Curve == nil {
			return 0, unsupportedKey("ECDSA without a curve")
		}
		what = "ECDSA " + pub.Curve.Params().Name
	case *rsa.PublicKey:
		if pub.N == nil || pub.N.Sign() <= 0 {
			return 0, errors.New("the RSA key has no modulus")
		}
		what = fmt.Sprintf("RSA %d", pub.N.BitLen())
	}
	for a, described := range algorithms {
		if described.name == what {
			return a, nil
		}
	}
	return 0, unsupportedKey(what)
}

func unsupportedKey(what string) error {
	e := &UnsupportedError{What: what, Why: "SSH and TPMs do not have it in common"}
	for a := ECDSAP256; a <= RSA4096; a++ {
		e.Supported = append(e.Supported, a.String())
	}
	return e
}

// eccPoint returns a point with coordinates in full width: a TPM computes the Name
// over the octets that it gets.
func eccPoint(pub *ecdsa.PublicKey) (*tpm2.TPMSECCPoint, error) {
	//lint:ignore SA1019 Bytes would panic
	if pub.X == nil || pub.Y == nil {
		return nil, errors.New("the public key has no point")
	}
	octets, err := pub.Bytes() // 04 || X || Y; on the curve, or an error
	if err != nil {
		return nil, err
	}
	width := len(octets) / 2
	return &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: octets[1 : 1+width]},
		Y: tpm2.TPM2BECCParameter{Buffer: octets[1+width:]},
	}, nil
}
