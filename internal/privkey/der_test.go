package privkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"
	"testing"
)

// tlv is an element with a length of up to 64 KiB.
func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	switch n := len(content); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

func seq(parts ...[]byte) []byte    { return tlv(0x30, parts...) }
func octets(parts ...[]byte) []byte { return tlv(0x04, parts...) }

func integer(t *testing.T, n uint64) []byte {
	t.Helper()
	return marshal(t, int64(n))
}

func oid(t *testing.T, text string) []byte {
	t.Helper()
	var id asn1.ObjectIdentifier
	for part := range strings.SplitSeq(text, ".") {
		var n int
		if _, err := fmt.Sscan(part, &n); err != nil {
			t.Fatal(err)
		}
		id = append(id, n)
	}
	return marshal(t, id)
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// ecParts are the parts of an EC key.
type ecParts struct {
	version, curve, scalar, point []byte
}

func newECParts(t *testing.T) (*ecdsa.PrivateKey, *ecParts) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return key, &ecParts{integer(t, 1), oid(t, "1.2.840.10045.3.1.7"), scalar, point}
}

func (p *ecParts) sec1() []byte {
	return seq(p.version, octets(p.scalar), tlv(0xa0, p.curve), tlv(0xa1, tlv(3, []byte{0}, p.point)))
}

// pkcs8 wraps a key without curve and point of its own, with what may follow.
func (p *ecParts) pkcs8(t *testing.T, behind ...[]byte) []byte {
	return seq(integer(t, 0), seq(oid(t, oidEC), p.curve), octets(seq(p.version, octets(p.scalar))), bytes.Join(behind, nil))
}

