package privkey

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
)

// pkcs1 is an RSAPrivateKey, whose numbers a test can spoil.
type pkcs1 struct {
	Version                     int
	N, E, D, P, Q, DP, DQ, QInv *big.Int
	Others                      []asn1.RawValue `asn1:"optional,omitempty"`
}

func num(n int64) *big.Int { return big.NewInt(n) }

// soundRSA returns the numbers of the RSA key of testdata.
func soundRSA(t *testing.T) *pkcs1 {
	t.Helper()
	k := new(pkcs1)
	if rest, err := asn1.Unmarshal(golden(t, "rsa-pem.der"), k); err != nil || len(rest) > 0 {
		t.Fatal(err)
	}
	return k
}

// renew computes the numbers that follow from the primes and the public exponent.
func (k *pkcs1) renew() {
	p1, q1 := new(big.Int).Sub(k.P, num(1)), new(big.Int).Sub(k.Q, num(1))
	k.N = new(big.Int).Mul(k.P, k.Q)
	k.D = new(big.Int).ModInverse(k.E, new(big.Int).Mul(p1, q1))
	if k.D == nil {
		k.D = num(3)
	}
	k.DP, k.DQ = new(big.Int).Mod(k.D, p1), new(big.Int).Mod(k.D, q1)
	if k.QInv = new(big.Int).ModInverse(k.Q, k.P); k.QInv == nil {
		k.QInv = num(1)
	}
}

func (k *pkcs1) der(t *testing.T) []byte {
	t.Helper()
	der, err := asn1.Marshal(*k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func prime(t *testing.T, bits int) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRSANumbers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(k *pkcs1)
		text  string // of the error, or of the refusal
	}{
		"nothing":              {func(*pkcs1) {}, ""},
		"renewed":              {(*pkcs1).renew, ""},
		"exponent 3":           {func(k *pkcs1) { k.makeFor(t, 3) }, ""},
		"short exponents":      {func(k *pkcs1) { k.DP.Add(k.DP, num(2)) }, "CRT exponent"},
		"second exponent":      {func(k *pkcs1) { k.DQ = num(0) }, "zero or negative"},
		"coefficient":          {func(k *pkcs1) { k.QInv.Add(k.QInv, num(1)) }, "CRT coefficient"},
		"long coefficient":     {func(k *pkcs1) { k.QInv.Add(k.QInv, k.P) }, "overflows the modulus"},
		"zero coefficient":     {func(k *pkcs1) { k.QInv = num(0) }, "zero or negative"},
		"modulus":              {func(k *pkcs1) { k.N.Add(k.N, num(2)) }, "p * q != n"},
		"primes exchanged":     {func(k *pkcs1) { k.P, k.Q = k.Q, k.P }, "overflows the modulus"},
		"private exponent":     {func(k *pkcs1) { k.D.Add(k.D, num(2)) }, "d does not match"},
		"other public":         {func(k *pkcs1) { k.E = num(17) }, "CRT exponent"},
		"long private":         {func(k *pkcs1) { k.D.Lsh(k.D, 64) }, "input overflows the modulus"},
		"even":                 {func(k *pkcs1) { k.E = num(65536) }, "exponent is even"},
		"one":                  {func(k *pkcs1) { k.E = num(1); k.renew() }, "exponent too small"},
		"zero":                 {func(k *pkcs1) { k.E = num(0) }, "exponent too small"},
		"negative":             {func(k *pkcs1) { k.P.Neg(k.P) }, "zero or negative"},
		"negative exponent":    {func(k *pkcs1) { k.E.Neg(k.E) }, "exponent too small"},
		"long exponent":        {func(k *pkcs1) { k.E.Add(k.E.Lsh(num(1), 40), num(15)); k.renew() }, "exponent too large"},
		"same primes":          {func(k *pkcs1) { k.Q = k.P; k.renew() }, "CRT coefficient"},
		"prime of 1":           {func(k *pkcs1) { k.P, k.Q = k.N, num(1) }, "modulus must be > 1"},
		"composite":            {func(k *pkcs1) { k.composite(t) }, "is not prime"},
		"version":              {func(k *pkcs1) { k.Version = 2 }, "version"},
		"16384 bits":           {func(k *pkcs1) { k.N.Lsh(num(1), 16383) }, "even"},
		"different lengths":    {func(k *pkcs1) { k.P, k.Q = prime(t, 1200), prime(t, 848); k.renew() }, "RSA key with primes of different lengths"},
		"more than two primes": {func(k *pkcs1) { k.Version, k.Others = 1, []asn1.RawValue{asn1.NullRawValue} }, "a field cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := soundRSA(t)
			c.spoil(k)
			_, err := Parse(k.der(t), nil)
			switch u := (*UnsupportedError)(nil); {
			case c.text == "" && err != nil:
				t.Error(err)
			case c.text == "":
			case errors.As(err, &u):
				wantUnsupported(t, name, err, c.text)
			default:
				wantError(t, err, ErrFormat, c.text)
			}
		})
	}
}

// makeFor makes a different key with a public exponent.
func (k *pkcs1) makeFor(t *testing.T, e int64) {
	for k.E = num(e); ; {
		k.P, k.Q = prime(t, 1024), prime(t, 1024)
		if k.renew(); k.D.BitLen() > 10 {
			return
		}
	}
}

// composite makes a key whose numbers match, although p is not prime.
func (k *pkcs1) composite(t *testing.T) {
	for {
		k.P = new(big.Int).Mul(prime(t, 512), prime(t, 512))
		if k.renew(); k.P.BitLen() == k.Q.BitLen() && k.D.BitLen() > 10 {
			return
		}
	}
}

// TestRSALengths reads lengths that most TPMs refuse: that is the TPM's decision.
func TestRSALengths(t *testing.T) {
	t.Parallel()
	for _, bits := range []int{1024, 2048, 3072} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		k, err := Parse(x509.MarshalPKCS1PrivateKey(key), nil)
		if err != nil || !key.Equal(k.Private) {
			t.Errorf("%d bits: %v", bits, err)
		}
	}
}
