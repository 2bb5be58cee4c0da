package privkey

import (
	"crypto/md5"
	"encoding/hex"
	"strings"
)

// The encryption of PEM that OpenSSL wrote before PKCS #8, and ssh-keygen after
// it: RFC 1421's headers, and a key from a single MD5. crypto/x509 has it too,
// deprecated; here it is ten lines over what PKCS #8 needs, and overwrites what
// it decrypted with a wrong passphrase.

func (b *block) encrypted() bool {
	return b.headers["DEK-Info"] != "" || strings.Contains(b.headers["Proc-Type"], "ENCRYPTED")
}

// unlocker checks all that can be without the passphrase.
func (b *block) unlocker(data []byte) (unlocker, error) {
	name, text, found := strings.Cut(b.headers["DEK-Info"], ",")
	if !found {
		return nil, malformed("line %d: encrypted PEM without a DEK-Info that says how", b.line)
	}
	c, err := dekCipher(strings.ToUpper(strings.TrimSpace(name)))
	if err != nil {
		return nil, err
	}
	iv, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(iv) != c.size() {
		return nil, malformed("line %d: the initialization vector of DEK-Info is not %d octets", b.line, c.size())
	}
	if err := c.checkLength(data); err != nil {
		return nil, err
	}
	return func(passphrase []byte) ([]byte, error) {
		key := md5Key(passphrase, iv[:8], c.key)
		defer clear(key)
		return c.decryptDER(key, iv, data)
	}, nil
}

func dekCipher(name string) (blockCipher, error) {
	switch name {
	case "AES-128-CBC":
		return aesCipher(16), nil
	case "AES-192-CBC":
		return aesCipher(24), nil
	case "AES-256-CBC":
		return aesCipher(32), nil
	case "DES-EDE3-CBC":
		return tripleDES(), nil
	case "DES-CBC":
		return singleDES(), nil
	}
	return blockCipher{}, encryptedWith(name, topk8)
}

// md5Key is OpenSSL's EVP_BytesToKey with MD5 and one round.
func md5Key(passphrase, salt []byte, size int) []byte {
	key := make([]byte, 0, size+md5.Size)
	for len(key) < size {
		h := md5.New()
		h.Write(key[max(0, len(key)-md5.Size):])
		h.Write(passphrase)
		h.Write(salt)
		key = h.Sum(key)
	}
	return key[:size]
}

func encryptedWith(what string, ways ...string) error {
	return unsupportedKey("key encrypted with "+what, "this encryption is not read here", ways...)
}
