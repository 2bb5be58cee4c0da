// Package sshkey reads and compares public keys and certificates as OpenSSH does.
package sshkey

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// MinRSABits is the length of the shortest RSA keys that OpenSSH accepts.
const MinRSABits = 1024

// maxPrincipals is how many principals OpenSSH accepts in a certificate.
const maxPrincipals = 256

// AlgorithmTypes maps the algorithms that OpenSSH's agent knows to types of keys.
// All curves of ECDSA are one type, and so are all hashes of RSA. DSA is gone.
var AlgorithmTypes = map[string]string{
	ssh.KeyAlgoRSA:          "RSA",
	ssh.KeyAlgoRSASHA256:    "RSA",
	ssh.KeyAlgoRSASHA512:    "RSA",
	ssh.KeyAlgoECDSA256:     "ECDSA",
	ssh.KeyAlgoECDSA384:     "ECDSA",
	ssh.KeyAlgoECDSA521:     "ECDSA",
	ssh.KeyAlgoED25519:      "ED25519",
	ssh.KeyAlgoSKECDSA256:   "ECDSA-SK",
	WebauthnECDSA:           "ECDSA-SK",
	ssh.KeyAlgoSKED25519:    "ED25519-SK",
	ssh.CertAlgoRSAv01:      "RSA-CERT",
	ssh.CertAlgoECDSA256v01: "ECDSA-CERT",
	ssh.CertAlgoECDSA384v01: "ECDSA-CERT",
	ssh.CertAlgoECDSA521v01: "ECDSA-CERT",
	ssh.CertAlgoED25519v01:  "ED25519-CERT",

	ssh.CertAlgoRSASHA256v01:  "RSA-CERT",
	ssh.CertAlgoRSASHA512v01:  "RSA-CERT",
	ssh.CertAlgoSKECDSA256v01: "ECDSA-SK-CERT",
	webauthnECDSACert:         "ECDSA-SK-CERT",
	ssh.CertAlgoSKED25519v01:  "ED25519-SK-CERT",
}

// Algorithms of signatures that a browser makes with a FIDO key.
const (
	WebauthnECDSA     = "webauthn-sk-ecdsa-sha2-nistp256@openssh.com"
	webauthnECDSACert = "webauthn-sk-ecdsa-sha2-nistp256-cert-v01@openssh.com"
)

// Parse parses a public key or a certificate. Unlike ssh.ParsePublicKey it
// verifies the certificate's own signature, as OpenSSH always does; whether its
// authority is to be trusted is for the caller to decide. The key shares no
// memory with blob.
func Parse(blob []byte) (ssh.PublicKey, error) {
	p := &wire.Parser{Rest: blob}
	typ := string(p.Bytes())
	if p.Err != nil {
		return nil, p.Err
	}
	if AlgorithmTypes[typ] == "" {
		return nil, fmt.Errorf("keys of type %q are not supported", typ)
	}
	blob = bytes.Clone(blob)
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, err
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return key, checkSize(key)
	}
	return key, checkCertificate(cert, blob)
}

// checkSize refuses short RSA keys. x/crypto refuses moduli of more than 16384
// bits, as OpenSSH does, and exponents of more than 24 bits, which bounds the
// cost of verifying a signature.
func checkSize(key ssh.PublicKey) error {
	crypt, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	if pub, ok := crypt.CryptoPublicKey().(*rsa.PublicKey); ok && pub.N.BitLen() < MinRSABits {
		return fmt.Errorf("an RSA key of %d bits, less than %d", pub.N.BitLen(), MinRSABits)
	}
	return nil
}

// checkCertificate makes the checks that do not depend on the certificate's use.
// The signature is the last string in blob and covers all before it. x/crypto
// cannot encode that part again: it forgets how an option without a value was
// encoded.
func checkCertificate(cert *ssh.Certificate, blob []byte) error {
	if cert.CertType != ssh.UserCert && cert.CertType != ssh.HostCert {
		return fmt.Errorf("a certificate of the unknown type %d", cert.CertType)
	}
	if len(cert.ValidPrincipals) > maxPrincipals {
		return fmt.Errorf("a certificate with %d principals, more than %d", len(cert.ValidPrincipals), maxPrincipals)
	}
	for _, s := range append([]string{cert.KeyId}, cert.ValidPrincipals...) {
		if _, err := wire.CString(s); err != nil {
			return fmt.Errorf("a name in a certificate: %w", err)
		}
	}
	if AlgorithmTypes[cert.SignatureKey.Type()] == "" {
		return fmt.Errorf("certificates from keys of type %q are not supported", cert.SignatureKey.Type())
	}
	if err := errors.Join(checkSize(cert.Key), checkSize(cert.SignatureKey)); err != nil {
		return err
	}
	covered := blob[:len(blob)-wire.LengthSize-len(ssh.Marshal(cert.Signature))]
	if err := cert.SignatureKey.Verify(covered, cert.Signature); err != nil {
		return fmt.Errorf("a certificate with a false signature: %w", err)
	}
	return nil
}

// IsSecurityKey reports whether the private key is in a FIDO device.
func IsSecurityKey(key ssh.PublicKey) bool {
	return strings.HasPrefix(key.Type(), "sk-")
}

// Same reports whether two keys, or two certificates, are the same.
func Same(a, b ssh.PublicKey) bool {
	return a.Type() == b.Type() && bytes.Equal(a.Marshal(), b.Marshal())
}

// Unix returns t as certificates count; 0 for a clock that is before 1970.
func Unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

// Fingerprint returns the fingerprint of a key, which may be of an unknown type.
func Fingerprint(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}
