package restrict

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// maxSteps bounds the comparisons of names with patterns for one verdict to some
// tenth of a second. A host that the agent is forwarded to can send both: it may
// add keys and bind the connection. Two long ones could take minutes. A pattern
// that needs more steps does not match.
const maxSteps = 1 << 24

// caAlgorithms are the algorithms with which a host certificate may be signed,
// OpenSSH's SSH_ALLOWED_CA_SIGALGS. SHA-1 is not among them.
var caAlgorithms = []string{
	ssh.KeyAlgoED25519,
	ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, sshkey.WebauthnECDSA,
	ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
}

// A walk follows the hops of a connection with the destinations of a key.
type walk struct {
	ds    []Destination
	now   time.Time
	steps int // left of maxSteps
}

// along returns the destination of the last hop, or an error unless each hop has
// one. user is that of a login at the last hop.
func (w *walk) along(hops []binding, user *string) (d *Destination, err error) {
	var from ssh.PublicKey
	for i, hop := range hops {
		u := user
		if i < len(hops)-1 {
			u = nil
		}
		if d = w.find(from, hop.host, u); d == nil {
			return nil, notAllowed(from, hop.host, u)
		}
		from = hop.host
	}
	return d, nil
}

func notAllowed(from, to ssh.PublicKey, user *string) error {
	begin, as := "from here", ""
	if from != nil {
		begin = "from host key " + ssh.FingerprintSHA256(from)
	}
	if user != nil {
		as = fmt.Sprintf(" as %q", *user)
	}
	return fmt.Errorf("no destination leads %s to host key %s%s", begin, ssh.FingerprintSHA256(to), as)
}

// find returns a destination that leads from one host to another and lets the
// user in there. A nil from is this machine; a nil to or user is any.
func (w *walk) find(from, to ssh.PublicKey, user *string) *Destination {
	for i := range w.ds {
		d := &w.ds[i]
		switch {
		case from == nil && (d.From.Host != "" || len(d.From.Keys) > 0):
		case from != nil && !w.isHost(from, &d.From):
		case to != nil && !w.isHost(to, &d.To):
		case user != nil && d.To.User != "" && !w.matches(*user, d.To.User):
		default:
			return d
		}
	}
	return nil
}

// isHost reports whether a key or certificate is that of h.
func (w *walk) isHost(key ssh.PublicKey, h *Hop) bool {
	cert, certified := key.(*ssh.Certificate)
	for _, k := range h.Keys {
		switch {
		case k.CA != certified:
		case !certified && sshkey.Same(key, k.Key):
			return true
		case certified && sshkey.Same(cert.SignatureKey, k.Key) && w.isCertified(cert, h.Host):
			return true
		}
	}
	return false
}

// isCertified reports whether a certificate from the right authority is valid for
// a host. Unlike x/crypto's CertChecker, and OpenSSH before 10.3, it takes
// principals as patterns, and a certificate without principals for no host.
func (w *walk) isCertified(cert *ssh.Certificate, host string) bool {
	now := sshkey.Unix(w.now)
	return cert.CertType == ssh.HostCert && cert.ValidAfter <= now && now < cert.ValidBefore &&
		slices.ContainsFunc(cert.ValidPrincipals, func(principal string) bool {
			pattern, err := wire.CString(principal)
			return err == nil && w.matches(host, pattern)
		}) &&
		len(cert.CriticalOptions) == 0 && slices.Contains(caAlgorithms, cert.Signature.Format)
}

// matches compares bytes: * stands for any number of them, ? for one. It never
// goes back further than to the last *, because that can take all that an earlier
// * could.
func (w *walk) matches(s, pattern string) bool {
	w.steps -= len(pattern)
	star, retry := -1, 0
	i, j := 0, 0
	for i < len(s) {
		if w.steps--; w.steps < 0 {
			return false
		}
		switch {
		case j < len(pattern) && pattern[j] == '*':
			star, retry = j, i
			j++
		case j < len(pattern) && (pattern[j] == '?' || pattern[j] == s[i]):
			i, j = i+1, j+1
		case star >= 0:
			retry++
			i, j = retry, star+1
		default:
			return false
		}
	}
	for j < len(pattern) && pattern[j] == '*' {
		j++
	}
	return j == len(pattern)
}
