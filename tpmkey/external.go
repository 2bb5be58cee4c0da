package tpmkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// exponent is the one public exponent that every TPM takes (TPM 2.0 Part 2,
// 12.2.3.5).
const exponent = 65537

// external is a private key that was not made in a TPM, checked, in the TPM's
// terms.
type external struct {
	algorithm Algorithm
	unique    tpm2.TPMUPublicID
	// secret is the scalar, or one prime, in full width.
	secret []byte
}

// newExternal takes a private key over. What is not consistent in itself never
// gets to a TPM, which need not notice.
func newExternal(private crypto.PrivateKey) (*external, error) {
	switch k := private.(type) {
	case *ecdsa.PrivateKey:
		return externalECDSA(k)
	case *rsa.PrivateKey:
		return externalRSA(k)
	default:
		return nil, &UnsupportedError{What: fmt.Sprintf("%T", private), Why: "no TPM has such keys", Supported: algorithmNames()}
	}
}

func (e *external) wipe() { clear(e.secret) }

func externalECDSA(k *ecdsa.PrivateKey) (*external, error) {
	a, err := algorithmOf(&k.PublicKey)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 Bytes would panic
	if k.D == nil {
		return nil, errors.New("the ECDSA key has no private part")
	}
	point, err := eccPoint(&k.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("the ECDSA key is not consistent: %w", err)
	}
	scalar, err := k.Bytes()
	if err != nil {
		return nil, fmt.Errorf("the ECDSA key is not consistent: %w", err)
	}
	again, err := ecdsa.ParseRawPrivateKey(k.Curve, scalar)
	if err != nil || !again.PublicKey.Equal(&k.PublicKey) {
		clear(scalar)
		return nil, errors.New("the ECDSA key is not consistent: its public and its private part do not belong together")
	}
	return &external{algorithm: a, unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point), secret: scalar}, nil
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
		return nil, &UnsupportedError{What: fmt.Sprintf("RSA key of %d primes", len(k.Primes)), Why: "TPMs have keys of two primes only"}
	case k.E != exponent:
		return nil, &UnsupportedError{What: fmt.Sprintf("RSA key with the exponent %d", k.E), Why: "the exponent that TPMs take is 65537"}
	}
	if err := k.Validate(); err != nil {
		return nil, fmt.Errorf("the RSA key is not consistent: %w", err)
	}
	half := a.Bits() / 2
	if p, q := k.Primes[0].BitLen(), k.Primes[1].BitLen(); p != half || q != half {
		return nil, &UnsupportedError{
			What: fmt.Sprintf("RSA key with primes of %d and %d bits", p, q),
			Why:  "TPMs have keys with primes of the same size only",
		}
	}
	return &external{
		algorithm: a,
		unique:    tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()}),
		secret:    k.Primes[0].FillBytes(make([]byte, half/8)),
	}, nil
}

// algorithmOf returns the algorithm of a public key, an [UnsupportedError] when
// it is none of [Algorithms].
func algorithmOf(pub crypto.PublicKey) (Algorithm, error) {
	what := fmt.Sprintf("%T", pub)
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256():
			return ECDSAP256, nil
		case elliptic.P384():
			return ECDSAP384, nil
		case elliptic.P521():
			return ECDSAP521, nil
		case nil:
			what = "ECDSA without a curve"
		default:
			what = "ECDSA " + pub.Curve.Params().Name
		}
	case *rsa.PublicKey:
		if pub.N == nil || pub.N.Sign() <= 0 {
			return 0, errors.New("the RSA key has no modulus")
		}
		for _, a := range Algorithms() {
			if _, ecc := a.curve(); !ecc && a.Bits() == pub.N.BitLen() {
				return a, nil
			}
		}
		what = fmt.Sprintf("RSA %d", pub.N.BitLen())
	}
	return 0, &UnsupportedError{What: what, Why: "SSH and TPMs do not have it in common", Supported: algorithmNames()}
}

func algorithmNames() (names []string) {
	for _, a := range Algorithms() {
		names = append(names, a.String())
	}
	return names
}

// eccPoint returns a point with coordinates in full width: a TPM computes the
// Name over the octets that it gets.
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
