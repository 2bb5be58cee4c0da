package keyfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"testing"
)

// public is a TPM2B_PUBLIC in parts.
type public struct {
	head, policy, symmetric, scheme, parms, kdf, unique []byte
}

func (p public) bytes() []byte {
	return size(bytes.Join([][]byte{p.head, p.policy, p.symmetric, p.scheme, p.parms, p.kdf, p.unique}, nil))
}

// size prepends the two octets of size of a TPM2B to b.
func size(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// eccPublic returns a signing key on the curve, with coordinates in full width.
func eccPublic(t testing.TB, curve elliptic.Curve, id string) (public, *ecdsa.PublicKey) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	n := len(point) / 2
	return public{
		head:      unhex("0023 000b 00040472"),
		policy:    unhex("0000"),
		symmetric: unhex("0010"),
		scheme:    unhex("0010"),
		parms:     unhex(id),
		kdf:       unhex("0010"),
		unique:    append(size(point[1:1+n]), size(point[1+n:])...),
	}, &key.PublicKey
}

func rsaPublic(bits int) public {
	n := make([]byte, bits/8)
	n[0], n[len(n)-1] = 0x80, 1
	return public{
		head:      unhex("0001 000b 00060472"),
		policy:    unhex("0000"),
		symmetric: unhex("0010"),
		scheme:    unhex("0010"),
		parms:     append(binary.BigEndian.AppendUint16(nil, uint16(bits)), 0, 0, 0, 0),
		unique:    size(n),
	}
}

