package knownhosts

import (
	"bytes"
	"encoding/base64"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// maxName bounds the name of a host, in bytes, as DNS does; with a port, and
// its brackets.
const maxName = 255 + len("[]:65535")

// maxNames is how many names of one line are looked at, each of which has to be
// compared with all the others.
const maxNames = 256

// NameOf looks the other way: it returns a name that files have for the host
// with this key, as it stands there, ports other than 22 as [host]:port. Of
// several that is one of the guesses, if there is one among them, else the
// first. Patterns name nobody. A hash can only be compared with the guesses,
// which is how names are kept where ssh's HashKnownHosts is set.
//
// The name of a host certificate, whose signature must be verified, is one of
// its principals if files let its authority speak for that, or a name of its
// plain key. A key that files have as revoked, for whatever host, has no name.
//
// Files that cannot be read are passed over; those that are none, such as
// FIFOs, are not even tried.
func NameOf(files []string, key ssh.PublicKey, guesses ...string) (name string, found bool) {
	n := newNaming(key, guesses, time.Now())
	for _, path := range files {
		n.readFile(path)
	}
	return n.result()
}

// naming is what was found so far of the names of a key.
type naming struct {
	key     ssh.PublicKey // plain
	cert    *ssh.Certificate
	text    [][]byte // the keys that matter as they stand in a file: few lines have one
	guesses []string

	guessed, first string
	revoked        bool
}

func newNaming(key ssh.PublicKey, guesses []string, now time.Time) *naming {
	n := &naming{key: key}
	if cert, ok := key.(*ssh.Certificate); ok {
		n.key = cert.Key
		if forHost(cert, now) {
			n.cert = cert
			n.text = append(n.text, encoded(cert.SignatureKey))
		}
	}
	n.text = append(n.text, encoded(n.key))
	for _, guess := range guesses {
		n.guesses = append(n.guesses, strings.ToLower(guess))
	}
	return n
}

func encoded(key ssh.PublicKey) []byte {
	return []byte(base64.StdEncoding.EncodeToString(key.Marshal()))
}

// forHost says whether a certificate is one of a host, and good at this time.
func forHost(cert *ssh.Certificate, now time.Time) bool {
	seconds := uint64(max(now.Unix(), 0))
	return cert.CertType == ssh.HostCert && cert.ValidAfter <= seconds && seconds < cert.ValidBefore &&
		len(cert.CriticalOptions) == 0 && cert.Signature.Format != ssh.KeyAlgoRSA // which is SHA-1
}

func (n *naming) readFile(path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		return
	}
	_ = readLines(f, n.line, func() {}) // it is good as far as it goes
}

// line takes the names of a line that has the key, or that of the authority.
func (n *naming) line(line []byte) {
	line = bytes.Trim(line, " \t\r\n")
	if len(line) == 0 || line[0] == '#' || !slices.ContainsFunc(n.text, func(k []byte) bool { return bytes.Contains(line, k) }) {
		return
	}
	names, ok := hostField(line)
	if !ok {
		return
	}
	marker, _, public, _, _, err := ssh.ParseKnownHosts(line)
	if err != nil {
		return
	}
	isKey := same(public, n.key)
	isAuthority := n.cert != nil && same(public, n.cert.SignatureKey)
	switch {
	case marker == "revoked" && (isKey || isAuthority):
		n.revoked = true
	case marker == "" && isKey:
		n.take(names)
	case marker == "cert-authority" && isAuthority:
		n.takeCertified(names)
	}
}

func same(a, b ssh.PublicKey) bool {
	return a.Type() == b.Type() && bytes.Equal(a.Marshal(), b.Marshal())
}

// take looks at the names of a line with the key.
func (n *naming) take(names string) {
	if strings.HasPrefix(names, "|") {
		for _, guess := range n.guesses {
			if match, err := matchesHash(guess, names); err == nil && match {
				n.add(guess)
			}
		}
		return
	}
	for i, name := range strings.Split(strings.ToLower(names), ",") {
		if i == maxNames {
			break
		}
		if match, err := matches(name, names); err == nil && match { // or it is negated
			n.add(name)
		}
	}
}

// takeCertified looks at the names in the certificate for which a line lets
// its authority speak.
func (n *naming) takeCertified(names string) {
	for _, principal := range n.cert.ValidPrincipals {
		if len(principal) > maxName {
			continue
		}
		if match, err := matches(principal, names); err == nil && match {
			n.add(strings.ToLower(principal))
		}
	}
}

func (n *naming) add(name string) {
	if name == "" || len(name) > maxName || strings.ContainsAny(name, "*?!|") {
		return
	}
	if n.first == "" {
		n.first = name
	}
	if n.guessed == "" && slices.Contains(n.guesses, name) {
		n.guessed = name
	}
}

func (n *naming) result() (name string, found bool) {
	switch {
	case n.revoked:
		return "", false
	case n.guessed != "":
		return n.guessed, true
	}
	return n.first, n.first != ""
}
