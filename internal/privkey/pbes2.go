package privkey

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509/pkix"
	"fmt"
	"hash"

	"golang.org/x/crypto/scrypt"
)

// A kdf derives an encryption key from a passphrase.
type kdf func(passphrase []byte) ([]byte, error)

// parseEncryptedPKCS8 reads an EncryptedPrivateKeyInfo (RFC 5208) that is
// encrypted with PBES2 (RFC 8018). The standard library does not, and the modules
// that do set no limit to the work that a file can ask for.
func (p *parser) parseEncryptedPKCS8(der []byte) error {
	var file struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	if err := unmarshal("encrypted PKCS #8", der, &file); err != nil {
		return err
	}
	switch id := file.Algorithm.Algorithm.String(); id {
	case "1.2.840.113549.1.5.13": // PBES2
	case "1.2.840.113549.1.12.1.3":
		return encryptedWith("PBE-SHA1-3DES", useOpenSSL)
	default:
		return encryptedWith("the old algorithm "+id, useLegacy)
	}
	var params struct{ KDF, Cipher pkix.AlgorithmIdentifier }
	if err := unmarshal("PBES2", file.Algorithm.Parameters.FullBytes, &params); err != nil {
		return err
	}
	c, iv, err := cipherOf(params.Cipher, len(file.Data))
	if err != nil {
		return err
	}
	derive, err := p.kdfOf(params.KDF, c.keySize)
	if err != nil {
		return err
	}
	return p.unlock(func(passphrase []byte) error {
		key, err := derive(passphrase)
		if err != nil {
			return libraryError("encrypted PKCS #8", err)
		}
		return p.parseDecrypted(c.decrypt(key, iv, file.Data))
	})
}

// A cbc is a block cipher in CBC mode. Sizes are in octets.
type cbc struct {
	keySize, blockSize int
	newBlock           func(key []byte) (cipher.Block, error)
}

// ciphers are the ciphers of PBES2 by their object identifiers.
var ciphers = map[string]cbc{
	"2.16.840.1.101.3.4.1.2":  {16, aes.BlockSize, aes.NewCipher},
	"2.16.840.1.101.3.4.1.22": {24, aes.BlockSize, aes.NewCipher},
	"2.16.840.1.101.3.4.1.42": {32, aes.BlockSize, aes.NewCipher},
	"1.2.840.113549.3.7":      {24, des.BlockSize, des.NewTripleDESCipher},
}

// cipherOf returns the cipher and its initialization vector for size octets.
func cipherOf(algorithm pkix.AlgorithmIdentifier, size int) (c cbc, iv []byte, err error) {
	id := algorithm.Algorithm.String()
	c, ok := ciphers[id]
	if !ok {
		return c, nil, encryptedWith("the cipher "+id, useLegacy)
	}
	err = unmarshal("PBES2", algorithm.Parameters.FullBytes, &iv)
	if err == nil && (len(iv) != c.blockSize || size == 0 || size%c.blockSize != 0) {
		err = malformed("PBES2: the encrypted data or its initialization vector are not blocks of %d octets", c.blockSize)
	}
	return c, iv, err
}

// decrypt returns data without its padding (RFC 8018, section 6.1.1), or nil if
// the padding is wrong.
func (c cbc) decrypt(key, iv, data []byte) []byte {
	b, err := c.newBlock(key)
	if err != nil {
		return nil // does not happen: the key has keySize octets
	}
	plain := make([]byte, len(data))
	cipher.NewCBCDecrypter(b, iv).CryptBlocks(plain, data)
	n := plain[len(plain)-1]
	if n == 0 || int(n) > c.blockSize || !bytes.HasSuffix(plain, bytes.Repeat([]byte{n}, int(n))) {
		return nil
	}
	return plain[:len(plain)-int(n)]
}

func (p *parser) kdfOf(algorithm pkix.AlgorithmIdentifier, size int) (kdf, error) {
	switch id := algorithm.Algorithm.String(); id {
	case "1.2.840.113549.1.5.12":
		return newPBKDF2(algorithm.Parameters.FullBytes, size, p.most.iterations)
	case "1.3.6.1.4.1.11591.4.11":
		return newScrypt(algorithm.Parameters.FullBytes, size, p.most.scrypt)
	default:
		return nil, encryptedWith("the key derivation "+id, useOpenSSL)
	}
}

// hashes are the hashes of HMAC in PBKDF2 by their object identifiers.
var hashes = map[string]func() hash.Hash{
	"":                    sha1.New, // the default
	"1.2.840.113549.2.7":  sha1.New,
	"1.2.840.113549.2.9":  sha256.New,
	"1.2.840.113549.2.10": sha512.New384,
	"1.2.840.113549.2.11": sha512.New,
}

func newPBKDF2(der []byte, size int, most int64) (kdf, error) {
	var params struct {
		Salt       []byte
		Iterations int64
		KeySize    int                      `asn1:"optional"` // the cipher has only one
		PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
	}
	if err := unmarshal("PBKDF2", der, &params); err != nil {
		return nil, err
	}
	id := params.PRF.Algorithm.String()
	newHash, n := hashes[id], params.Iterations
	switch {
	case newHash == nil:
		return nil, encryptedWith("PBKDF2 with "+id, useOpenSSL)
	case n < 1 || n > most:
		return nil, tooMuch("iterations of PBKDF2", n, most, useOpenSSL)
	}
	return func(passphrase []byte) ([]byte, error) {
		return pbkdf2.Key(newHash, string(passphrase), params.Salt, int(n), size)
	}, nil
}

// newScrypt reads the parameters of scrypt (RFC 7914).
func newScrypt(der []byte, size int, most int64) (kdf, error) {
	var params struct {
		Salt    []byte
		N, R, P int64
	}
	if err := unmarshal("scrypt", der, &params); err != nil {
		return nil, err
	}
	n, r, p := params.N, params.R, params.P
	// A large r takes more memory than N*r*p says.
	if n < 2 || r < 1 || p < 1 || n > most || r > 1<<10 || r > most/n || p > most/n/r {
		return nil, &UnsupportedError{
			fmt.Sprintf("key encrypted with scrypt of N = %d, r = %d, p = %d", n, r, p),
			fmt.Sprintf("the limits are %d for N*r*p and 1024 for r", most),
			[]string{wayWeaken},
		}
	}
	return func(passphrase []byte) ([]byte, error) {
		return scrypt.Key(passphrase, params.Salt, int(n), int(r), int(p), size)
	}, nil
}
