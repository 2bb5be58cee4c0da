package privkey

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"math/bits"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/scrypt"
)

const (
	oidPBES2  = "1.2.840.113549.1.5.13"
	oidPBKDF2 = "1.2.840.113549.1.5.12"
	oidScrypt = "1.3.6.1.4.1.11591.4.11"
)

// kdf makes a key of a passphrase.
type kdf func(passphrase []byte) ([]byte, error)

// parseEncryptedPKCS8 reads an EncryptedPrivateKeyInfo (RFC 5208) whose
// encryption is PBES2 (RFC 8018, RFC 7914).
func (p *parser) parseEncryptedPKCS8(der []byte) error {
	s, err := sequence("encrypted PKCS #8", der)
	if err != nil {
		return err
	}
	oid, params, ok := algorithm(&s)
	var data cryptobyte.String
	if !ok || !s.ReadASN1(&data, asn1.OCTET_STRING) || !s.Empty() {
		return malformed("encrypted PKCS #8: its two fields cannot be read")
	}
	if oid != oidPBES2 {
		return oldPBE(oid)
	}
	decrypt, err := p.pbes2(params, data)
	if err != nil {
		return err
	}
	plain, err := p.unlock(decrypt)
	if err != nil {
		return err
	}
	defer clear(plain)
	return p.parsePKCS8(plain)
}

// pbes2 checks all that can be without the passphrase.
func (p *parser) pbes2(params cryptobyte.String, data []byte) (unlocker, error) {
	var s cryptobyte.String
	if !params.ReadASN1(&s, asn1.SEQUENCE) {
		return nil, malformed("PBES2: the parameters cannot be read")
	}
	kdfOID, kdfParams, ok := algorithm(&s)
	cipherOID, cipherParams, also := algorithm(&s)
	if !ok || !also || !s.Empty() {
		return nil, malformed("PBES2: the parameters cannot be read")
	}
	c, err := pbes2Cipher(cipherOID)
	if err != nil {
		return nil, err
	}
	var iv cryptobyte.String
	if !cipherParams.ReadASN1(&iv, asn1.OCTET_STRING) || len(iv) != c.size() {
		return nil, malformed("PBES2: the initialization vector is not %d octets", c.size())
	}
	if err := c.checkLength(data); err != nil {
		return nil, err
	}
	derive, err := p.pbes2KDF(kdfOID, kdfParams, c.key)
	if err != nil {
		return nil, err
	}
	return func(passphrase []byte) ([]byte, error) {
		key, err := derive(passphrase)
		if err != nil {
			return nil, fmt.Errorf("making the key of the passphrase: %w", err)
		}
		defer clear(key)
		return c.decryptDER(key, iv, data)
	}, nil
}

func pbes2Cipher(oid string) (blockCipher, error) {
	switch oid {
	case "2.16.840.1.101.3.4.1.2":
		return aesCipher(16), nil
	case "2.16.840.1.101.3.4.1.22":
		return aesCipher(24), nil
	case "2.16.840.1.101.3.4.1.42":
		return aesCipher(32), nil
	case "1.2.840.113549.3.7":
		return tripleDES(), nil
	case "1.2.840.113549.3.2":
		return blockCipher{}, encryptedWith("RC2 (PBES2)", topk8Legacy)
	case "1.3.14.3.2.7":
		return blockCipher{}, encryptedWith("DES (PBES2)", topk8Legacy)
	}
	return blockCipher{}, encryptedWith("the cipher "+oid+" (PBES2)", topk8)
}

func (p *parser) pbes2KDF(oid string, params cryptobyte.String, size int) (kdf, error) {
	var s cryptobyte.String
	if !params.ReadASN1(&s, asn1.SEQUENCE) {
		return nil, malformed("PBES2: the parameters of the key derivation cannot be read")
	}
	switch oid {
	case oidPBKDF2:
		return pbkdf2KDF(s, size, p.most.iterations)
	case oidScrypt:
		return scryptKDF(s, size, p.most.scrypt)
	}
	return nil, encryptedWith("the key derivation "+oid+" (PBES2)", topk8)
}

