// Package privkey reads private keys written by other programs: OpenSSH's own
// format, PKCS #8, PKCS #1 and SEC 1, as PEM or as bare DER, encrypted or not.
//
// It works on bytes and never uses a TPM. x/crypto/ssh and crypto/x509 read the
// keys. This package decrypts PKCS #8, and adds the checks that the libraries
// leave out: that the public half matches the private half, and that nothing
// follows the key. Keys that a TPM cannot use for SSH are refused by name.
//
// An encrypted file states how much work its passphrase takes. The limits allow
// for some seconds and less than 1 GiB of memory:
//
//	bcrypt (OpenSSH)    512 rounds              ssh-keygen uses 16 or 24
//	PBKDF2 (PKCS #8)    10,000,000 iterations   openssl uses 2048
//	scrypt (PKCS #8)    N*r*p of 2^22, 512 MiB  openssl uses 2^17
package privkey

import (
	"bytes"
	"crypto"
	"fmt"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// maxFile is the size of the largest file that is read: five RSA keys of 16384 bits.
const maxFile = 64 << 10

// A Key is a private key, and what its file says about it.
type Key struct {
	// Private is an *ecdsa.PrivateKey on P-256, P-384 or P-521, or an
	// *rsa.PrivateKey of 1024 to 8192 bits with two primes of the same length
	// and an exponent of at most 31 bits. All its numbers have been checked.
	Private crypto.PrivateKey
	// Comment is a single line without control characters. Only OpenSSH's
	// format has comments. That of an encrypted key is not read: x/crypto/ssh
	// decrypts it, and returns the key alone.
	Comment   string
	Encrypted bool // the file needed a passphrase
}

// An effort limits the work for one passphrase.
type effort struct {
	rounds     uint32 // of bcrypt
	iterations int64  // of PBKDF2
	scrypt     int64  // N*r*p, each unit of which is 128 octets of memory
}

// Parse reads the only private key in data, which is DER, or PEM with any text,
// certificates or public keys around it.
//
// If the key is encrypted, Parse calls passphrase once, after it has refused
// what it can refuse without: useless kinds of keys, damage outside the
// encrypted part, and too much work. Parse neither keeps nor changes the slice,
// and returns an error of passphrase as it is. If passphrase is nil, encrypted
// keys give ErrPassphrase.
//
// Every other error wraps one of ErrFormat, ErrPublic, ErrTPM and ErrPassphrase,
// or is an *UnsupportedError.
func Parse(data []byte, passphrase func() ([]byte, error)) (*Key, error) {
	p := &parser{passphrase: passphrase, most: effort{rounds: 512, iterations: 10_000_000, scrypt: 1 << 22}}
	if err := p.parse(data); err != nil {
		return nil, err
	}
	return &p.key, nil
}

// A parser collects the key of one file.
type parser struct {
	passphrase func() ([]byte, error)
	most       effort
	key        Key
}

func (p *parser) parse(data []byte) error {
	if len(data) > maxFile {
		return malformed("the file is longer than %d octets, and no private key is", maxFile)
	}
	text := plainText(data)
	switch list := blocks(text); {
	case list != nil:
		return p.parseBlocks(list)
	case bytes.HasPrefix(data, []byte{0x30}): // a SEQUENCE
		return p.parseDER(data)
	}
	return notPEM(text)
}

// unlock asks for the passphrase and decrypts with it.
func (p *parser) unlock(decrypt func(passphrase []byte) error) error {
	p.key.Encrypted = true
	if p.passphrase == nil {
		return fmt.Errorf("%w: the key is encrypted, and no passphrase was given", ErrPassphrase)
	}
	pass, err := p.passphrase()
	if err != nil {
		return err
	}
	return decrypt(pass)
}

// ReadFile returns the content of the file at path, for Parse. It follows
// symbolic links. It never blocks on a pipe or a device, for which the error
// wraps keyfile.ErrNotRegular, and never reads more than it takes Parse to see
// that the file is too long. All errors are *fs.PathError.
func ReadFile(path string) ([]byte, error) { return keyfile.ReadRegular(path, maxFile+1) }
