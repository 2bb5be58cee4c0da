package keyfile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"math"
	"math/big"
)

// Attributes is TPMA_OBJECT (TPM 2.0 Part 2, 8.3).
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

// Public is a TPMT_PUBLIC (TPM 2.0 Part 2, 12.2.4) of an RSA or ECDSA
// key. All of it is checked.
type Public struct {
	Type       uint16 // TPM_ALG_ID: 0x0001 RSA, 0x0023 ECC
	NameAlg    uint16 // TPM_ALG_ID of a hash
	Attributes Attributes
	AuthPolicy []byte // the policy digest, empty or of NameAlg's size
	Scheme     uint16 // TPM_ALG_ID, 0x0010 (TPM_ALG_NULL) for any
	SchemeHash uint16 // TPM_ALG_ID, 0x0010 when Scheme has no hash
	Curve      uint16 // TPM_ECC_CURVE, 0 for RSA
	KeyBits    int    // of the modulus, or of the curve's field
	Exponent   uint32 // of RSA; the TPM's 0 is 65537 here
	// Key is a *rsa.PublicKey or an *ecdsa.PublicKey on P-256, P-384 or P-521.
	Key crypto.PublicKey

	name []byte
}

// Name returns the TPM's Name of the object: nameAlg || H_nameAlg(TPMT_PUBLIC)
// (TPM 2.0 Part 1, 16).
func (p *Public) Name() []byte { return bytes.Clone(p.name) }

// ParsePublic reads a TPM2B_PUBLIC, its size included, and nothing after it. Errors are
// those of [Parse].
func ParsePublic(tpm2b []byte) (*Public, error) {
	c := newCursor(tpm2b)
	p := parsePublic(c)
	return p, *c.err
}

// parsePublic returns nil if there is an error.
func parsePublic(c cursor) *Public {
	c.fail(checkTPM2B("pubkey", c.String, c.offset()))
	area := c.sized("pubkey")
	whole := area.String
	p := new(Public)
	p.parseHead(&area)
	switch p.Type {
	case algRSA:
		p.parseRSA(&area)
	case algECC:
		p.parseECC(&area)
	}
	if area.done("pubkey"); *c.err != nil {
		return nil
	}
	h := newHash(p.NameAlg)
	h.Write(whole)
	p.name = h.Sum(binary.BigEndian.AppendUint16(nil, p.NameAlg))
	return p
}

// parseHead reads what all types of object have in common. It refuses the types that no
// SSH key can have, because the package does not know the rest of them.
func (p *Public) parseHead(c *cursor) {
	start := c.offset()
	p.Type = c.uint16("pubkey type")
	switch p.Type {
	case algRSA, algECC:
	case algKeyedHash:
		c.fail(unsupported("pubkey type", start, "keyed hash: an HMAC key or sealed data"))
	case algSymCipher:
		c.fail(unsupported("pubkey type", start, "symmetric cipher"))
	default:
		c.malformed("pubkey type", start, "there are no objects of %s", algName(p.Type))
	}
	p.NameAlg = c.uint16("pubkey nameAlg")
	h := newHash(p.NameAlg)
	if h == nil {
		c.fail(unsupported("pubkey nameAlg", c.offset()-2, algName(p.NameAlg)))
		return
	}
	p.Attributes = Attributes(c.uint32("pubkey attributes"))
	policy := c.sized("pubkey authPolicy")
	if n := len(policy.String); n != 0 && n != h.Size() {
		c.malformed("pubkey authPolicy", policy.offset(), "%d octets, the digest has %d", n, h.Size())
	}
	p.AuthPolicy = bytes.Clone(policy.String)
	// A TPMT_SYM_DEF_OBJECT+: storage keys have one.
	switch alg := c.uint16("pubkey symmetric"); alg {
	case algNull:
	case algTDES, algAES, algSM4, algCamellia:
		c.uint16("pubkey symmetric keyBits")
		c.uint16("pubkey symmetric mode")
	default:
		c.fail(unsupported("pubkey symmetric", c.offset()-2, algName(alg)))
	}
}

