package privkey

import (
	"errors"
	"fmt"
)

// ErrFormat is wrapped by the errors for what is damaged, inconsistent, or no
// key at all.
var ErrFormat = errors.New("malformed private key")

// ErrPassphrase is wrapped by the error for a passphrase that is wrong. Where
// the encryption has no checksum, damage to the encrypted part looks the same.
var ErrPassphrase = errors.New("wrong passphrase")

// ErrPublic is wrapped by the error for a public key or a certificate without a
// private key.
var ErrPublic = errors.New("a public key, not a private one")

// ErrTPM is wrapped by the error for a file whose key is wrapped by a TPM
// already.
var ErrTPM = errors.New("already a TPM key file")

var errNoPassphrase = fmt.Errorf("%w: the key is encrypted, and no passphrase was given", ErrPassphrase)

// UnsupportedError is the refusal of a key, or of a file, that may well be
// sound.
type UnsupportedError struct {
	// Kind says what it is: "Ed25519 key".
	Kind string
	// Why is the reason for the refusal.
	Why string
	// Ways are what the user may do instead, one sentence or command each; FILE
	// and NEW stand in them for paths.
	Ways []string
}

// Error has Kind and Why.
func (e *UnsupportedError) Error() string { return e.Kind + ": " + e.Why }

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

const (
	wayNew     = "make an ECDSA key in the TPM, and put its public key beside the old one: tpm-agent keygen"
	wayAdd     = "keep it as a software key, which the agent holds in memory: "
	wayConvert = "convert a copy: "
	// topk8 writes PBES2, whatever it reads.
	topk8 = wayConvert + "openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW"
)

func unsupportedKey(kind, why string, ways ...string) error {
	return &UnsupportedError{kind, why, ways}
}

// useless are the kinds of keys that cannot go into a TPM for SSH.
func useless(kind, why string) error {
	return unsupportedKey(kind, why, wayNew)
}

// The commands that add an Ed25519 key, by the format of its file.
const (
	addOpenSSH = "ssh-add FILE"
	addPKCS8   = "ssh-add FILE (as PEM, with OpenSSH 9.6 or later)"
	addPuTTY   = "puttygen FILE -O private-openssh -o NEW && ssh-add NEW"
)

func ed25519Key(add string) error {
	return unsupportedKey("Ed25519 key", "no TPM has Ed25519", wayAdd+add, wayNew)
}

func dsaKey() error {
	return useless("DSA key", "no TPM has DSA, and OpenSSH has given it up")
}

func fidoKey(typ string) error {
	return unsupportedKey("FIDO key ("+typ+")",
		"it is in hardware already, the file only says in which",
		"go on using it through an agent behind this one: tpm-agent serve --upstream SOCKET", wayNew)
}

func curveKey(name string) error {
	return useless("EC key on "+name, "SSH has ECDSA with P-256, P-384 and P-521 only")
}

func primesKey() error {
	return useless("RSA key of more than two primes", "a TPM takes RSA keys of two primes only")
}

// wayWeaken is for what openssl does not read either.
const wayWeaken = "have the program that wrote it write it again with less work, or without a passphrase"

// tooMuch refuses a passphrase that would be too much work.
func tooMuch(what string, limit uint64, ways ...string) error {
	return unsupportedKey("key encrypted with "+what,
		fmt.Sprintf("at most %d are computed, as more could take for ever", limit), ways...)
}

// topk8Legacy is for what OpenSSL 3 keeps in a provider of its own.
const topk8Legacy = wayConvert + "openssl pkcs8 -provider legacy -provider default -topk8 -v2 aes-256-cbc -in FILE -out NEW"
