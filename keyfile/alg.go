package keyfile

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"fmt"
	"hash"
)

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
