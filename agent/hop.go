package agent

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxSteps bounds the work of comparing names with patterns for one verdict,
// some tenth of a second. Both can come from whoever a key's user has his
// agent forwarded to, who may add a key of his own and bind as he likes, and
// the product of two long ones is minutes. What is more is no match.
const maxSteps = 1 << 24

// caAlgorithms are the signatures of a certificate that may speak for a host,
// OpenSSH's SSH_ALLOWED_CA_SIGALGS: no SHA-1.
var caAlgorithms = []string{
	ssh.KeyAlgoED25519,
	ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, webauthnECDSA,
	ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
}

// walk goes along the hops of a connection with the destinations of a key.
type walk struct {
	ds    []Destination
	now   time.Time
	steps int // left of maxSteps
}

// find looks for a destination that leads from one host to another, and lets
// the user in there. No from is the origin, no to anywhere, no user anybody.
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

// isHost says whether the key or certificate of a host is that of h.
func (w *walk) isHost(key ssh.PublicKey, h *Hop) bool {
	cert, certified := key.(*ssh.Certificate)
	for _, k := range h.Keys {
		switch {
		case k.CA != certified:
		case !certified && sameKey(key, k.Key):
			return true
		case certified && sameKey(cert.SignatureKey, k.Key) && w.hostCertificate(cert, h.Host) == nil:
			return true
		}
	}
	return false
}

// hostCertificate says whether a certificate, whose authority is a good one,
// speaks for a host. Principals may be patterns, and a certificate without any
// is good for no host; both are different in x/crypto's CertChecker, and were
// in OpenSSH before 10.3.
func (w *walk) hostCertificate(cert *ssh.Certificate, host string) error {
	now := unix(w.now)
	switch {
	case cert.CertType != ssh.HostCert:
		return errors.New("not a certificate for a host")
	case now < cert.ValidAfter:
		return errors.New("not valid yet")
	case now >= cert.ValidBefore:
		return errors.New("expired")
	case !slices.ContainsFunc(cert.ValidPrincipals, func(p string) bool { return w.isPrincipal(host, p) }):
		return fmt.Errorf("not for host %q", host)
	case len(cert.CriticalOptions) > 0:
		return errors.New("critical options that are not known")
	case !slices.Contains(caAlgorithms, cert.Signature.Format):
		return fmt.Errorf("signed with %s", cert.Signature.Format)
	}
	return nil
}

func (w *walk) isPrincipal(host, principal string) bool {
	pattern, err := cString(principal)
	return err == nil && w.matches(host, pattern)
}

// matches compares byte by byte: * stands for any number of them, ? for one.
// It never goes back further than to the last *, because what an earlier one
// could take the last can take as well.
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
