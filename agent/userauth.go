package agent

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// Methods of public key authentication: that of RFC 4252, section 7, and the
// one of OpenSSH's PROTOCOL, section 3.1, that names the host as well.
const (
	methodPublicKey = "publickey"
	methodHostBound = "publickey-hostbound-v00@openssh.com"
)

const (
	msgUserauthRequest = 50 // SSH_MSG_USERAUTH_REQUEST
	serviceConnection  = "ssh-connection"
)

// userauthRequest is what a client signs to log in.
type userauthRequest struct {
	sessionID []byte
	user      string
	method    string
	hostKey   ssh.PublicKey // nil with methodPublicKey
}

// signedUserauth is RFC 4252, section 7.
type signedUserauth struct {
	SessionID []byte
	Number    byte
	User      string
	Service   string
	Method    string
	HasSig    byte
	Algorithm string
	Key       []byte
	Rest      []byte `ssh:"rest"`
}

// parseUserauth takes the data of a signature apart. It is an error if they
// are anything else than a login with this key or certificate.
func parseUserauth(data []byte, key ssh.PublicKey) (*userauthRequest, error) {
	var m signedUserauth
	if err := ssh.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if len(m.SessionID) == 0 || m.Number != msgUserauthRequest || m.HasSig != 1 {
		return nil, errors.New("not the data of a public key authentication")
	}
	for _, s := range []*string{&m.User, &m.Service, &m.Method, &m.Algorithm} {
		var err error
		if *s, err = cString(*s); err != nil {
			return nil, err
		}
	}
	if m.Service != serviceConnection {
		return nil, fmt.Errorf("for the service %q, not %s", m.Service, serviceConnection)
	}
	if err := m.isFor(key); err != nil {
		return nil, err
	}
	r := &userauthRequest{sessionID: m.SessionID, user: m.User, method: m.Method}
	return r, r.parseHostKey(m.Rest)
}

// isFor checks the key inside. The algorithm must fit it as closely as OpenSSH
// wants it: any name for the same type of key will do.
func (m *signedUserauth) isFor(key ssh.PublicKey) error {
	named, err := parseWireKey(m.Key)
	switch {
	case err != nil:
		return fmt.Errorf("key: %w", err)
	case !sameKey(named, key):
		return errors.New("for another key")
	case algorithmTypes[m.Algorithm] != algorithmTypes[key.Type()]:
		return fmt.Errorf("algorithm %q for a key of type %s", m.Algorithm, key.Type())
	}
	return nil
}

// parseHostKey takes what is behind the key.
func (r *userauthRequest) parseHostKey(rest []byte) (err error) {
	switch r.method {
	case methodPublicKey:
	case methodHostBound:
		var s wireString
		if err := ssh.Unmarshal(rest, &s); err != nil {
			return err
		}
		if r.hostKey, err = parseWireKey(s.S); err != nil {
			return fmt.Errorf("host key: %w", err)
		}
		rest = s.Rest
	default:
		return fmt.Errorf("method %q", r.method)
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes behind it", len(rest))
	}
	return nil
}
