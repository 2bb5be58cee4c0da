package agent

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	minRSABits    = 1024
	maxPrincipals = 256 // of one certificate
)

// algorithmTypes has the names of algorithms that OpenSSH's agent knows, and
// the type of key that goes with each: the curves of ECDSA are one type to it,
// and so are the hashes of RSA. It has no DSA any more.
var algorithmTypes = map[string]string{
	ssh.KeyAlgoRSA:          "RSA",
	ssh.KeyAlgoRSASHA256:    "RSA",
	ssh.KeyAlgoRSASHA512:    "RSA",
	ssh.KeyAlgoECDSA256:     "ECDSA",
	ssh.KeyAlgoECDSA384:     "ECDSA",
	ssh.KeyAlgoECDSA521:     "ECDSA",
	ssh.KeyAlgoED25519:      "ED25519",
	ssh.KeyAlgoSKECDSA256:   "ECDSA-SK",
	webauthnECDSA:           "ECDSA-SK",
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

// Signatures that a browser makes with a FIDO key.
const (
	webauthnECDSA     = "webauthn-sk-ecdsa-sha2-nistp256@openssh.com"
	webauthnECDSACert = "webauthn-sk-ecdsa-sha2-nistp256-cert-v01@openssh.com"
)

// parseWireKey parses a public key or a certificate and verifies the
// certificate's own signature, as OpenSSH does wherever it reads one;
// ssh.ParsePublicKey does not. That somebody has signed it does not say that
// he may: see hostCertificate. The key shares no memory with blob.
func parseWireKey(blob []byte) (ssh.PublicKey, error) {
	var name struct {
		Type string
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(blob, &name); err != nil {
		return nil, err
	}
	if algorithmTypes[name.Type] == "" {
		return nil, fmt.Errorf("keys of type %q are not supported", name.Type)
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

// checkSize refuses short RSA keys. Long ones are refused by x/crypto before
// anything is calculated with them, at 16384 bits as in OpenSSH, and so are
// exponents of more than 24 bits: what a signature costs to verify is bounded.
func checkSize(key ssh.PublicKey) error {
	crypt, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	if pub, ok := crypt.CryptoPublicKey().(*rsa.PublicKey); ok && pub.N.BitLen() < minRSABits {
		return fmt.Errorf("an RSA key of %d bits, less than %d", pub.N.BitLen(), minRSABits)
	}
	return nil
}

// checkCertificate makes the checks that do not depend on what a certificate
// is for. The signature is the last string in blob and covers what is in front
// of it, which cannot be had from x/crypto byte for byte: it forgets how an
// option without a value was written.
func checkCertificate(cert *ssh.Certificate, blob []byte) error {
	if cert.CertType != ssh.UserCert && cert.CertType != ssh.HostCert {
		return fmt.Errorf("a certificate of the unknown type %d", cert.CertType)
	}
	if len(cert.ValidPrincipals) > maxPrincipals {
		return fmt.Errorf("a certificate with %d principals, more than %d", len(cert.ValidPrincipals), maxPrincipals)
	}
	for _, s := range append([]string{cert.KeyId}, cert.ValidPrincipals...) {
		if _, err := cString(s); err != nil {
			return fmt.Errorf("a name in a certificate: %w", err)
		}
	}
	if algorithmTypes[cert.SignatureKey.Type()] == "" {
		return fmt.Errorf("certificates from keys of type %q are not supported", cert.SignatureKey.Type())
	}
	if err := errors.Join(checkSize(cert.Key), checkSize(cert.SignatureKey)); err != nil {
		return err
	}
	covered := blob[:len(blob)-lengthSize-len(ssh.Marshal(cert.Signature))]
	if err := cert.SignatureKey.Verify(covered, cert.Signature); err != nil {
		return fmt.Errorf("a certificate with a false signature: %w", err)
	}
	return nil
}

func isSecurityKey(key ssh.PublicKey) bool {
	return strings.HasPrefix(key.Type(), "sk-")
}

// sameKey says whether two keys, or two certificates, are the same.
func sameKey(a, b ssh.PublicKey) bool {
	return a.Type() == b.Type() && bytes.Equal(a.Marshal(), b.Marshal())
}

// cString is what C makes of a string: it ends at a NUL byte. OpenSSH takes
// one at the end, and refuses any that would hide something behind it.
func cString(s string) (string, error) {
	s = strings.TrimSuffix(s, "\x00")
	if strings.Contains(s, "\x00") {
		return "", errors.New("a string with a NUL byte in it")
	}
	return s, nil
}
