package agent

import (
	"crypto"
	"errors"
	"slices"

	"golang.org/x/crypto/ssh"
)

// useOf says what a signature of data is for. key is the public key or the
// certificate that the client asked for. named gives the name of a host key,
// "" if it has none; it may be nil, and be slow. destination is the name that
// the host has in the destination constraint that lets the key be used there,
// "" if there is none.
//
// What it says of a login's host is proven: the host has signed the session
// identifier that is in the login. All else is what the data, or whoever asks,
// says.
func useOf(b *bindings, key ssh.PublicKey, data []byte, named func(ssh.PublicKey) string, destination string) Use {
	if named == nil {
		named = func(ssh.PublicKey) string { return "" }
	}
	use := Use{Kind: UseUnknown}
	if login, err := parseUserauth(data, key); err == nil {
		use = login.use(b, named, destination)
	} else if namespace, err := parseSSHSIG(data); err == nil {
		use = Use{Kind: UseSignature, Namespace: namespace}
	} else if cert, err := parseUnsigned(data, key); err == nil {
		use = Use{Kind: UseCertificate, KeyID: cert.KeyId, Principals: cert.ValidPrincipals, HostCert: cert.CertType == ssh.HostCert}
	}
	use.Via = b.via(named)
	use.Forwarded = len(use.Via) > 0
	return use
}

// use of a login. To which host it is, is known only if the connection was
// bound to the SSH session that the login is for.
func (r *userauthRequest) use(b *bindings, named func(ssh.PublicKey) string, destination string) Use {
	u := Use{Kind: UseLogin, User: r.user}
	if !b.bound() || b.inOrder(true) != nil || r.belongsTo(b) != nil {
		return u
	}
	host := b.last().host
	u.HostKey = fingerprintOfHost(host)
	if u.Host = named(host); u.Host == "" {
		u.Host = destination
	}
	return u
}

// via are the hosts that a request was forwarded through, nearest to here
// first; a last one is "" if somebody failed to prove who he is. That ends
// what is known: he may be forwarding or not, and may have been anywhere in
// between.
func (b *bindings) via(named func(ssh.PublicKey) string) (via []string) {
	for _, hop := range b.hops {
		if !hop.forwarding {
			continue
		}
		name := named(hop.host)
		if name == "" {
			name = fingerprintOfHost(hop.host)
		}
		via = append(via, name)
	}
	if b.failed {
		via = append(via, "")
	}
	return via
}

// fingerprintOfHost is that of the plain key, which is how ssh shows a
// certificate as well.
func fingerprintOfHost(host ssh.PublicKey) string {
	if cert, ok := host.(*ssh.Certificate); ok {
		host = cert.Key
	}
	return ssh.FingerprintSHA256(host)
}

const magicSSHSIG = "SSHSIG"

// hashesSSHSIG are those that OpenSSH's PROTOCOL.sshsig, section 2, has.
var hashesSSHSIG = map[string]crypto.Hash{"sha256": crypto.SHA256, "sha512": crypto.SHA512}

// parseSSHSIG takes the data of a signature apart, PROTOCOL.sshsig, section 3.
// The namespace says what the signature is good for. It is an error if the
// data are anything else.
func parseSSHSIG(data []byte) (namespace string, err error) {
	w := &wire{rest: data}
	if string(w.take(len(magicSSHSIG))) != magicSSHSIG {
		return "", errors.New("not the data of an SSH signature")
	}
	namespace = w.text()
	w.string() // reserved: to be ignored
	hash := hashesSSHSIG[w.text()]
	sum := w.string()
	switch {
	case w.err != nil:
		return "", w.err
	case namespace == "":
		return "", errors.New("an SSH signature without a namespace")
	case hash == 0 || len(sum) != hash.Size():
		return "", errors.New("an SSH signature with an unknown hash")
	case len(w.rest) > 0:
		return "", errors.New("an SSH signature with something behind it")
	}
	return namespace, nil
}

// parseUnsigned takes a certificate apart that key is to sign, OpenSSH's
// PROTOCOL.certkeys. It is an error if the data are anything else.
func parseUnsigned(data []byte, key ssh.PublicKey) (*ssh.Certificate, error) {
	w := &wire{rest: data}
	if !slices.Contains(certificateTypes, string(w.string())) {
		return nil, errors.New("not a certificate to be signed")
	}
	// What is signed ends before the signature, without which x/crypto takes
	// nothing for a certificate.
	unsigned := ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519})
	whole := slices.Concat(data, ssh.Marshal(wireString{S: unsigned}))
	parsed, err := ssh.ParsePublicKey(whole)
	if err != nil {
		return nil, err
	}
	cert, ok := parsed.(*ssh.Certificate)
	switch {
	case !ok:
		return nil, errors.New("not a certificate")
	case !sameKey(cert.SignatureKey, key):
		return nil, errors.New("a certificate that another key is to sign")
	case cert.CertType != ssh.UserCert && cert.CertType != ssh.HostCert:
		return nil, errors.New("a certificate of an unknown type")
	}
	return cert, nil
}

// certificateTypes are the types that OpenSSH signs.
var certificateTypes = []string{
	ssh.CertAlgoRSAv01, ssh.CertAlgoED25519v01,
	ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
	ssh.CertAlgoSKECDSA256v01, ssh.CertAlgoSKED25519v01,
}
