package privkey

import (
	"errors"
	"fmt"
	"strings"
)

// ErrFormat is wrapped by the errors for files that are damaged, inconsistent,
// or not keys at all.
var ErrFormat = errors.New("malformed private key")

// ErrPassphrase is wrapped by the error for a wrong passphrase. Where the
// encryption has no checksum, damage to the encrypted part looks the same.
var ErrPassphrase = errors.New("wrong passphrase")

// ErrPublic is wrapped by the error for a public key or a certificate without a
// private key.
var ErrPublic = errors.New("a public key, not a private one")

// ErrTPM is wrapped by the error for a TPM key file.
var ErrTPM = errors.New("already a TPM key file")

// An UnsupportedError refuses a key that may be valid but cannot be used here.
type UnsupportedError struct {
	Kind string   // names the key or file: "Ed25519 key"
	Why  string   // is the reason for the refusal
	Ways []string // are sentences or commands to use instead; FILE and NEW stand for paths
}

// Error returns Kind and Why.
func (e *UnsupportedError) Error() string { return e.Kind + ": " + e.Why }

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// libraryError returns ErrFormat with the reason that a library gives. Errors of
// encoding/asn1 describe Go types, which does not help the user.
func libraryError(format string, err error) error {
	text := err.Error()
	if strings.Contains(text, "asn1: ") {
		return malformed("%s: a field cannot be read", format)
	}
	return malformed("%s: %s", format, text[strings.LastIndex(": "+text, ": "):]) // without "crypto/rsa: "
}

const (
	wayNew     = "make an ECDSA key in the TPM, and put its public key beside the old one: tpm-agent keygen"
	wayAdd     = "keep it as a software key, which the agent holds in memory: ssh-add FILE"
	wayFIDO    = "keep using it through another agent behind this one: tpm-agent serve --upstream SOCKET"
	wayWeaken  = "have the program that wrote the key write it again with less work or without a passphrase"
	wayConvert = "convert a copy: "

	// useOpenSSL writes PBES2, which is read here.
	useOpenSSL = "openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out NEW"
	// useLegacy reads ciphers that OpenSSL 3 keeps in a provider of their own.
	useLegacy = "openssl pkcs8 -provider legacy -provider default -topk8 -v2 aes-256-cbc -in FILE -out NEW"
	// useKeygen changes a file in place, therefore the copy.
	useKeygen = "cp FILE NEW && ssh-keygen -p -Z aes256-ctr -a 24 -f NEW"

	whyEd25519 = "no TPM has Ed25519"
	whyDSA     = "no TPM has DSA, and OpenSSH has removed it"
	whyFIDO    = "it is in hardware already, and the file only says in which"
)

// kinds holds the refusals of keys that a TPM cannot use for SSH, by their types
// in SSH and by the object identifiers of their algorithms.
var kinds = map[string]UnsupportedError{
	"ssh-ed25519":                        {"Ed25519 key", whyEd25519, []string{wayAdd, wayNew}},
	"1.3.101.112":                        {"Ed25519 key", whyEd25519, []string{wayAdd + " (as PEM, with OpenSSH 9.6 or later)", wayNew}},
	"ssh-dss":                            {"DSA key", whyDSA, []string{wayNew}},
	"1.2.840.10040.4.1":                  {"DSA key", whyDSA, []string{wayNew}},
	"sk-ssh-ed25519@openssh.com":         {"FIDO key (Ed25519)", whyFIDO, []string{wayFIDO, wayNew}},
	"sk-ecdsa-sha2-nistp256@openssh.com": {"FIDO key (ECDSA)", whyFIDO, []string{wayFIDO, wayNew}},
	"1.3.101.113":                        {"Ed448 key", "no TPM has Ed448", []string{wayNew}},
	"1.3.101.110":                        {"X25519 key", "it cannot sign", []string{wayNew}},
	"1.3.101.111":                        {"X448 key", "it cannot sign", []string{wayNew}},
	"1.2.840.113549.1.1.10":              {"RSA key for PSS only", "SSH signs with PKCS #1 v1.5, which this key must not do", []string{wayNew}},
}

// unusable refuses a type of SSH or an algorithm by its name.
func unusable(id string) error {
	if e, ok := kinds[id]; ok {
		return &e
	}
	return useless("key of the type "+quoted(id), "tpm-agent does not know it")
}

// useless refuses a kind of key that cannot go into a TPM for SSH.
func useless(kind, why string) error { return &UnsupportedError{kind, why, []string{wayNew}} }

// convert refuses a file that a command can convert.
func convert(kind, why, command string) error {
	return &UnsupportedError{kind, why, []string{wayConvert + command}}
}

func encryptedWith(what, command string) error {
	return convert("key encrypted with "+what, "tpm-agent does not read this encryption", command)
}

// tooMuch refuses more work for a passphrase than the limit.
func tooMuch(what string, n, limit int64, command string) error {
	return convert(fmt.Sprintf("key encrypted with %d %s", n, what), fmt.Sprintf("tpm-agent computes at most %d", limit), command)
}

// quoted makes text from a file safe to print.
func quoted(text string) string { return fmt.Sprintf("%.64q", text) }