func pbkdf2KDF(s cryptobyte.String, size int, most uint64) (kdf, error) {
	var salt cryptobyte.String
	var iterations uint64
	if !s.ReadASN1(&salt, asn1.OCTET_STRING) || !s.ReadASN1Integer(&iterations) || !rightLength(&s, size) {
		return nil, malformed("PBKDF2: the parameters cannot be read")
	}
	prf := "1.2.840.113549.2.7"
	if !s.Empty() {
		var ok bool
		if prf, _, ok = algorithm(&s); !ok || !s.Empty() {
			return nil, malformed("PBKDF2: the hash cannot be read")
		}
	}
	newHash := prfHash(prf)
	switch {
	case newHash == nil:
		return nil, encryptedWith("PBKDF2 with "+prf, topk8)
	case iterations == 0:
		return nil, malformed("PBKDF2: no iterations")
	case iterations > most:
		return nil, tooMuch(fmt.Sprintf("%d iterations of PBKDF2", iterations), most, topk8)
	}
	return func(passphrase []byte) ([]byte, error) {
		return pbkdf2.Key(newHash, string(passphrase), salt, int(iterations), size)
	}, nil
}

// rightLength skips the length of the key, which is optional and, as the
// cipher's has only one, says nothing.
func rightLength(s *cryptobyte.String, size int) bool {
	if !s.PeekASN1Tag(asn1.INTEGER) {
		return true
	}
	var n int64
	return s.ReadASN1Integer(&n) && n == int64(size)
}

// prfHash returns the hash of an HMAC by its object identifier, or nil.
func prfHash(oid string) func() hash.Hash {
	switch oid {
	case "1.2.840.113549.2.7":
		return sha1.New
	case "1.2.840.113549.2.8":
		return sha256.New224
	case "1.2.840.113549.2.9":
		return sha256.New
	case "1.2.840.113549.2.10":
		return sha512.New384
	case "1.2.840.113549.2.11":
		return sha512.New
	case "1.2.840.113549.2.12":
		return sha512.New512_224
	case "1.2.840.113549.2.13":
		return sha512.New512_256
	}
	return nil
}

func scryptKDF(s cryptobyte.String, size int, most uint64) (kdf, error) {
	var salt cryptobyte.String
	var n, r, p uint64
	if !s.ReadASN1(&salt, asn1.OCTET_STRING) || !s.ReadASN1Integer(&n) || !s.ReadASN1Integer(&r) || !s.ReadASN1Integer(&p) ||
		!rightLength(&s, size) || !s.Empty() {
		return nil, malformed("scrypt: the parameters cannot be read")
	}
	switch {
	case n < 2 || bits.OnesCount64(n) != 1 || r == 0 || p == 0:
		return nil, malformed("scrypt: the parameters N = %d, r = %d, p = %d are none", n, r, p)
	case r > maxScryptBlock:
		return nil, tooMuch(fmt.Sprintf("scrypt of r = %d", r), maxScryptBlock, wayWeaken)
	case n > most || r > most/n || p > most/n/r:
		return nil, tooMuch(fmt.Sprintf("scrypt of N*r*p = %d*%d*%d", n, r, p), most, wayWeaken)
	}
	return func(passphrase []byte) ([]byte, error) {
		return scrypt.Key(passphrase, salt, int(n), int(r), int(p), size)
	}, nil
}

// oldPBE names the encryptions before PBES2, which are as weak as their time.
func oldPBE(oid string) error {
	names := map[string]string{
		"1.2.840.113549.1.5.1":    "PBE-MD2-DES",
		"1.2.840.113549.1.5.3":    "PBE-MD5-DES",
		"1.2.840.113549.1.5.4":    "PBE-MD2-RC2-64",
		"1.2.840.113549.1.5.6":    "PBE-MD5-RC2-64",
		"1.2.840.113549.1.5.10":   "PBE-SHA1-DES",
		"1.2.840.113549.1.5.11":   "PBE-SHA1-RC2-64",
		"1.2.840.113549.1.12.1.1": "PBE-SHA1-RC4-128",
		"1.2.840.113549.1.12.1.2": "PBE-SHA1-RC4-40",
		"1.2.840.113549.1.12.1.5": "PBE-SHA1-RC2-128",
		"1.2.840.113549.1.12.1.6": "PBE-SHA1-RC2-40",
	}
	switch name := names[oid]; {
	case oid == "1.2.840.113549.1.12.1.3":
		return encryptedWith("PBE-SHA1-3DES", topk8)
	case oid == "1.2.840.113549.1.12.1.4":
		return encryptedWith("PBE-SHA1-2DES", topk8)
	case name != "":
		return encryptedWith(name, topk8Legacy)
	}
	return encryptedWith("the algorithm "+oid, topk8)
}
