package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// addition is an ADD_IDENTITY or ADD_ID_CONSTRAINED request, taken apart. Of
// the request it shares the constraints only. Its key holds memory until it is
// wiped.
type addition struct {
	typ     string        // key type, as in the request
	public  ssh.PublicKey // an *ssh.Certificate for a certificate; nil if foreign
	key     *softwareKey  // nil if foreign
	comment string

	// constraints is what follows the comment; nil if layout is false. There
	// may be some in an ADD_IDENTITY as well, against RFC 9987, section 5.2.
	// OpenSSH's agent makes no difference between the two and heeds them: so
	// must we, as who sent them wanted a key that is limited.
	constraints []byte

	// foreign is a key of a type that this agent does not hold.
	foreign bool
	// layout is whether the fields of the type are known, so that comment and
	// constraints are those of the request. Always true if not foreign.
	layout bool
}

// parseAddition takes a request apart, its type byte included, and checks the
// key as OpenSSH does and further: a key whose private part does not belong to
// its public one is refused here, not at the first login. Foreign keys are not
// checked, only their fields are found.
func parseAddition(request []byte) (a *addition, err error) {
	erasing(func() { a, err = parsePrivate(request) })
	return a, err
}

func parsePrivate(request []byte) (*addition, error) {
	if len(request) == 0 {
		return nil, errors.New("adding a key: an empty request")
	}
	w := &wire{rest: request[1:]}
	a := &addition{typ: w.text()}
	if w.err != nil {
		return nil, fmt.Errorf("adding a key: %w", w.err)
	}
	var err error
	if plain, certified := heldType(a.typ); plain != "" {
		err = a.hold(w, plain, certified)
	} else {
		err = a.skip(w)
	}
	if err != nil {
		return nil, fmt.Errorf("adding a key of type %q: %w", a.typ, err)
	}
	return a, nil
}

// heldType is the type of a plain key that this agent holds, for itself or for
// its certificate's type; "" for others.
func heldType(typ string) (plain string, certified bool) {
	switch typ {
	case ssh.KeyAlgoRSA, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoED25519:
		return typ, false
	case ssh.CertAlgoRSAv01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01, ssh.CertAlgoED25519v01:
		return strings.TrimSuffix(typ, "-cert-v01@openssh.com"), true
	}
	return "", false
}

// hold reads a key of one of the types of heldType, RFC 9987, section 5.2. The
// checks, which cost, and the memory come after all that can be cut short.
func (a *addition) hold(w *wire, plain string, certified bool) error {
	var cert []byte
	if certified {
		cert = w.string()
	}
	numbers := readNumbers(w, plain, certified)
	a.comment = w.text()
	if w.err != nil {
		return w.err
	}
	a.constraints, a.layout = w.rest, true
	if certified {
		return a.holdCertified(numbers, cert)
	}
	key, err := numbers.key(nil)
	if err != nil {
		return err
	}
	a.key = key
	a.public, err = ssh.NewPublicKey(key.public)
	if err != nil {
		key.wipe()
	}
	return err
}

func (a *addition) holdCertified(numbers numbers, blob []byte) error {
	cert, err := parseCertificate(blob, a.typ)
	if err != nil {
		return err
	}
	crypt, ok := cert.Key.(ssh.CryptoPublicKey)
	if !ok {
		return fmt.Errorf("certificate for a key of Go type %T", cert.Key)
	}
	a.key, err = numbers.key(crypt.CryptoPublicKey())
	a.public = cert
	return err
}

// parseCertificate returns a certificate of the given type. Certificates of
// users and of hosts are taken, valid now or not: all that is for those to
// judge who are shown it.
func parseCertificate(blob []byte, typ string) (*ssh.Certificate, error) {
	public, err := parseWireKey(blob)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	cert, ok := public.(*ssh.Certificate)
	switch {
	case !ok || cert.Type() != typ:
		return nil, fmt.Errorf("certificate: it is of type %q", public.Type())
	case !bytes.Equal(cert.Marshal(), blob):
		// Clients would be shown another certificate than was added, one whose
		// signature is wrong.
		return nil, errors.New("certificate: not encoded as it should be")
	}
	return cert, nil
}

// layouts are the fields between type and comment of keys that are foreign: s
// is a string or an mpint, c text, o an octet.
func layouts(typ string) string {
	switch typ {
	case "ssh-dss": // p, q, g, y, x
		return "sssss"
	case "ssh-dss-cert-v01@openssh.com": // certificate, x
		return "ss"
	case "ssh-ed448": // public, private
		return "ss"
	case "ssh-mldsa44-ed25519@openssh.com", // public, private
		"ssh-mldsa44-ed25519-cert-v01@openssh.com": // certificate, private
		return "ss"
	// Those of security keys end in application, flags, key handle and a
	// reserved field.
	case "sk-ssh-ed25519@openssh.com": // public
		return "s" + "coss"
	case "sk-ssh-ed25519-cert-v01@openssh.com": // certificate, public
		return "ss" + "coss"
	case "sk-ecdsa-sha2-nistp256@openssh.com": // curve, public
		return "ss" + "coss"
	case "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com": // certificate
		return "s" + "coss"
	}
	return ""
}

func (a *addition) skip(w *wire) error {
	a.foreign = true
	layout := layouts(a.typ)
	if layout == "" {
		return nil
	}
	for _, kind := range layout {
		switch kind {
		case 's':
			w.string()
		case 'c':
			w.text()
		case 'o':
			w.byte()
		}
	}
	a.comment = w.text()
	a.constraints, a.layout = w.rest, true
	return w.err
}

// maxNumber is the longest number that OpenSSH takes, in bytes.
const maxNumber = 16384 / 8

// number is an mpint that is not negative, without leading zeros. There may be
// more of these than RFC 4251, section 5 allows, as OpenSSH has it.
func (w *wire) number() []byte {
	b := w.string()
	switch {
	case w.err != nil:
		return nil
	case len(b) > 0 && b[0]&0x80 != 0:
		w.err = errors.New("a negative number")
		return nil
	case len(b) > maxNumber+1 || (len(b) == maxNumber+1 && b[0] != 0):
		w.err = fmt.Errorf("a number of %d bytes", len(b))
		return nil
	}
	return bytes.TrimLeft(b, "\x00")
}
