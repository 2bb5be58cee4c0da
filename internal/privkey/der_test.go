package privkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
)

const (
	oidRSA    = "1.2.840.113549.1.1.1"
	oidEC     = "1.2.840.10045.2.1"
	oidPBES2  = "1.2.840.113549.1.5.13"
	oidPBKDF2 = "1.2.840.113549.1.5.12"
	oidScrypt = "1.3.6.1.4.1.11591.4.11"
)

// tlv encodes an element of up to 64 KiB.
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

// pkcs8 wraps a key without a curve and a point of its own, followed by after.
func (p *ecParts) pkcs8(t *testing.T, after ...[]byte) []byte {
	return seq(integer(t, 0), seq(oid(t, oidEC), p.curve), octets(seq(p.version, octets(p.scalar))), bytes.Join(after, nil))
}

func TestECNumbers(t *testing.T) {
	t.Parallel()
	order := elliptic.P256().Params().N.Bytes()
	for name, c := range map[string]struct {
		spoil func(p *ecParts)
		text  string
	}{
		"nothing":        {func(*ecParts) {}, ""},
		"long scalar":    {func(p *ecParts) { p.scalar = append(make([]byte, 9), p.scalar...) }, ""},
		"zero":           {func(p *ecParts) { p.scalar = make([]byte, 32) }, "private key"},
		"empty":          {func(p *ecParts) { p.scalar = nil }, "private key"},
		"order":          {func(p *ecParts) { p.scalar = order }, "private key"},
		"larger":         {func(p *ecParts) { p.scalar = append([]byte{1}, p.scalar...) }, "private key length"},
		"other scalar":   {func(p *ecParts) { p.scalar[20] ^= 1 }, "does not match"},
		"other point":    {func(p *ecParts) { p.point[20] ^= 1 }, "does not match"},
		"short point":    {func(p *ecParts) { p.point = p.point[:64] }, "does not match"},
		"infinity":       {func(p *ecParts) { p.point = []byte{0} }, "does not match"},
		"no point":       {func(p *ecParts) { p.point = nil }, "does not match"},
		"compressed":     {func(p *ecParts) { p.point = append([]byte{2 | p.point[64]&1}, p.point[1:33]...) }, ""},
		"other half":     {func(p *ecParts) { p.point = append([]byte{3 ^ p.point[64]&1}, p.point[1:33]...) }, "does not match"},
		"hybrid":         {func(p *ecParts) { p.point[0] = 6 | p.point[64]&1 }, ""},
		"other hybrid":   {func(p *ecParts) { p.point[0] = 7 ^ p.point[64]&1 }, "does not match"},
		"version":        {func(p *ecParts) { p.version = []byte{2, 1, 2} }, "version"},
		"implicit curve": {func(p *ecParts) { p.curve = []byte{5, 0} }, "EC curve"},
		"two curves":     {func(p *ecParts) { p.curve = append(p.curve, p.curve...) }, "EC curve"},
		"no curve":       {func(p *ecParts) { p.curve = nil }, "EC curve"},
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

// TestShortScalars reads numbers without their leading zeros.
func TestShortScalars(t *testing.T) {
	t.Parallel()
	for _, scalar := range [][]byte{{1}, {0xff, 1}, append([]byte{1}, make([]byte, 30)...)} {
		_, p := newECParts(t)
		p.scalar = scalar
		k, err := Parse(p.pkcs8(t), nil)
		if err != nil {
			t.Errorf("%x: %v", scalar, err)
			continue
		}
		checkNumbers(t, k)
	}
}

// TestPKCS8Fields covers what RFC 5958 allows after the private key, and damage.
func TestPKCS8Fields(t *testing.T) {
	t.Parallel()
	key, p := newECParts(t)
	attributes := tlv(0xa0, seq(oid(t, "1.2.3"), tlv(0x31, []byte{5, 0})))
	public := tlv(0x81, []byte{0}, p.point)
	rsaKey := octets(golden(t, "rsa-pem.der"))
	for name, c := range map[string]struct {
		der  []byte
		text string
	}{
		"nothing":       {p.pkcs8(t), ""},
		"attributes":    {p.pkcs8(t, attributes), ""},
		"public key":    {p.pkcs8(t, public), ""},
		"both":          {p.pkcs8(t, attributes, public), ""},
		"wrong order":   {p.pkcs8(t, public, attributes), "not a private key, or damaged"},
		"something":     {p.pkcs8(t, []byte{5, 0}), "not a private key, or damaged"},
		"inside":        {seq(integer(t, 0), seq(oid(t, oidEC), p.curve), octets(seq(p.version, octets(p.scalar), integer(t, 0)))), "something follows"},
		"no curve":      {seq(integer(t, 0), seq(oid(t, oidEC)), octets(seq(p.version, octets(p.scalar)))), "EC curve"},
		"other curve":   {seq(integer(t, 0), seq(oid(t, oidEC), oid(t, "1.3.132.0.34")), octets(p.sec1())), "does not match"},
		"no algorithm":  {seq(integer(t, 0), seq(p.point), octets(p.sec1())), "cannot be read"},
		"RSA":           {seq(integer(t, 0), seq(oid(t, oidRSA), []byte{5, 0}), rsaKey), ""},
		"RSA, no NULL":  {seq(integer(t, 0), seq(oid(t, oidRSA)), rsaKey), ""},
		"not of RSA":    {seq(integer(t, 0), seq(oid(t, oidRSA)), octets(p.sec1())), "PKCS #1"},
		"not of EC":     {seq(integer(t, 0), seq(oid(t, oidEC), p.curve), rsaKey), "SEC 1"},
		"nested":        {seq(integer(t, 0), seq(oid(t, oidRSA)), octets(golden(t, "rsa-pkcs8.der"))), "PKCS #1"},
		"RSA and octet": {seq(integer(t, 0), seq(oid(t, oidRSA)), octets(golden(t, "rsa-pem.der"), []byte{0})), "PKCS #1"},
	} {
		k, err := Parse(c.der, nil)
		switch {
		case c.text != "":
			t.Run(name, func(t *testing.T) { wantError(t, err, ErrFormat, c.text) })
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case !strings.HasPrefix(name, "RSA") && !key.Equal(k.Private):
			t.Errorf("%s: a different key", name)
		}
	}
}

// TestPublicDER covers public keys and certificates as openssl writes them.
func TestPublicDER(t *testing.T) {
	t.Parallel()
	key, _ := newECParts(t)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range [][]byte{spki, request, seq(integer(t, 12345), integer(t, 3))} {
		_, err := Parse(der, nil)
		wantError(t, err, ErrPublic, "DER")
	}
}

func TestUnknownAlgorithm(t *testing.T) {
	t.Parallel()
	_, err := Parse(seq(integer(t, 0), seq(oid(t, "2.16.840.1.101.3.4.3.18")), octets([]byte("key"))), nil)
	wantUnsupported(t, "PKCS #8", err, `key of the type "2.16.840.1.101.3.4.3.18"`)
}

// pbe returns an EncryptedPrivateKeyInfo with PBES2.
func pbe(kdf, scheme, data []byte, t *testing.T) []byte {
	return seq(seq(oid(t, oidPBES2), seq(kdf, scheme)), octets(data))
}

func TestPBES2(t *testing.T) {
	t.Parallel()
	iv, data, salt := octets(make([]byte, 16)), make([]byte, 160), octets([]byte("saltsalt"))
	aes := seq(oid(t, "2.16.840.1.101.3.4.1.42"), iv)
	kdf := func(parts ...[]byte) []byte { return seq(oid(t, oidPBKDF2), seq(parts...)) }
	scryptOf := func(parts ...[]byte) []byte { return seq(oid(t, oidScrypt), seq(append([][]byte{salt}, parts...)...)) }
	n := func(n uint64) []byte { return integer(t, n) }
	for text, der := range map[string][]byte{
		"key encrypted with 10000001 iterations of PBKDF2: tpm-agent computes at most 10000000": pbe(kdf(salt, n(10_000_001)), aes, data, t),
		"key encrypted with 9223372036854775807 iterations":                                     pbe(kdf(salt, n(1<<63-1)), aes, data, t),
		"key encrypted with 0 iterations":                                                       pbe(kdf(salt, n(0)), aes, data, t),
		"key encrypted with scrypt of N = 8388608, r = 1, p = 1: the limits are 4194304":        pbe(scryptOf(n(1<<23), n(1), n(1)), aes, data, t),
		"key encrypted with scrypt of N = 2, r = 1, p = 9223372036854775807":                    pbe(scryptOf(n(2), n(1), n(1<<63-1)), aes, data, t),
		"key encrypted with scrypt of N = 65536, r = 512, p = 2":                                pbe(scryptOf(n(1<<16), n(1<<9), n(2)), aes, data, t),
		"key encrypted with scrypt of N = 2, r = 1025, p = 1":                                   pbe(scryptOf(n(2), n(1025), n(1)), aes, data, t),
		"key encrypted with scrypt of N = 0, r = 1, p = 1":                                      pbe(scryptOf(n(0), n(1), n(1)), aes, data, t),
		"key encrypted with scrypt of N = 2, r = 0, p = 1":                                      pbe(scryptOf(n(2), n(0), n(1)), aes, data, t),
		"key encrypted with scrypt of N = 2, r = 1, p = 0":                                      pbe(scryptOf(n(2), n(1), n(0)), aes, data, t),
		"key encrypted with PBKDF2 with 1.2.840.113549.2.6":                                     pbe(kdf(salt, n(1), seq(oid(t, "1.2.840.113549.2.6"))), aes, data, t),
		"key encrypted with the key derivation 1.2.3":                                           pbe(seq(oid(t, "1.2.3"), seq()), aes, data, t),
		"key encrypted with the cipher 1.2.840.113549.3.2":                                      pbe(kdf(salt, n(1)), seq(oid(t, "1.2.840.113549.3.2"), iv), data, t),
		"key encrypted with the old algorithm 1.2.3":                                            seq(seq(oid(t, "1.2.3"), seq()), octets(data)),
	} {
		a := &asker{passphrase: secret}
		_, err := Parse(der, a.ask)
		if wantUnsupported(t, text, err, text); a.asked > 0 {
			t.Errorf("%s: Parse asked for a passphrase", text)
		}
	}
	for name, c := range map[string]struct {
		der  []byte
		text string
	}{
		"PBKDF2 without iterations": {pbe(kdf(salt), aes, data, t), "PBKDF2: a field"},
		"PBKDF2 without parameters": {pbe(seq(oid(t, oidPBKDF2)), aes, data, t), "PBKDF2: a field"},
		"scrypt without p":          {pbe(scryptOf(n(2), n(1)), aes, data, t), "scrypt: a field"},
		"scrypt of N = 3":           {pbe(scryptOf(n(3), n(1), n(1)), aes, data, t), "N must be > 1 and a power of 2"},
		"short vector":              {pbe(kdf(salt, n(1)), seq(oid(t, "2.16.840.1.101.3.4.1.42"), octets(make([]byte, 15))), data, t), "blocks of 16"},
		"part of a block":           {pbe(kdf(salt, n(1)), aes, data[:159], t), "blocks of 16"},
		"no data":                   {pbe(kdf(salt, n(1)), aes, nil, t), "blocks of 16"},
		"something after the data":  {seq(seq(oid(t, oidPBES2)), octets(data), data), "not a private key, or damaged"},
		"no parameters":             {seq(seq(oid(t, oidPBES2)), octets(data)), "PBES2: a field"},
	} {
		_, err := parseWith(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: c.der}), secret)
		t.Run(name, func(t *testing.T) { wantError(t, err, ErrFormat, c.text) })
	}
	// In these, only the passphrase is wrong.
	for _, der := range [][]byte{
		pbe(kdf(salt, n(1), n(32)), aes, data, t),
		pbe(kdf(salt, n(1), n(32), seq(oid(t, "1.2.840.113549.2.9"), []byte{5, 0})), aes, data, t),
		pbe(scryptOf(n(2), n(1), n(1), n(32)), aes, data, t),
	} {
		_, err := parseWith(der, secret)
		wantError(t, err, ErrPassphrase)
	}
}
