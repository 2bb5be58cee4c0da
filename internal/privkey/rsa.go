package privkey

import (
	"crypto/rsa"
	"math"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
)

// The lengths of RSA keys, in bits. Which of them a TPM takes is the TPM's to
// say; beyond them there is none, and to check longer ones takes minutes.
const (
	minRSA = 1024
	maxRSA = 8192
)

// rsaNumbers are what the formats have of an RSA key. Those behind q are nil
// where the format lacks them.
type rsaNumbers struct {
	n, e, d, p, q, dp, dq, qinv *big.Int
}

// parseRSA reads an RSAPrivateKey (RFC 8017, appendix A.1.2).
func parseRSA(der []byte) (*rsa.PrivateKey, error) {
	s, err := sequence("PKCS #1", der)
	if err != nil {
		return nil, err
	}
	var version int64
	switch {
	case !s.ReadASN1Integer(&version):
		return nil, malformed("PKCS #1: the version cannot be read")
	case version != 0 && version != 1:
		return nil, malformed("PKCS #1: there is no version %d", version)
	}
	var k rsaNumbers
	for _, field := range []struct {
		name   string
		number **big.Int
	}{
		{"modulus", &k.n},
		{"public exponent", &k.e},
		{"private exponent", &k.d},
		{"first prime", &k.p},
		{"second prime", &k.q},
		{"first exponent", &k.dp},
		{"second exponent", &k.dq},
		{"coefficient", &k.qinv},
	} {
		if *field.number, err = readInteger(&s, field.name); err != nil {
			return nil, err
		}
	}
	switch {
	case version == 1:
		return nil, primesKey()
	case !s.Empty():
		return nil, malformed("PKCS #1: %d octets behind the coefficient", len(s))
	}
	return k.key()
}

func readInteger(s *cryptobyte.String, name string) (*big.Int, error) {
	n := new(big.Int)
	if !s.ReadASN1Integer(n) {
		return nil, malformed("PKCS #1: the %s cannot be read", name)
	}
	return n, nil
}

// key checks the numbers against each other, the cheap ones first.
func (k *rsaNumbers) key() (*rsa.PrivateKey, error) {
	for _, n := range []*big.Int{k.n, k.e, k.d, k.p, k.q} {
		if n.Sign() <= 0 {
			return nil, malformed("RSA: a number that is not positive")
		}
	}
	if err := k.checkSizes(); err != nil {
		return nil, err
	}
	if err := k.checkNumbers(); err != nil {
		return nil, err
	}
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: k.n, E: int(k.e.Int64())},
		D:         k.d,
		Primes:    []*big.Int{k.p, k.q},
	}
	key.Precompute()
	if err := key.Validate(); err != nil {
		return nil, malformed("RSA: %v", err)
	}
	return key, nil
}

// checkSizes refuses what no TPM takes.
func (k *rsaNumbers) checkSizes() error {
	bits := k.n.BitLen()
	switch {
	case bits < minRSA || bits > maxRSA:
		return useless("RSA key of "+big.NewInt(int64(bits)).String()+" bits", "TPMs take keys of 2048 bits, some of them 3072 and 4096")
	case k.e.Cmp(big.NewInt(3)) < 0 || k.e.Bit(0) == 0:
		return malformed("RSA: the public exponent is even or 1")
	case k.e.Cmp(big.NewInt(math.MaxInt32)) > 0:
		return useless("RSA key with a public exponent of more than 31 bits", "TPMs take the exponent 65537, some of them others up to 32 bits")
	case k.d.BitLen() > bits:
		return malformed("RSA: the private exponent is longer than the modulus")
	}
	return nil
}

func (k *rsaNumbers) checkNumbers() error {
	switch {
	case new(big.Int).Mul(k.p, k.q).Cmp(k.n) != 0:
		return malformed("RSA: the modulus is not the product of the two primes")
	case k.p.Cmp(k.q) == 0:
		return malformed("RSA: the two primes are the same")
	case k.p.BitLen() != k.q.BitLen():
		return useless("RSA key with primes of different lengths", "a TPM takes primes of the same length only")
	}
	one := big.NewInt(1)
	p1, q1 := new(big.Int).Sub(k.p, one), new(big.Int).Sub(k.q, one)
	ed := new(big.Int).Mul(k.e, k.d)
	switch {
	case !congruent(ed, one, p1) || !congruent(ed, one, q1):
		return malformed("RSA: the private exponent does not belong to the public one")
	case !fits(k.dp, k.d, p1) || !fits(k.dq, k.d, q1):
		return malformed("RSA: the exponents of the primes do not belong to the private exponent")
	case k.qinv != nil && (k.qinv.Sign() <= 0 || k.qinv.Cmp(k.p) >= 0 || !congruent(new(big.Int).Mul(k.qinv, k.q), one, k.p)):
		return malformed("RSA: the coefficient does not belong to the primes")
	case !k.p.ProbablyPrime(0) || !k.q.ProbablyPrime(0):
		return malformed("RSA: one of the primes is none")
	}
	return nil
}

// congruent reports whether a = b modulo m.
func congruent(a, b, m *big.Int) bool {
	d := new(big.Int).Sub(a, b)
	return d.Mod(d, m).Sign() == 0
}

// fits reports whether short is d modulo m, or unknown.
func fits(short, d, m *big.Int) bool {
	return short == nil || new(big.Int).Mod(d, m).Cmp(short) == 0
}
