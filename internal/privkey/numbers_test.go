package privkey

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
)

// pkcs1 is RSAPrivateKey as a structure to spoil.
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

// renew computes what follows from the primes and the public exponent.
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

// wantAll asserts what comes of the numbers in all three formats that have
// them.
func (k *pkcs1) wantAll(t *testing.T, check func(name string, err error)) {
	t.Helper()
	der := k.der(t)
	_, err := Parse(der, nil)
	check("PKCS #1", err)
	wrapped, err := asn1.Marshal(struct {
		Version int
		Algo    struct {
			OID  asn1.ObjectIdentifier
			Null asn1.RawValue
		}
		Key []byte
	}{Algo: struct {
		OID  asn1.ObjectIdentifier
		Null asn1.RawValue
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, asn1.NullRawValue}, Key: der})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(wrapped, nil)
	check("PKCS #8", err)
	_, err = Parse(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der}), nil)
	check("PEM", err)
}

func TestRSANumbers(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *pkcs1)
		text  string
	}{
		"nothing":              {func(*pkcs1) {}, ""},
		"renewed":              {(*pkcs1).renew, ""},
		"exponent 3":           {func(k *pkcs1) { k.makeFor(t, 3) }, ""},
		"short exponents":      {func(k *pkcs1) { k.DP.Add(k.DP, num(2)) }, "exponents of the primes"},
		"second exponent":      {func(k *pkcs1) { k.DQ = num(0) }, "exponents of the primes"},
		"coefficient":          {func(k *pkcs1) { k.QInv.Add(k.QInv, num(1)) }, "coefficient"},
		"coefficient too long": {func(k *pkcs1) { k.QInv.Add(k.QInv, k.P) }, "coefficient"},
		"zero coefficient":     {func(k *pkcs1) { k.QInv = num(0) }, "coefficient"},
		"modulus":              {func(k *pkcs1) { k.N.Add(k.N, num(2)) }, "product"},
		"primes exchanged":     {func(k *pkcs1) { k.P, k.Q = k.Q, k.P }, "exponents of the primes"},
		"private exponent":     {func(k *pkcs1) { k.D.Add(k.D, num(2)) }, "does not belong to the public one"},
		"other public":         {func(k *pkcs1) { k.E = num(17) }, "does not belong to the public one"},
		"long private":         {func(k *pkcs1) { k.D.Lsh(k.D, 64) }, "longer than the modulus"},
		"even":                 {func(k *pkcs1) { k.E = num(65536) }, "even or 1"},
		"one":                  {func(k *pkcs1) { k.E = num(1); k.renew() }, "even or 1"},
		"zero":                 {func(k *pkcs1) { k.E = num(0) }, "not positive"},
		"negative":             {func(k *pkcs1) { k.P.Neg(k.P) }, "not positive"},
		"negative exponent":    {func(k *pkcs1) { k.E.Neg(k.E) }, "not positive"},
		"same primes":          {func(k *pkcs1) { k.Q = k.P; k.renew() }, "the same"},
		"prime of 1":           {func(k *pkcs1) { k.P, k.Q = k.N, num(1) }, "primes of different lengths"},
		"composite":            {func(k *pkcs1) { k.composite(t) }, "is none"},
		"version":              {func(k *pkcs1) { k.Version = 2 }, "version 2"},
	} {
		k := soundRSA(t)
		c.spoil(k)
		k.wantAll(t, func(format string, err error) {
			switch u := (*UnsupportedError)(nil); {
			case c.text == "" && err != nil:
				t.Errorf("%s, %s: %v", name, format, err)
			case c.text == "":
			case errors.As(err, &u):
				wantUnsupported(t, name, err, "RSA key with "+c.text)
			default:
				t.Run(name, func(t *testing.T) { wantError(t, err, ErrFormat, c.text) })
			}
		})
	}
}

// makeFor makes another key, with a public exponent.
func (k *pkcs1) makeFor(t *testing.T, e int64) {
	for k.E = num(e); ; {
		k.P, k.Q = prime(t, 1024), prime(t, 1024)
		if k.renew(); congruent(new(big.Int).Mul(k.E, k.D), num(1), new(big.Int).Sub(k.P, num(1))) && k.D.BitLen() > 10 {
			return
		}
	}
}

// composite makes a key whose numbers fit each other, though p is no prime.
func (k *pkcs1) composite(t *testing.T) {
	for {
		k.P = new(big.Int).Mul(prime(t, 512), prime(t, 512))
		if k.renew(); k.P.BitLen() == k.Q.BitLen() && k.D.Cmp(num(3)) != 0 {
			return
		}
	}
}

// TestRSAUseless has keys that are sound and too odd for a TPM.
func TestRSAUseless(t *testing.T) {
	long := soundRSA(t)
	long.E = new(big.Int).Add(new(big.Int).Lsh(num(1), 40), num(15))
	long.renew()
	uneven := soundRSA(t)
	uneven.P, uneven.Q = prime(t, 1200), prime(t, 848)
	uneven.renew()
	huge := soundRSA(t)
	huge.N = new(big.Int).Lsh(num(1), 16383)
	three := soundRSA(t)
	three.Version = 1
	three.Others = []asn1.RawValue{asn1.NullRawValue}
	for text, k := range map[string]*pkcs1{
		"RSA key with a public exponent of more than 31 bits": long,
		"RSA key with primes of different lengths":            uneven,
		"RSA key of 16384 bits":                               huge,
		"RSA key of more than two primes":                     three,
	} {
		k.wantAll(t, func(format string, err error) { wantUnsupported(t, format, err, text) })
	}
}

// TestRSALengths: which of these a TPM takes, it says itself.
func TestRSALengths(t *testing.T) {
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
