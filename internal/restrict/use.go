package restrict

import (
	"bytes"
	"cmp"
	"crypto"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// UseOf returns the purpose of a signature of data. key is the public key or
// certificate in the request. named returns the name of a host key, "" if it has
// none; it may be nil, and may be slow. destination is what MaySign returned.
//
// The host of a login is proven: it has signed the session identifier in the
// login. The rest is what the data or the client claim.
func UseOf(b *Bindings, key ssh.PublicKey, data []byte, named func(ssh.PublicKey) string, destination string) ask.Use {
	if named == nil {
		named = func(ssh.PublicKey) string { return "" }
	}
	use := ask.Use{Kind: ask.UseUnknown}
	if login, err := parseUserauth(data, key); err == nil {
		use = login.use(b, named, destination)
	} else if namespace := parseSSHSIG(data); namespace != "" {
		use = ask.Use{Kind: ask.UseSignature, Namespace: namespace}
	} else if cert := parseUnsigned(data, key); cert != nil {
		use = ask.Use{Kind: ask.UseCertificate, KeyID: cert.KeyId, Principals: cert.ValidPrincipals, HostCert: cert.CertType == ssh.HostCert}
	}
	for _, hop := range b.hops {
		if hop.forwarding {
			use.Via = append(use.Via, cmp.Or(named(hop.host), fingerprintOfHost(hop.host)))
		}
	}
	if b.failed { // an unknown host may be forwarding, and may be anywhere in between
		use.Via = append(use.Via, "")
	}
	use.Forwarded = len(use.Via) > 0
	return use
}

// use names the host only if the connection is bound to the SSH connection that
// the login is for.
func (r *userauthRequest) use(b *Bindings, named func(ssh.PublicKey) string, destination string) ask.Use {
	u := ask.Use{Kind: ask.UseLogin, User: r.user}
	if !b.bound() || b.last().forwarding || r.isOn(b) != nil {
		return u
	}
	host := b.last().host
	u.HostKey = fingerprintOfHost(host)
	if u.Host = named(host); u.Host == "" {
		u.Host = destination
	}
	return u
}

// fingerprintOfHost is that of the plain key, as ssh shows it for a certificate,
// too.
func fingerprintOfHost(host ssh.PublicKey) string {
	if cert, ok := host.(*ssh.Certificate); ok {
		host = cert.Key
	}
	return ssh.FingerprintSHA256(host)
}

const magicSSHSIG = "SSHSIG"

// hashesSSHSIG are those of OpenSSH's PROTOCOL.sshsig, section 2.
var hashesSSHSIG = map[string]crypto.Hash{"sha256": crypto.SHA256, "sha512": crypto.SHA512}

// parseSSHSIG returns the namespace in the data of a signature as in
// PROTOCOL.sshsig, section 3; "" if the data are anything else.
func parseSSHSIG(data []byte) (namespace string) {
	w := &wire.Parser{Rest: data}
	if string(w.Take(len(magicSSHSIG))) != magicSSHSIG {
		return ""
	}
	namespace = w.Text()
	w.Bytes() // reserved, must be ignored
	hash := hashesSSHSIG[w.Text()]
	if sum := w.Bytes(); w.Whole() != nil || hash == 0 || len(sum) != hash.Size() {
		return ""
	}
	return namespace
}

// parseUnsigned returns the certificate in data, if it is one that key is to
// sign (OpenSSH's PROTOCOL.certkeys); nil if the data are anything else.
func parseUnsigned(data []byte, key ssh.PublicKey) *ssh.Certificate {
	// The data lack the signature, without which x/crypto parses no certificate.
	unsigned := ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519})
	parsed, err := ssh.ParsePublicKey(wire.AppendString(bytes.Clone(data), unsigned))
	if err != nil {
		return nil
	}
	cert, ok := parsed.(*ssh.Certificate)
	if !ok || sshkey.AlgorithmTypes[cert.Type()] == "" || !sshkey.Same(cert.SignatureKey, key) ||
		cert.CertType != ssh.UserCert && cert.CertType != ssh.HostCert {
		return nil
	}
	return cert
}

// Methods of public key authentication: the one of RFC 4252, section 7, and the
// one of OpenSSH's PROTOCOL, section 3.1, which also names the host.
const (
	methodPublicKey = "publickey"
	methodHostBound = "publickey-hostbound-v00@openssh.com"
)

const msgUserauthRequest = 50 // SSH_MSG_USERAUTH_REQUEST

// A userauthRequest is what a client signs to log in.
type userauthRequest struct {
	sessionID []byte
	user      string
	method    string
	hostKey   ssh.PublicKey // nil with methodPublicKey
}

// parseUserauth parses the data of a signature. It returns an error unless they
// are a login with this key or certificate.
func parseUserauth(data []byte, key ssh.PublicKey) (*userauthRequest, error) {
	p, r := &wire.Parser{Rest: data}, new(userauthRequest)
	r.sessionID = p.Bytes()
	number := p.Byte()
	r.user = p.Text()
	service := p.Text()
	r.method = p.Text()
	signed := p.Byte()
	algorithm, blob := p.Text(), p.Bytes()
	switch {
	case p.Err != nil:
		return nil, p.Err
	case len(r.sessionID) == 0 || number != msgUserauthRequest || signed != 1:
		return nil, errors.New("not the data of a public key authentication")
	case service != "ssh-connection":
		return nil, fmt.Errorf("for the service %q, not ssh-connection", service)
	}
	if err := isLoginWith(key, blob, algorithm); err != nil {
		return nil, err
	}
	return r, r.parseHostKey(p)
}

// isLoginWith checks the key in a login. Like OpenSSH it accepts any algorithm
// for the same type of key.
func isLoginWith(key ssh.PublicKey, blob []byte, algorithm string) error {
	named, err := sshkey.Parse(blob)
	switch {
	case err != nil:
		return fmt.Errorf("key: %w", err)
	case !sshkey.Same(named, key):
		return errors.New("for another key")
	case sshkey.AlgorithmTypes[algorithm] != sshkey.AlgorithmTypes[key.Type()]:
		return fmt.Errorf("algorithm %q for a key of type %s", algorithm, key.Type())
	}
	return nil
}

func (r *userauthRequest) parseHostKey(p *wire.Parser) (err error) {
	switch r.method {
	case methodPublicKey:
	case methodHostBound:
		blob := p.Bytes()
		if p.Err != nil {
			return p.Err
		}
		if r.hostKey, err = sshkey.Parse(blob); err != nil {
			return fmt.Errorf("host key: %w", err)
		}
	default:
		return fmt.Errorf("method %q", r.method)
	}
	return p.Whole()
}

// isOn checks that a login is for the SSH connection that was bound last. ssh
// may omit the host key if it is connected to the host directly: nothing in
// between could mix up connections.
func (r *userauthRequest) isOn(b *Bindings) error {
	last := b.last()
	switch {
	case !bytes.Equal(r.sessionID, last.sessionID):
		return errors.New("the login is for another session identifier than the one that was bound last")
	case r.hostKey == nil && len(b.hops) > 1:
		return errors.New("the login is over a forwarding and does not name a host key")
	case r.hostKey != nil && !sshkey.Same(r.hostKey, last.host):
		return errors.New("the login is for another host key than the one that was bound last")
	}
	return nil
}
