package privkey

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
)

// blockCipher is a cipher and what it needs.
type blockCipher struct {
	name     string
	key      int // octets
	newBlock func(key []byte) (cipher.Block, error)
}

// size is the length of a block and of the initialization vector, in octets.
func (c blockCipher) size() int {
	if c.name == "3DES" || c.name == "DES" {
		return des.BlockSize
	}
	return aes.BlockSize
}

func aesCipher(key int) blockCipher { return blockCipher{"AES", key, aes.NewCipher} }

func tripleDES() blockCipher { return blockCipher{"3DES", 24, des.NewTripleDESCipher} }

func singleDES() blockCipher { return blockCipher{"DES", 8, des.NewCipher} }

// checkLength is what can be said of encrypted octets without a key.
func (c blockCipher) checkLength(data []byte) error {
	if len(data) == 0 || len(data)%c.size() != 0 {
		return malformed("%d encrypted octets are no number of blocks of %d", len(data), c.size())
	}
	return nil
}

// decryptCBC decrypts data, whose length is checked, into a buffer of its own.
func (c blockCipher) decryptCBC(key, iv, data []byte) ([]byte, error) {
	b, err := c.newBlock(key)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(data))
	cipher.NewCBCDecrypter(b, iv).CryptBlocks(plain, data)
	return plain, nil
}

// decryptDER decrypts DER that was padded as RFC 8018 has it, section 6.1.1.
// What comes out is either plausible, or the key is not the right one.
func (c blockCipher) decryptDER(key, iv, data []byte) ([]byte, error) {
	plain, err := c.decryptCBC(key, iv, data)
	if err != nil {
		return nil, err
	}
	n := int(plain[len(plain)-1])
	if n >= 1 && n <= c.size() {
		der := plain[:len(plain)-n]
		if bytes.Equal(plain[len(der):], bytes.Repeat([]byte{byte(n)}, n)) && plausible(der) {
			return der, nil
		}
	}
	clear(plain)
	return nil, ErrPassphrase
}
