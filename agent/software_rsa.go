package agent

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"math"
	"math/big"
)

// maxRSABits is the size of the longest RSA keys that OpenSSH makes.
const maxRSABits = 8 * maxNumber

// rsaNumbers are named as in RFC 9987, section 5.2.5; n and e are nil when
// there is a certificate.
type rsaNumbers struct{ n, e, d, iqmp, p, q []byte }

func readRSA(w *wire, certified bool) *rsaNumbers {
	var n rsaNumbers
	if !certified {
		n.n, n.e = w.number(), w.number()
	}
	n.d = w.number()
	n.iqmp = w.number()
	n.p, n.q = w.number(), w.number()
	return &n
}

func (n *rsaNumbers) key(certified crypto.PublicKey) (*softwareKey, error) {
	pub, err := n.public(certified)
	if err != nil {
		return nil, err
	}
	s, err := n.secret(pub)
	defer s.clear()
	if err != nil {
		return nil, err
	}
	if err := s.key(pub).Validate(); err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	part := max(len(n.p), len(n.q))
	return newSoftwareKey(pub, pub.Size()+rsaParts*part, func(b []byte) { s.fill(b, pub) })
}

// public is bounded before anything is computed.
func (n *rsaNumbers) public(certified crypto.PublicKey) (*rsa.PublicKey, error) {
	pub, ok := certified.(*rsa.PublicKey)
	switch {
	case ok:
	case certified != nil:
		return nil, errOtherKey
	case bitLen(n.e) > 31:
		return nil, fmt.Errorf("public exponent of %d bits", bitLen(n.e))
	default:
		pub = &rsa.PublicKey{N: new(big.Int).SetBytes(n.n), E: int(new(big.Int).SetBytes(n.e).Int64())}
	}
	if bits := pub.N.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, fmt.Errorf("modulus of %d bits", bits)
	}
	if pub.E < 3 || pub.E > math.MaxInt32 || pub.E%2 == 0 || pub.N.Bit(0) == 0 {
		return nil, errors.New("public exponent or modulus out of range")
	}
	return pub, nil
}

// secret is to be cleared also if there is an error.
func (n *rsaNumbers) secret(pub *rsa.PublicKey) (s rsaSecret, err error) {
	for i, b := range [][]byte{n.d, n.p, n.q} {
		s[i] = new(big.Int).SetBytes(b)
	}
	s[rsaQinv] = new(big.Int).SetBytes(n.iqmp)
	if new(big.Int).Mul(s[rsaP], s[rsaQ]).Cmp(pub.N) != 0 {
		if n.n == nil {
			return s, errOtherKey
		}
		return s, errors.New("p times q is not the modulus")
	}
	if bitLen(n.p) == 1 || bitLen(n.q) == 1 {
		return s, errors.New("p or q is 1")
	}
	s[rsaDp], s[rsaDq] = reduced(s[rsaD], s[rsaP]), reduced(s[rsaD], s[rsaQ])
	return s, nil
}

// reduced is d modulo one less than the prime.
func reduced(d, prime *big.Int) *big.Int {
	less := new(big.Int).Sub(prime, big.NewInt(1))
	defer clear(less.Bits())
	return new(big.Int).Mod(d, less)
}

// rsaSecret is what is held of an RSA key: d, which is as long as the modulus,
// and rsaParts numbers as long as the longer prime. The last three follow from
// the others, but computing them takes longer than the signature.
type rsaSecret [1 + rsaParts]*big.Int

const rsaParts = 5

const (
	rsaD = iota
	rsaP
	rsaQ
	rsaDp   // d mod p-1
	rsaDq   // d mod q-1
	rsaQinv // 1/q mod p
)

// slot is where number i is in memory.
func (s *rsaSecret) slot(b []byte, pub *rsa.PublicKey, i int) []byte {
	if i == rsaD {
		return b[:pub.Size()]
	}
	parts := b[pub.Size():]
	part := len(parts) / rsaParts
	return parts[(i-1)*part : i*part]
}

func (s *rsaSecret) fill(b []byte, pub *rsa.PublicKey) {
	for i := range s {
		s[i].FillBytes(s.slot(b, pub, i))
	}
}

func (s *rsaSecret) read(b []byte, pub *rsa.PublicKey) {
	for i := range s {
		s[i] = new(big.Int).SetBytes(s.slot(b, pub, i))
	}
}

func (s *rsaSecret) clear() {
	for _, x := range s {
		if x != nil {
			clear(x.Bits())
		}
	}
}

// key shares the numbers of s.
func (s *rsaSecret) key(pub *rsa.PublicKey) *rsa.PrivateKey {
	return &rsa.PrivateKey{
		PublicKey: *pub,
		D:         s[rsaD],
		Primes:    []*big.Int{s[rsaP], s[rsaQ]},
		Precomputed: rsa.PrecomputedValues{
			Dp: s[rsaDp], Dq: s[rsaDq], Qinv: s[rsaQinv],
		},
	}
}

func signRSA(pub *rsa.PublicKey, secret, digest []byte, hash crypto.Hash) ([]byte, error) {
	var s rsaSecret
	defer s.clear()
	s.read(secret, pub)
	return rsa.SignPKCS1v15(nil, s.key(pub), hash, digest)
}
