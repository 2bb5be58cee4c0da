package keyfile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
)

// Attributes is TPMA_OBJECT (TPM 2.0 part 2, section 8.3).
type Attributes uint32

// UserWithAuth reports whether the auth value authorizes the use of the object.
func (a Attributes) UserWithAuth() bool { return a&(1<<6) != 0 }

// AdminWithPolicy reports whether only a policy authorizes changes of the object.
func (a Attributes) AdminWithPolicy() bool { return a&(1<<7) != 0 }

// NoDA reports whether the object is exempt from the TPM's lockout.
func (a Attributes) NoDA() bool { return a&(1<<10) != 0 }

// Restricted reports whether the object works only on data from inside the TPM.
func (a Attributes) Restricted() bool { return a&(1<<16) != 0 }

// Decrypt reports whether the object may decrypt.
func (a Attributes) Decrypt() bool { return a&(1<<17) != 0 }

// Sign reports whether the object may sign.
func (a Attributes) Sign() bool { return a&(1<<18) != 0 }

// Public is a TPMT_PUBLIC (TPM 2.0 part 2, section 12.2.4) of an RSA or ECDSA
// key, all of it checked.
type Public struct {
	Type       uint16 // TPM_ALG_ID: 0x0001 RSA, 0x0023 ECC
	NameAlg    uint16 // TPM_ALG_ID of a hash
	Attributes Attributes
	AuthPolicy []byte // the policy digest, empty or of NameAlg's size
	Scheme     uint16 // TPM_ALG_ID, 0x0010 (TPM_ALG_NULL) for any
	SchemeHash uint16 // TPM_ALG_ID, 0x0010 when Scheme has no hash
	Curve      uint16 // TPM_ECC_CURVE, 0 for RSA
	KeyBits    int    // of the modulus, or of the curve's field
	Exponent   uint32 // of RSA; the TPM's 0 is given as 65537
	// Key is a *rsa.PublicKey or an *ecdsa.PublicKey on P-256, P-384 or P-521.
	Key crypto.PublicKey

	name []byte
}

// Name returns the TPM's Name of the object: nameAlg || H_nameAlg(TPMT_PUBLIC)
// (TPM 2.0 part 1, section 16).
func (p *Public) Name() []byte { return bytes.Clone(p.name) }

// ParsePublic reads a TPM2B_PUBLIC, its size included, and nothing after it.
func ParsePublic(tpm2b []byte) (*Public, error) {
	return parsePublic(newCursor(tpm2b))
}

func parsePublic(c cursor) (*Public, error) {
	if err := checkTPM2B("pubkey", c.String, c.offset()); err != nil {
		return nil, err
	}
	area, err := c.sized("pubkey")
	if err != nil {
		return nil, err
	}
	whole := area.String
	p := new(Public)
	if err := p.parseHead(&area); err != nil {
		return nil, err
	}
	switch p.Type {
	case algRSA:
		err = p.parseRSA(&area)
	case algECC:
		err = p.parseECC(&area)
	}
	if err != nil {
		return nil, err
	}
	if err := area.done("pubkey"); err != nil {
		return nil, err
	}
	h := newHash(p.NameAlg)
	h.Write(whole)
	p.name = h.Sum(binary.BigEndian.AppendUint16(nil, p.NameAlg))
	return p, nil
}

// parseHead reads what all types of object have in common. Types that no SSH
// key can have end here: the rest of them is not known to this package.
func (p *Public) parseHead(c *cursor) (err error) {
	start := c.offset()
	if p.Type, err = c.uint16("pubkey type"); err != nil {
		return err
	}
	switch p.Type {
	case algRSA, algECC:
	case algKeyedHash:
		return unsupported("pubkey type", c.offset()-2, "keyed hash: an HMAC key or sealed data")
	case algSymCipher:
		return unsupported("pubkey type", c.offset()-2, "symmetric cipher")
	default:
		return malformed("pubkey type", start, "there are no objects of %s", algName(p.Type))
	}
	if p.NameAlg, err = c.uint16("pubkey nameAlg"); err != nil {
		return err
	}
	h := newHash(p.NameAlg)
	if h == nil {
		return unsupported("pubkey nameAlg", c.offset()-2, algName(p.NameAlg))
	}
	attributes, err := c.uint32("pubkey attributes")
	if err != nil {
		return err
	}
	p.Attributes = Attributes(attributes)
	policy, err := c.sized("pubkey authPolicy")
	if err != nil {
		return err
	}
	if n := len(policy.String); n != 0 && n != h.Size() {
		return malformed("pubkey authPolicy", policy.offset(), "%d octets, the digest has %d", n, h.Size())
	}
	p.AuthPolicy = bytes.Clone(policy.String)
	return skipSymmetric(c)
}

// skipSymmetric reads a TPMT_SYM_DEF_OBJECT+: storage keys have one.
func skipSymmetric(c *cursor) error {
	alg, err := c.uint16("pubkey symmetric")
	if err != nil {
		return err
	}
	switch alg {
	case algNull:
		return nil
	case algTDES, algAES, algSM4, algCamellia:
	default:
		return unsupported("pubkey symmetric", c.offset()-2, algName(alg))
	}
	if _, err := c.uint16("pubkey symmetric keyBits"); err != nil {
		return err
	}
	_, err = c.uint16("pubkey symmetric mode")
	return err
}