// parseScheme reads a TPMT_RSA_SCHEME+ or TPMT_ECC_SCHEME+.
func (p *Public) parseScheme(c *cursor) {
	start := c.offset()
	p.Scheme, p.SchemeHash = c.uint16("pubkey scheme"), algNull
	forRSA := false
	switch p.Scheme {
	case algNull:
		return
	case algRSAES, algRSASSA, algRSAPSS, algOAEP:
		forRSA = true
	case algECDSA, algECDH, algECDAA, algSM2, algECSchnorr, algECMQV:
	default:
		c.fail(unsupported("pubkey scheme", start, algName(p.Scheme)))
	}
	if forRSA != (p.Type == algRSA) {
		c.malformed("pubkey scheme", start, "%s is of another type of key", algName(p.Scheme))
	}
	if p.Scheme != algRSAES {
		p.SchemeHash = hashAlg(c, "pubkey scheme hash")
	}
	if p.Scheme == algECDAA {
		c.uint16("pubkey scheme count")
	}
}

// hashAlg reads the TPM_ALG_ID of a hash. Go need not have the hash.
func hashAlg(c *cursor, field string) uint16 {
	alg := c.uint16(field)
	if alg != algSM3 && newHash(alg) == nil {
		c.fail(unsupported(field, c.offset()-2, algName(alg)))
	}
	return alg
}

// parseRSA reads TPMS_RSA_PARMS, without the symmetric part, and the modulus.
func (p *Public) parseRSA(c *cursor) {
	p.parseScheme(c)
	start := c.offset()
	bits := c.uint16("pubkey keyBits")
	if bits%8 != 0 || bits < 1024 {
		c.malformed("pubkey keyBits", start, "no RSA key has %d bits", bits)
	}
	p.KeyBits = int(bits)
	start = c.offset()
	p.Exponent = c.uint32("pubkey exponent")
	if p.Exponent == 0 {
		p.Exponent = 65537
	}
	if p.Exponent < 3 || p.Exponent%2 == 0 || p.Exponent > math.MaxInt32 {
		c.malformed("pubkey exponent", start, "no RSA key has the exponent %d", p.Exponent)
	}
	v := c.sized("pubkey modulus")
	n := new(big.Int).SetBytes(v.String)
	switch {
	case len(v.String) == 0:
		c.malformed("pubkey modulus", v.offset(), "empty: a template, not a key")
	case len(v.String) != p.KeyBits/8 || n.BitLen() != p.KeyBits:
		c.malformed("pubkey modulus", v.offset(), "%d bits in %d octets, keyBits says %d", n.BitLen(), len(v.String), p.KeyBits)
	case n.Bit(0) == 0:
		c.malformed("pubkey modulus", v.offset(), "even")
	}
	p.Key = &rsa.PublicKey{N: n, E: int(p.Exponent)}
}

// parseECC reads TPMS_ECC_PARMS, without the symmetric part, and TPMS_ECC_POINT.
func (p *Public) parseECC(c *cursor) {
	p.parseScheme(c)
	p.Curve = c.uint16("pubkey curve")
	curves := map[uint16]elliptic.Curve{curveP256: elliptic.P256(), curveP384: elliptic.P384(), curveP521: elliptic.P521()}
	curve := curves[p.Curve]
	if curve == nil {
		c.fail(unsupported("pubkey curve", c.offset()-2, curveName(p.Curve)))
		return
	}
	p.KeyBits = curve.Params().BitSize
	// A TPMT_KDF_SCHEME+. No TPM uses it for a signing key.
	switch alg := c.uint16("pubkey kdf"); alg {
	case algNull:
	case algMGF1, algKDF1A, algKDF2, algKDF1B:
		hashAlg(c, "pubkey kdf hash")
	default:
		c.fail(unsupported("pubkey kdf", c.offset()-2, algName(alg)))
	}
	// Some TPMs drop the leading zeros of a coordinate.
	start := c.offset()
	size := (p.KeyBits + 7) / 8
	point := []byte{4} // SEC 1: uncompressed
	empty := true
	for _, axis := range "xy" {
		field := fmt.Sprintf("pubkey %c", axis)
		v := c.sized(field)
		if len(v.String) > size {
			c.malformed(field, v.offset(), "%d octets, the curve has %d", len(v.String), size)
			return
		}
		empty = empty && v.Empty()
		point = append(point, make([]byte, size-len(v.String))...)
		point = append(point, v.String...)
	}
	if empty {
		c.malformed("pubkey point", start, "empty: a template, not a key")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		c.malformed("pubkey point", start, "not on the curve %s", curve.Params().Name)
		return
	}
	p.Key = key
}