func TestCurves(t *testing.T) {
	t.Parallel()
	for id, curve := range map[string]elliptic.Curve{
		"0003": elliptic.P256(), "0004": elliptic.P384(), "0005": elliptic.P521(),
	} {
		area, want := eccPublic(t, curve, id)
		p, err := ParsePublic(area.bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !want.Equal(p.Key) || p.KeyBits != curve.Params().BitSize || p.Exponent != 0 {
			t.Errorf("%s: %+v", id, p)
		}
		if p.Type != 0x23 || p.NameAlg != 0xb || p.Scheme != 0x10 || p.SchemeHash != 0x10 {
			t.Errorf("%s: %+v", id, p)
		}
		if p.Attributes&0x40432 != 0x40432 || p.Attributes.Decrypt() {
			t.Errorf("%s: attributes %#x", id, p.Attributes)
		}
	}
}

// TestShortCoordinates drops the leading zeros that some TPMs drop.
func TestShortCoordinates(t *testing.T) {
	t.Parallel()
	for range 100000 {
		area, want := eccPublic(t, elliptic.P256(), "0003")
		x, y := area.unique[2:34], area.unique[36:]
		if x[0] != 0 && y[0] != 0 {
			continue
		}
		area.unique = append(size(bytes.TrimLeft(x, "\x00")), size(bytes.TrimLeft(y, "\x00"))...)
		p, err := ParsePublic(area.bytes())
		if err != nil || !want.Equal(p.Key) {
			t.Fatalf("%+v, %v", p, err)
		}
		return
	}
	t.Fatal("no key with a short coordinate was made")
}

func TestPointRefused(t *testing.T) {
	t.Parallel()
	good, _ := eccPublic(t, elliptic.P256(), "0003")
	x, y := bytes.Clone(good.unique[2:34]), bytes.Clone(good.unique[36:])
	off := bytes.Clone(y)
	off[31] ^= 1
	field := elliptic.P256().Params().P.Bytes()
	for name, unique := range map[string][]byte{
		"pubkey point": append(size(x), size(off)...),
		"not on":       append(size(field), size(y)...),
		"template":     unhex("0000 0000"),
		"33 octets":    append(size(append([]byte{0}, x...)), size(y)...),
		"too early":    size(x),
		"pubkey y":     append(size(x), 0, 32, 1),
		"too many":     append(append(size(x), size(y)...), 0),
		"not on the":   append(size(x), 0, 0),
	} {
		area := good
		area.unique = unique
		_, err := ParsePublic(area.bytes())
		wantError(t, err, ErrFormat, name, "at octet ")
	}
}

func TestRSA(t *testing.T) {
	t.Parallel()
	for _, bits := range []int{1024, 2048, 3072, 4096} {
		p, err := ParsePublic(rsaPublic(bits).bytes())
		if err != nil {
			t.Fatal(err)
		}
		key, ok := p.Key.(*rsa.PublicKey)
		if !ok || key.E != 65537 || key.N.BitLen() != bits || p.KeyBits != bits || p.Exponent != 65537 || p.Curve != 0 {
			t.Errorf("%d: %+v", bits, p)
		}
	}
	area := rsaPublic(2048)
	area.parms = unhex("0800 00000003")
	if p, err := ParsePublic(area.bytes()); err != nil || p.Key.(*rsa.PublicKey).E != 3 {
		t.Errorf("exponent 3: %v", err)
	}
}

func TestRSARefused(t *testing.T) {
	t.Parallel()
	n := bytes.Clone(rsaPublic(2048).unique[2:])
	even, short := bytes.Clone(n), bytes.Clone(n)
	even[255], short[0] = 2, 0x7f
	for _, test := range []struct {
		parms, text string
		unique      []byte
	}{
		{"0800 00000000", "even", size(even)},
		{"0800 00000000", "2047 bits", size(short)},
		{"0800 00000000", "template", unhex("0000")},
		{"0800 00000000", "modulus", size(n[1:])},
		{"0800 00000000", "modulus", size(append([]byte{0}, n...))},
		{"0c00 00000000", "keyBits", size(n)},
		{"0200 00000000", "keyBits", size(n[:64])},
		{"07ff 00000000", "keyBits", size(n)},
		{"0800 00000001", "exponent", size(n)},
		{"0800 00010000", "exponent", size(n)},
		{"0800 80000001", "exponent", size(n)},
		{"0800 0000", "exponent", nil},
		{"08", "keyBits", nil},
	} {
		area := rsaPublic(2048)
		area.parms, area.unique = unhex(test.parms), test.unique
		_, err := ParsePublic(area.bytes())
		wantError(t, err, ErrFormat, test.text, "at octet ")
	}
}

func TestSchemes(t *testing.T) {
	t.Parallel()
	ecc, _ := eccPublic(t, elliptic.P256(), "0003")
	tests := []struct {
		area   public
		scheme string
		hash   uint16
	}{
		{ecc, "0018 000b", algSHA256},
		{ecc, "0018 000d", algSHA512},
		{ecc, "0018 0012", algSM3}, // named, though Go lacks it
		{ecc, "001a 000b 0001", algSHA256},
		{ecc, "0019 000b", algSHA256},
		{ecc, "001b 0012", algSM3},
		{ecc, "001c 000b", algSHA256},
		{ecc, "001d 000b", algSHA256},
		{rsaPublic(2048), "0014 000c", algSHA384},
		{rsaPublic(2048), "0015", algNull},
		{rsaPublic(2048), "0016 0004", algSHA1},
		{rsaPublic(2048), "0017 000b", algSHA256},
	}
	for _, test := range tests {
		test.area.scheme = unhex(test.scheme)
		p, err := ParsePublic(test.area.bytes())
		if err != nil {
			t.Errorf("%s: %v", test.scheme, err)
			continue
		}
		if got := fmt.Sprintf("%04x", p.Scheme); got != test.scheme[:4] || p.SchemeHash != test.hash {
			t.Errorf("%s: scheme %s, hash %#x", test.scheme, got, p.SchemeHash)
		}
	}
	for scheme, want := range map[string]error{
		"0014 000b": ErrFormat, // RSASSA on a curve
		"0018 0099": errUnsupported,
		"0018 0010": errUnsupported,
		"0060 000b": errUnsupported,
	} {
		area := ecc
		area.scheme = unhex(scheme)
		_, err := ParsePublic(area.bytes())
		wantError(t, err, want, "scheme", "at octet ")
	}
}

func TestSymmetricAndKDF(t *testing.T) {
	t.Parallel()
	for _, symmetric := range []string{"0006 0080 0043", "0013 0080 0043", "0026 0100 0043", "0003 00c0 0043"} {
		area, _ := eccPublic(t, elliptic.P384(), "0004")
		area.symmetric = unhex(symmetric)
		if _, err := ParsePublic(area.bytes()); err != nil {
			t.Errorf("%s: %v", symmetric, err)
		}
	}
	for _, kdf := range []string{"0007 000b", "0020 000b", "0021 000c", "0022 000d"} {
		area, _ := eccPublic(t, elliptic.P384(), "0004")
		area.kdf = unhex(kdf)
		if _, err := ParsePublic(area.bytes()); err != nil {
			t.Errorf("%s: %v", kdf, err)
		}
	}
	area, _ := eccPublic(t, elliptic.P384(), "0004")
	area.symmetric = unhex("000a 000b")
	_, err := ParsePublic(area.bytes())
	wantError(t, err, errUnsupported, "symmetric", "0x000a")
	area.symmetric, area.kdf = unhex("0010"), unhex("0001")
	_, err = ParsePublic(area.bytes())
	wantError(t, err, errUnsupported, "kdf", "0x0001")
}

func TestUnsupportedNamed(t *testing.T) {
	t.Parallel()
	for id, name := range map[string]string{
		"0001": "NIST P-192", "0002": "NIST P-224", "0010": "BN P-256", "0011": "BN P-638", "0020": "SM2", "0040": "Curve25519", "0099": "0x0099",
	} {
		area, _ := eccPublic(t, elliptic.P256(), id)
		_, err := ParsePublic(area.bytes())
		wantError(t, err, errUnsupported, name, "at octet 16")
	}
	for head, name := range map[string]string{
		"0008 000b 00040472": "keyed hash", "0025 000b 00040472": "symmetric cipher",
		"0023 0012 00040472": "nameAlg at octet 4 is algorithm 0x0012", "0023 0010 00040472": "nameAlg",
	} {
		area, _ := eccPublic(t, elliptic.P256(), "0003")
		area.head = unhex(head)
		_, err := ParsePublic(area.bytes())
		wantError(t, err, errUnsupported, name)
	}
	area, _ := eccPublic(t, elliptic.P256(), "0003")
	area.head = unhex("0006 000b 00040472")
	_, err := ParsePublic(area.bytes())
	wantError(t, err, ErrFormat, "0x0006")
}

func TestNames(t *testing.T) {
	t.Parallel()
	area, _ := eccPublic(t, elliptic.P256(), "0003")
	for alg, size := range map[uint16]int{
		algSHA1: 20, algSHA256: 32, algSHA384: 48, algSHA512: 64, algSHA3_256: 32, algSHA3_384: 48, algSHA3_512: 64,
	} {
		binary.BigEndian.PutUint16(area.head[2:], alg)
		area.policy = append(binary.BigEndian.AppendUint16(nil, uint16(size)), make([]byte, size)...)
		p, err := ParsePublic(area.bytes())
		if err != nil {
			t.Fatal(err)
		}
		h := newHash(alg)
		h.Write(area.bytes()[2:])
		if want := h.Sum(area.head[2:4:4]); !bytes.Equal(p.Name(), want) || len(p.AuthPolicy) != size {
			t.Errorf("%#x: name %x, want %x", alg, p.Name(), want)
		}
		area.policy = append([]byte{0, byte(size - 1)}, make([]byte, size-1)...)
		_, err = ParsePublic(area.bytes())
		wantError(t, err, ErrFormat, "authPolicy", "the digest has")
	}
}