// parseScheme reads a TPMT_RSA_SCHEME+ or TPMT_ECC_SCHEME+.
func (p *Public) parseScheme(c *cursor) (err error) {
	start := c.offset()
	if p.Scheme, err = c.uint16("pubkey scheme"); err != nil {
		return err
	}
	p.SchemeHash = algNull
	forRSA := false
	switch p.Scheme {
	case algNull:
		return nil
	case algRSAES, algRSASSA, algRSAPSS, algOAEP:
		forRSA = true
	case algECDSA, algECDH, algECDAA, algSM2, algECSchnorr, algECMQV:
	default:
		return unsupported("pubkey scheme", c.offset()-2, algName(p.Scheme))
	}
	if forRSA != (p.Type == algRSA) {
		return malformed("pubkey scheme", start, "%s is of another type of key", algName(p.Scheme))
	}
	if p.Scheme == algRSAES {
		return nil
	}
	if p.SchemeHash, err = hashAlg(c, "pubkey scheme hash"); err != nil {
		return err
	}
	if p.Scheme == algECDAA {
		_, err = c.uint16("pubkey scheme count")
	}
	return err
}

// hashAlg reads the TPM_ALG_ID of a hash. It need not be one that Go has.
func hashAlg(c *cursor, field string) (uint16, error) {
	alg, err := c.uint16(field)
	if err == nil && alg != algSM3 && newHash(alg) == nil {
		err = unsupported(field, c.offset()-2, algName(alg))
	}
	return alg, err
}

// parseRSA reads TPMS_RSA_PARMS, but for the symmetric part, and
// TPM2B_PUBLIC_KEY_RSA.
func (p *Public) parseRSA(c *cursor) error {
	if err := p.parseScheme(c); err != nil {
		return err
	}
	start := c.offset()
	bits, err := c.uint16("pubkey keyBits")
	if err != nil {
		return err
	}
	if bits%8 != 0 || bits < 1024 {
		return malformed("pubkey keyBits", start, "no RSA key has %d bits", bits)
	}
	p.KeyBits = int(bits)
	start = c.offset()
	if p.Exponent, err = c.uint32("pubkey exponent"); err != nil {
		return err
	}
	if p.Exponent == 0 {
		p.Exponent = 65537
	}
	if p.Exponent < 3 || p.Exponent%2 == 0 || p.Exponent > math.MaxInt32 {
		return malformed("pubkey exponent", start, "no RSA key has the exponent %d", p.Exponent)
	}
	return p.parseModulus(c)
}

func (p *Public) parseModulus(c *cursor) error {
	v, err := c.sized("pubkey modulus")
	if err != nil {
		return err
	}
	n := new(big.Int).SetBytes(v.String)
	switch {
	case len(v.String) == 0:
		return malformed("pubkey modulus", v.offset(), "empty: a template, not a key")
	case len(v.String) != p.KeyBits/8 || n.BitLen() != p.KeyBits:
		return malformed("pubkey modulus", v.offset(), "%d bits in %d octets, keyBits says %d", n.BitLen(), len(v.String), p.KeyBits)
	case n.Bit(0) == 0:
		return malformed("pubkey modulus", v.offset(), "even")
	}
	p.Key = &rsa.PublicKey{N: n, E: int(p.Exponent)}
	return nil
}

// parseECC reads TPMS_ECC_PARMS, but for the symmetric part, and
// TPMS_ECC_POINT.
func (p *Public) parseECC(c *cursor) (err error) {
	if err := p.parseScheme(c); err != nil {
		return err
	}
	if p.Curve, err = c.uint16("pubkey curve"); err != nil {
		return err
	}
	var curve elliptic.Curve
	switch p.Curve {
	case curveP256:
		curve = elliptic.P256()
	case curveP384:
		curve = elliptic.P384()
	case curveP521:
		curve = elliptic.P521()
	default:
		return unsupported("pubkey curve", c.offset()-2, curveName(p.Curve))
	}
	p.KeyBits = curve.Params().BitSize
	if err := skipKDF(c); err != nil {
		return err
	}
	return p.parsePoint(c, curve)
}

// skipKDF reads a TPMT_KDF_SCHEME+. No TPM uses it for a signing key.
func skipKDF(c *cursor) error {
	alg, err := c.uint16("pubkey kdf")
	if err != nil {
		return err
	}
	switch alg {
	case algNull:
		return nil
	case algMGF1, algKDF1A, algKDF2, algKDF1B:
		_, err = hashAlg(c, "pubkey kdf hash")
		return err
	}
	return unsupported("pubkey kdf", c.offset()-2, algName(alg))
}

// parsePoint reads a TPMS_ECC_POINT. TPMs differ in whether a coordinate with
// leading zeros keeps them.
func (p *Public) parsePoint(c *cursor, curve elliptic.Curve) error {
	start := c.offset()
	size := (p.KeyBits + 7) / 8
	point := make([]byte, 1, 1+2*size)
	point[0] = 4 // SEC 1: uncompressed
	empty := true
	for _, axis := range "xy" {
		field := fmt.Sprintf("pubkey %c", axis)
		v, err := c.sized(field)
		if err != nil {
			return err
		}
		if len(v.String) > size {
			return malformed(field, v.offset(), "%d octets, the curve has %d", len(v.String), size)
		}
		empty = empty && v.Empty()
		point = append(point, make([]byte, size-len(v.String))...)
		point = append(point, v.String...)
	}
	if empty {
		return malformed("pubkey point", start, "empty: a template, not a key")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return malformed("pubkey point", start, "not on the curve %s", curve.Params().Name)
	}
	p.Key = key
	return nil
}