// Algorithm identifiers, TPM_ALG_ID (TCG Algorithm Registry).
const (
	algRSA       uint16 = 0x0001
	algTDES      uint16 = 0x0003
	algSHA1      uint16 = 0x0004
	algAES       uint16 = 0x0006
	algMGF1      uint16 = 0x0007
	algKeyedHash uint16 = 0x0008
	algSHA256    uint16 = 0x000b
	algSHA384    uint16 = 0x000c
	algSHA512    uint16 = 0x000d
	algNull      uint16 = 0x0010
	algSM3       uint16 = 0x0012
	algSM4       uint16 = 0x0013
	algRSASSA    uint16 = 0x0014
	algRSAES     uint16 = 0x0015
	algRSAPSS    uint16 = 0x0016
	algOAEP      uint16 = 0x0017
	algECDSA     uint16 = 0x0018
	algECDH      uint16 = 0x0019
	algECDAA     uint16 = 0x001a
	algSM2       uint16 = 0x001b
	algECSchnorr uint16 = 0x001c
	algECMQV     uint16 = 0x001d
	algKDF1A     uint16 = 0x0020 // KDF1_SP800_56A
	algKDF2      uint16 = 0x0021
	algKDF1B     uint16 = 0x0022 // KDF1_SP800_108
	algECC       uint16 = 0x0023
	algSymCipher uint16 = 0x0025
	algCamellia  uint16 = 0x0026
	algSHA3_256  uint16 = 0x0027
	algSHA3_384  uint16 = 0x0028
	algSHA3_512  uint16 = 0x0029
)

// Curve identifiers, TPM_ECC_CURVE.
const (
	curveP256 uint16 = 0x0003
	curveP384 uint16 = 0x0004
	curveP521 uint16 = 0x0005
)

// curveNames names the curves that no ecdsa-sha2 key of SSH may have.
var curveNames = map[uint16]string{
	0x0001: "NIST P-192",
	0x0002: "NIST P-224",
	0x0010: "BN P-256",
	0x0011: "BN P-638",
	0x0020: "SM2 P-256",
	0x0030: "brainpoolP256r1",
	0x0031: "brainpoolP384r1",
	0x0032: "brainpoolP512r1",
	0x0040: "Curve25519",
	0x0041: "Curve448",
}

func curveName(id uint16) string {
	if name := curveNames[id]; name != "" {
		return "curve " + name
	}
	return fmt.Sprintf("curve %#04x", id)
}

func algName(id uint16) string { return fmt.Sprintf("algorithm %#04x", id) }

// newHash returns the hash of a Name, nil if Go does not have it.
func newHash(alg uint16) hash.Hash {
	switch alg {
	case algSHA1:
		return sha1.New()
	case algSHA256:
		return sha256.New()
	case algSHA384:
		return sha512.New384()
	case algSHA512:
		return sha512.New()
	case algSHA3_256:
		return sha3.New256()
	case algSHA3_384:
		return sha3.New384()
	case algSHA3_512:
		return sha3.New512()
	}
	return nil
}