func TestECNumbers(t *testing.T) {
	order := elliptic.P256().Params().N.Bytes()
	for name, c := range map[string]struct {
		spoil func(p *ecParts)
		text  string
	}{
		"nothing":        {func(*ecParts) {}, ""},
		"long scalar":    {func(p *ecParts) { p.scalar = append(make([]byte, 9), p.scalar...) }, ""},
		"zero":           {func(p *ecParts) { p.scalar = make([]byte, 32) }, "zero or larger"},
		"empty":          {func(p *ecParts) { p.scalar = nil }, "zero or larger"},
		"order":          {func(p *ecParts) { p.scalar = order }, "zero or larger"},
		"larger":         {func(p *ecParts) { p.scalar = append([]byte{1}, p.scalar...) }, "larger than the curve"},
		"other scalar":   {func(p *ecParts) { p.scalar[20] ^= 1 }, "does not belong"},
		"other point":    {func(p *ecParts) { p.point[20] ^= 1 }, "does not belong"},
		"short point":    {func(p *ecParts) { p.point = p.point[:64] }, "does not belong"},
		"infinity":       {func(p *ecParts) { p.point = []byte{0} }, "does not belong"},
		"no point":       {func(p *ecParts) { p.point = nil }, "public key is empty"},
		"compressed":     {func(p *ecParts) { p.point = append([]byte{2 | p.point[64]&1}, p.point[1:33]...) }, ""},
		"other half":     {func(p *ecParts) { p.point = append([]byte{3 ^ p.point[64]&1}, p.point[1:33]...) }, "does not belong"},
		"hybrid":         {func(p *ecParts) { p.point[0] = 6 | p.point[64]&1 }, ""},
		"other hybrid":   {func(p *ecParts) { p.point[0] = 7 ^ p.point[64]&1 }, "does not belong"},
		"version":        {func(p *ecParts) { p.version = []byte{2, 1, 2} }, "version"},
		"implicit curve": {func(p *ecParts) { p.curve = []byte{5, 0} }, "name of the curve"},
		"two curves":     {func(p *ecParts) { p.curve = append(p.curve, p.curve...) }, "name of the curve"},
	} {
		key, p := newECParts(t)
		c.spoil(p)
		k, err := Parse(p.sec1(), nil)
		switch {
		case c.text != "":
			t.Run(name, func(t *testing.T) { wantError(t, err, ErrFormat, c.text) })
		case err != nil || !key.Equal(k.Private):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestShortScalars reads keys whose number is cut short by its zeros.
func TestShortScalars(t *testing.T) {
	for _, scalar := range [][]byte{{1}, {0xff, 1}, append([]byte{1}, make([]byte, 30)...)} {
		_, p := newECParts(t)
		p.scalar = scalar
		k, err := Parse(p.pkcs8(t), nil)
		if err != nil {
			t.Errorf("%x: %v", scalar, err)
			continue
		}
		checkWhole(t, k)
	}
}

// TestPKCS8Behind reads what RFC 5958 has behind the private key.
func TestPKCS8Behind(t *testing.T) {
	key, p := newECParts(t)
	attributes := tlv(0xa0, seq(oid(t, "1.2.3"), tlv(0x31, []byte{5, 0})))
	public := func(point []byte) []byte { return tlv(0x81, []byte{0}, point) }
	other := bytes.Clone(p.point)
	other[40] ^= 4
	for name, c := range map[string]struct {
		der  []byte
		text string
	}{
		"nothing":          {p.pkcs8(t), ""},
		"attributes":       {p.pkcs8(t, attributes), ""},
		"public key":       {p.pkcs8(t, public(p.point)), ""},
		"both":             {p.pkcs8(t, attributes, public(p.point)), ""},
		"another's key":    {p.pkcs8(t, public(other)), "does not belong"},
		"no octets":        {p.pkcs8(t, tlv(0x81, []byte{3}, p.point)), "no string of octets"},
		"nothing in it":    {p.pkcs8(t, tlv(0x81)), "no string of octets"},
		"wrong order":      {p.pkcs8(t, public(p.point), attributes), "behind the private key"},
		"something":        {p.pkcs8(t, []byte{5, 0}), "behind the private key"},
		"no curve":         {seq(integer(t, 0), seq(oid(t, oidEC)), octets(seq(p.version, octets(p.scalar)))), "names no curve"},
		"two curves":       {seq(integer(t, 0), seq(oid(t, oidEC), oid(t, "1.3.132.0.34")), octets(p.sec1())), "two different curves"},
		"version":          {seq(integer(t, 7), seq(oid(t, oidEC), p.curve), octets(p.sec1())), "version"},
		"no algorithm":     {seq(integer(t, 0), seq(p.point), octets(p.sec1())), "algorithm"},
		"three parameters": {seq(integer(t, 0), seq(oid(t, oidEC), p.curve, p.curve), octets(p.sec1())), "algorithm"},
		"RSA parameters":   {seq(integer(t, 0), seq(oid(t, oidRSA), p.curve), octets(golden(t, "rsa-pem.der"))), "no parameters"},
		"RSA, no NULL":     {seq(integer(t, 0), seq(oid(t, oidRSA)), octets(golden(t, "rsa-pem.der"))), ""},
		"RSA, another's":   {seq(integer(t, 0), seq(oid(t, oidRSA)), octets(golden(t, "rsa-pem.der")), tlv(0x81, []byte{0, 1})), "does not belong"},
		"not of RSA":       {seq(integer(t, 0), seq(oid(t, oidRSA)), octets(p.sec1())), "PKCS #1: the modulus"},
	} {
		k, err := Parse(c.der, nil)
		switch {
		case c.text != "":
			t.Run(name, func(t *testing.T) { wantError(t, err, ErrFormat, c.text) })
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case !strings.HasPrefix(name, "RSA") && !key.Equal(k.Private):
			t.Errorf("%s: another key", name)
		}
	}
}

// TestParameters: a key that names no curve has that of the block before it.
func TestParameters(t *testing.T) {
	key, p := newECParts(t)
	bare := pemBlock("EC PRIVATE KEY", seq(p.version, octets(p.scalar)))
	k, err := Parse(append(pemBlock("EC PARAMETERS", p.curve), bare...), nil)
	if err != nil || !key.Equal(k.Private) {
		t.Error(err)
	}
	_, err = Parse(bare, nil)
	wantError(t, err, ErrFormat, "names no curve")
	_, err = Parse(append(pemBlock("EC PARAMETERS", oid(t, "1.3.132.0.34")), pemBlock("EC PRIVATE KEY", p.sec1())...), nil)
	wantError(t, err, ErrFormat, "two different curves")
	_, err = Parse(append(pemBlock("EC PARAMETERS", nil), bare...), nil)
	wantError(t, err, ErrFormat, "EC PARAMETERS block is empty")
}

// TestPublicDER is what openssl writes of public keys and certificates.
func TestPublicDER(t *testing.T) {
	key, _ := newECParts(t)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(spki, nil)
	wantError(t, err, ErrPublic, "DER")
	k, err := Parse(golden(t, "rsa-pem.der"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(seq(integer(t, 12345), integer(t, 3)), nil)
	wantError(t, err, ErrPublic, "DER")
	cert, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), k.Private)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse(cert, nil)
	wantError(t, err, ErrPublic, "certificate")
}

// TestOtherAlgorithms names what PKCS #8 may have besides.
func TestOtherAlgorithms(t *testing.T) {
	for id, text := range map[string]string{
		"1.2.840.113549.1.3.1":    "Diffie-Hellman key",
		"1.3.132.1.12":            "EC key for key agreement only",
		"2.16.840.1.101.3.4.3.18": "post-quantum key (2.16.840.1.101.3.4.3.18)",
		"1.2.643.7.1.1.1.1":       "key of the algorithm 1.2.643.7.1.1.1.1",
	} {
		_, err := Parse(seq(integer(t, 0), seq(oid(t, id)), octets([]byte("key"))), nil)
		wantUnsupported(t, id, err, text)
	}
}

// pbe is an EncryptedPrivateKeyInfo with PBES2.
func pbe(kdf, scheme, data []byte, t *testing.T) []byte {
	return seq(seq(oid(t, oidPBES2), seq(kdf, scheme)), octets(data))
}

func TestPBES2(t *testing.T) {
	iv, data, salt := octets(make([]byte, 16)), make([]byte, 160), octets([]byte("saltsalt"))
	aes := seq(oid(t, "2.16.840.1.101.3.4.1.42"), iv)
	kdf := func(parts ...[]byte) []byte { return seq(oid(t, oidPBKDF2), seq(parts...)) }
	scryptOf := func(parts ...[]byte) []byte { return seq(oid(t, oidScrypt), seq(append([][]byte{salt}, parts...)...)) }
	n := func(n uint64) []byte { return integer(t, n) }
	for text, der := range map[string][]byte{
		"key encrypted with 10000001 iterations of PBKDF2: at most 10000000": pbe(kdf(salt, n(10_000_001)), aes, data, t),
		"key encrypted with 9223372036854775807 iterations":                  pbe(kdf(salt, n(1<<63-1)), aes, data, t),
		"key encrypted with scrypt of N*r*p = 8388608*1*1: at most 4194304":  pbe(scryptOf(n(1<<23), n(1), n(1)), aes, data, t),
		"key encrypted with scrypt of N*r*p = 2*1*9223372036854775807":       pbe(scryptOf(n(2), n(1), n(1<<63-1)), aes, data, t),
		"key encrypted with scrypt of N*r*p = 65536*512*2":                   pbe(scryptOf(n(1<<16), n(1<<9), n(2)), aes, data, t),
		"key encrypted with scrypt of r = 1025: at most 1024":                pbe(scryptOf(n(2), n(1025), n(1)), aes, data, t),
		"key encrypted with PBKDF2 with 1.2.840.113549.2.6":                  pbe(kdf(salt, n(1), seq(oid(t, "1.2.840.113549.2.6"))), aes, data, t),
		"key encrypted with the key derivation 1.2.3 (PBES2)":                pbe(seq(oid(t, "1.2.3"), seq()), aes, data, t),
		"key encrypted with RC2 (PBES2)":                                     pbe(kdf(salt, n(1)), seq(oid(t, "1.2.840.113549.3.2"), iv), data, t),
		"key encrypted with DES (PBES2)":                                     pbe(kdf(salt, n(1)), seq(oid(t, "1.3.14.3.2.7"), iv), data, t),
		"key encrypted with PBE-SHA1-2DES":                                   seq(seq(oid(t, "1.2.840.113549.1.12.1.4"), seq()), octets(data)),
		"key encrypted with the algorithm 1.2.3":                             seq(seq(oid(t, "1.2.3"), seq()), octets(data)),
	} {
		a := &asker{passphrase: secret}
		_, err := Parse(der, a.ask)
		if wantUnsupported(t, text, err, text); a.asked > 0 {
			t.Errorf("%s: asked for a passphrase", text)
		}
	}
	for text, der := range map[string][]byte{
		"no iterations":         pbe(kdf(salt, n(0)), aes, data, t),
		"PBKDF2: the para":      pbe(kdf(salt), aes, data, t),
		"PBKDF2: the hash":      pbe(kdf(salt, n(1), n(32), seq()), aes, data, t),
		"PBKDF2: the parameter": pbe(kdf(salt, n(1), n(31)), aes, data, t),
		"scrypt: the parameters N = 3, r = 1, p = 1 are none": pbe(scryptOf(n(3), n(1), n(1)), aes, data, t),
		"scrypt: the parameters N = 0, r = 1, p = 1 are none": pbe(scryptOf(n(0), n(1), n(1)), aes, data, t),
		"scrypt: the parameters N = 2, r = 0, p = 1 are none": pbe(scryptOf(n(2), n(0), n(1)), aes, data, t),
		"scrypt: the parameters cannot":                       pbe(scryptOf(n(2), n(1)), aes, data, t),
		"initialization vector":                               pbe(kdf(salt, n(1)), seq(oid(t, "2.16.840.1.101.3.4.1.42"), octets(make([]byte, 15))), data, t),
		"blocks of 16":                                        pbe(kdf(salt, n(1)), aes, data[:159], t),
		"0 encrypted octets":                                  pbe(kdf(salt, n(1)), aes, nil, t),
		"two fields":                                          seq(seq(oid(t, oidPBES2)), octets(data), data),
		"PBES2: the parameters cannot":                        seq(seq(oid(t, oidPBES2)), octets(data)),
		"key derivation cannot":                               pbe(seq(oid(t, oidPBKDF2)), aes, data, t),
	} {
		_, err := Parse(pemBlock("ENCRYPTED PRIVATE KEY", der), (&asker{passphrase: secret}).ask)
		t.Run(text, func(t *testing.T) { wantError(t, err, ErrFormat, text) })
	}
	// What is there is right: only the passphrase is not.
	for _, der := range [][]byte{
		pbe(kdf(salt, n(1), n(32)), aes, data, t),
		pbe(kdf(salt, n(1), n(32), seq(oid(t, "1.2.840.113549.2.9"), []byte{5, 0})), aes, data, t),
		pbe(scryptOf(n(2), n(1), n(1), n(32)), aes, data, t),
	} {
		_, err := Parse(der, (&asker{passphrase: secret}).ask)
		wantError(t, err, ErrPassphrase)
	}
}
