// Package privkey reads the private keys that people have, in the formats that
// OpenSSH, OpenSSL and what was made after them have written: OpenSSH's own,
// PKCS #8, PKCS #1 and SEC 1, as PEM or as bare DER, encrypted or not.
//
// It knows bytes and no TPM. What comes out of Parse has been checked whole:
// the numbers fit each other, and the public part the private one. Keys that
// SSH or a TPM has no use for are told from damaged files, and refused by name
// with the ways on.
//
// An encrypted file says itself how much work its passphrase is to be. The
// limits, of some seconds and less than 1 GiB of memory, are
//
//	bcrypt (OpenSSH)    512 rounds             ssh-keygen takes 16 or 24
//	PBKDF2 (PKCS #8)    10,000,000 iterations  openssl takes 2048
//	scrypt (PKCS #8)    N*r*p of 2^22, 512 MiB openssl takes 2^17, and no more
//	                                           than 2^18 itself
package privkey

import (
	"bytes"
	"crypto"
	"errors"
	"io/fs"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// maxFile is the longest file that is read, in octets. An RSA key of 16384 bits
// has a fifth of it.
const maxFile = 64 << 10

// Key is a private key that was read, and what its file says about it.
type Key struct {
	// Private is an *ecdsa.PrivateKey on P-256, P-384 or P-521, or an
	// *rsa.PrivateKey of 1024 to 8192 bits with two primes of the same length
	// and an exponent of at most 31 bits. Both are complete and checked.
	Private crypto.PrivateKey
	// Comment is that of an OpenSSH file, in one line and without control
	// characters; other formats have none.
	Comment string
	// Encrypted is whether a passphrase was needed.
	Encrypted bool
}

// Parse reads the one private key in data: PEM with any text, certificates or
// public keys around it, or DER.
//
// If the key is encrypted, passphrase is called for it, once, and after all that
// can be checked without: kinds of keys that are of no use, damage outside of
// the encrypted part, too much work. The slice stays the caller's: it is
// neither kept nor changed. An error of passphrase is returned as it is; a nil
// passphrase is as one that knows none.
//
// Every other error wraps one of ErrFormat, ErrPublic, ErrTPM and ErrPassphrase,
// or is an *UnsupportedError.
func Parse(data []byte, passphrase func() ([]byte, error)) (*Key, error) {
	return parse(data, passphrase, effort{rounds: maxRounds, iterations: maxIterations, scrypt: maxScrypt})
}

func parse(data []byte, passphrase func() ([]byte, error), most effort) (*Key, error) {
	switch {
	case len(data) > maxFile:
		return nil, malformed("longer than %d octets, which no private key is", maxFile)
	case len(bytes.TrimSpace(data)) == 0:
		return nil, malformed("the file is empty")
	}
	p := &parser{passphrase: passphrase, most: most}
	if err := p.parse(data); err != nil {
		return nil, err
	}
	return &p.key, nil
}

// parser collects the key of one file.
type parser struct {
	passphrase func() ([]byte, error)
	most       effort
	key        Key
}

// effort is how much work a passphrase may be.
type effort struct {
	rounds     uint32 // of bcrypt
	iterations uint64 // of PBKDF2
	scrypt     uint64 // N*r*p; a unit is 128 octets of memory
}

// The limits that Parse has. Each is some seconds.
const (
	maxRounds     = 512
	maxIterations = 10_000_000
	maxScrypt     = 1 << 22
	// maxScryptBlock is the largest r of scrypt: it takes buffers of its own.
	maxScryptBlock = 1 << 10
)

func (p *parser) parse(data []byte) error {
	text, err := plainText(data)
	if err != nil {
		return err
	}
	if text == nil {
		return p.parseBinary(data)
	}
	defer clear(text)
	return p.parseText(text)
}

// unlocker decrypts what it was made for. It gives ErrPassphrase if that fails.
type unlocker func(passphrase []byte) ([]byte, error)

// unlock asks for the passphrase. The caller overwrites the result.
func (p *parser) unlock(decrypt unlocker) ([]byte, error) {
	p.key.Encrypted = true
	if p.passphrase == nil {
		return nil, errNoPassphrase
	}
	pass, err := p.passphrase()
	if err != nil {
		return nil, err
	}
	return decrypt(pass)
}

// ReadFile returns the content of the file at path for Parse, through symbolic
// links. It never blocks on what is not a regular file, for which the error
// wraps keyfile.ErrNotRegular, nor reads more than Parse takes: a longer file
// gives ErrFormat. All errors are *fs.PathError. The content is the caller's to
// overwrite.
func ReadFile(path string) ([]byte, error) {
	const op = "read private key"
	data, err := keyfile.ReadRegular(path, maxFile+1)
	if err != nil {
		var p *fs.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return nil, &fs.PathError{Op: op, Path: path, Err: err}
	}
	if len(data) > maxFile {
		clear(data)
		return nil, &fs.PathError{Op: op, Path: path, Err: malformed("longer than %d octets, which no private key is", maxFile)}
	}
	return data, nil
}
