// Package softkey keeps private keys in locked memory and signs with them. Other
// secrets, such as PINs, can be kept there, too.
package softkey

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// An Addition is a parsed ADD_IDENTITY or ADD_ID_CONSTRAINED request. Only its
// constraints share memory with the request. Its key stays in memory until it
// is wiped.
type Addition struct {
	Typ     string        // key type, as in the request
	Public  ssh.PublicKey // an *ssh.Certificate for a certificate; nil if foreign
	Key     *Key          // nil if foreign
	Comment string

	// Constraints is what follows the comment; nil if Layout is false. RFC
	// 9987, section 5.2, allows none in ADD_IDENTITY, but OpenSSH's agent obeys
	// them there, and so must we: the client wanted a restricted key.
	Constraints []byte

	// Foreign is whether this agent cannot hold keys of this type.
	Foreign bool
	// Layout is whether the fields of this type are known, so that Comment and
	// Constraints were found. It is always true if Foreign is not.
	Layout bool
}

// ParseAddition parses a request, which begins with its message number. It
// checks a key as OpenSSH does, and also that the private key belongs to the
// public key, which would otherwise show only at the first login. Of foreign
// keys it only finds the fields.
func ParseAddition(request []byte) (a *Addition, err error) {
	erasing(func() { a, err = parseAddition(request) })
	return a, err
}

func parseAddition(request []byte) (*Addition, error) {
	w := &wire.Parser{Rest: request}
	w.Byte()
	a := &Addition{Typ: w.Text()}
	var err error
	if read := readerOf(strings.TrimSuffix(a.Typ, certSuffix)); read != nil {
		err = a.hold(w, read)
	} else {
		err = a.skip(w)
	}
	if err != nil {
		return nil, fmt.Errorf("adding a key of type %q: %w", a.Typ, err)
	}
	return a, nil
}

// certSuffix ends the types of certificates.
const certSuffix = "-cert-v01@openssh.com"

// hold moves the key to locked memory only after all checks.
func (a *Addition) hold(w *wire.Parser, read reader) error {
	var cert *ssh.Certificate
	var certified crypto.PublicKey
	if strings.HasSuffix(a.Typ, certSuffix) {
		var err error
		if cert, err = parseCertificate(w.Bytes(), a.Typ); err != nil {
			return err
		}
		certified = cert.Key.(ssh.CryptoPublicKey).CryptoPublicKey()
	}
	private, public, err := read(w, certified)
	if err != nil {
		return err
	}
	if err := a.finish(w); err != nil {
		return err
	}
	if a.Public, err = ssh.NewPublicKey(public); err != nil {
		return err
	}
	if cert != nil {
		if !sshkey.Same(a.Public, cert.Key) {
			return errors.New("the certificate is for another key")
		}
		a.Public = cert
	}
	a.Key, err = newKey(private, public)
	return err
}

// finish reads the comment and what follows.
func (a *Addition) finish(w *wire.Parser) error {
	a.Comment = w.Text()
	a.Constraints, a.Layout = w.Rest, true
	return w.Err
}

// parseCertificate accepts any certificate of the given type, of a user or of a
// host, valid now or not: that is for the servers and clients that see it.
func parseCertificate(blob []byte, typ string) (*ssh.Certificate, error) {
	public, err := sshkey.Parse(blob)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	cert, ok := public.(*ssh.Certificate)
	switch {
	case !ok || cert.Type() != typ:
		return nil, fmt.Errorf("certificate: it is of type %q", public.Type())
	case !bytes.Equal(cert.Marshal(), blob):
		// The agent would list it re-encoded, which its signature does not cover.
		return nil, errors.New("certificate: not in canonical encoding")
	}
	return cert, nil
}

// foreignLayouts has the fields between type and comment of foreign keys: s is
// a string or an mpint, t a text, b a byte. Those of security keys end with
// application, flags, key handle and a reserved field.
var foreignLayouts = map[string]string{
	"ssh-dss":                                     "sssss",  // p, q, g, y, x
	"ssh-dss-cert-v01@openssh.com":                "ss",     // certificate, x
	"ssh-ed448":                                   "ss",     // public, private
	"ssh-mldsa44-ed25519@openssh.com":             "ss",     // public, private
	"ssh-mldsa44-ed25519-cert-v01@openssh.com":    "ss",     // certificate, private
	"sk-ssh-ed25519@openssh.com":                  "stbss",  // public
	"sk-ssh-ed25519-cert-v01@openssh.com":         "sstbss", // certificate, public
	"sk-ecdsa-sha2-nistp256@openssh.com":          "sstbss", // curve, public
	"sk-ecdsa-sha2-nistp256-cert-v01@openssh.com": "stbss",  // certificate
}

// skip finds the end of a foreign key, if its layout is known.
func (a *Addition) skip(w *wire.Parser) error {
	a.Foreign = true
	layout, ok := foreignLayouts[a.Typ]
	if !ok {
		return w.Err
	}
	for _, field := range layout {
		switch field {
		case 's':
			w.Bytes()
		case 't':
			w.Text()
		case 'b':
			w.Byte()
		}
	}
	return a.finish(w)
}
