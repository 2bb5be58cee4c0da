package privkey

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rsa"

	"golang.org/x/crypto/chacha20"
	//lint:ignore SA1019 OpenSSH's cipher is made of it, and no other package has it alone
	"golang.org/x/crypto/poly1305"
	"golang.org/x/crypto/ssh"
)

// opensshCipher is a cipher of openssh-key-v1; lengths are in octets. open is
// nil for none.
type opensshCipher struct {
	block, key, iv, tag int
	open                func(key, iv, data, tag []byte) ([]byte, error)
}

// opensshCipherOf knows all that ssh-keygen -Z takes or took: x/crypto/ssh has
// two of them, and keeps the comment to itself.
func opensshCipherOf(name string) (opensshCipher, error) {
	switch name {
	case "none":
		return opensshCipher{block: 8}, nil
	case "aes128-ctr":
		return ctr(16), nil
	case "aes192-ctr":
		return ctr(24), nil
	case "aes256-ctr":
		return ctr(32), nil
	case "aes128-cbc":
		return cbc(aesCipher(16)), nil
	case "aes192-cbc":
		return cbc(aesCipher(24)), nil
	case "aes256-cbc", "rijndael-cbc@lysator.liu.se":
		return cbc(aesCipher(32)), nil
	case "3des-cbc":
		return cbc(tripleDES()), nil
	case "aes128-gcm@openssh.com":
		return gcm(16), nil
	case "aes256-gcm@openssh.com":
		return gcm(32), nil
	case "chacha20-poly1305@openssh.com":
		return opensshCipher{block: 8, key: 64, tag: poly1305.TagSize, open: openChaCha}, nil
	}
	return opensshCipher{}, encryptedWith("the cipher "+quoted(name), wayRekey)
}

func ctr(key int) opensshCipher {
	return opensshCipher{block: aes.BlockSize, key: key, iv: aes.BlockSize, open: func(key, iv, data, _ []byte) ([]byte, error) {
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		plain := make([]byte, len(data))
		cipher.NewCTR(b, iv).XORKeyStream(plain, data)
		return plain, nil
	}}
}

func cbc(c blockCipher) opensshCipher {
	return opensshCipher{block: c.size(), key: c.key, iv: c.size(), open: func(key, iv, data, _ []byte) ([]byte, error) {
		return c.decryptCBC(key, iv, data)
	}}
}

func gcm(key int) opensshCipher {
	return opensshCipher{block: aes.BlockSize, key: key, iv: 12, tag: 16, open: func(key, iv, data, tag []byte) ([]byte, error) {
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCM(b)
		if err != nil {
			return nil, err
		}
		sealed := append(append(make([]byte, 0, len(data)+len(tag)), data...), tag...)
		plain, err := aead.Open(nil, iv, sealed, nil)
		if err != nil {
			return nil, ErrPassphrase
		}
		return plain, nil
	}}
}

// openChaCha is chacha20-poly1305@openssh.com of the packet with sequence
// number 0, without a length in front: of the two keys only the first is used.
// The key of the checksum is the first block of the key stream.
func openChaCha(key, _, data, tag []byte) ([]byte, error) {
	stream, err := chacha20.NewUnauthenticatedCipher(key[:32], make([]byte, chacha20.NonceSize))
	if err != nil {
		return nil, err
	}
	var sumKey [32]byte
	defer clear(sumKey[:])
	stream.XORKeyStream(sumKey[:], sumKey[:])
	if !poly1305.Verify((*[poly1305.TagSize]byte)(tag), data, &sumKey) {
		return nil, ErrPassphrase
	}
	stream.SetCounter(1)
	plain := make([]byte, len(data))
	stream.XORKeyStream(plain, data)
	return plain, nil
}

// publicBlob is the public key as SSH has it.
func publicBlob(private crypto.PrivateKey) []byte {
	var public crypto.PublicKey
	switch key := private.(type) {
	case *rsa.PrivateKey:
		public = &key.PublicKey
	case *ecdsa.PrivateKey:
		public = &key.PublicKey
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil
	}
	return key.Marshal()
}
