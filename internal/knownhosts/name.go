package knownhosts

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// maxName bounds the name of a host in bytes, as DNS does, with brackets and a
// port.
const maxName = 255 + len("[]:65535")

// maxNames bounds the names in a line, each of which is compared with all.
const maxNames = 256

// NameOf returns a name that files have for the host with this key, as it is
// written there. It prefers a name that is among the guesses to the first one.
// A pattern is not a name. A hash can only be compared with the guesses.
//
// The name for a host certificate is one of its principals, if files let its
// authority certify that, or a name of the plain key. A key that files have as
// revoked, for any host, has no name.
//
// NameOf skips files that it cannot read, and everything that is not a regular
// file.
func NameOf(files []string, key ssh.PublicKey, guesses ...string) (name string, found bool) {
	n := newNaming(key, guesses)
	for _, file := range files {
		if text, err := readRegular(file); err == nil {
			n.read(text)
		}
	}
	return n.result()
}

// readRegular does not wait for FIFOs.
func readRegular(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", file)
	}
	if err != nil {
		return nil, err
	}
	return read(file)
}

// naming is what was found so far of the names of a key.
type naming struct {
	key     ssh.PublicKey    // plain
	cert    *ssh.Certificate // nil: none, or not a good one
	text    [][]byte         // the keys to look for, as they are written in a file
	guesses []string

	guessed, first string
	revoked        bool
}

func newNaming(key ssh.PublicKey, guesses []string) *naming {
	n := &naming{key: key}
	if cert, ok := key.(*ssh.Certificate); ok {
		n.key = cert.Key
		if forHost(cert) {
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

// forHost reports whether a certificate is a valid one of a host. It refuses
// signatures with SHA-1.
func forHost(cert *ssh.Certificate) bool {
	return cert.CertType == ssh.HostCert && len(cert.ValidPrincipals) > 0 && cert.Signature.Format != ssh.KeyAlgoRSA &&
		new(ssh.CertChecker).CheckCert(cert.ValidPrincipals[0], cert) == nil
}

func (n *naming) read(text []byte) {
	for line := range bytes.Lines(text) {
		if slices.ContainsFunc(n.text, func(key []byte) bool { return bytes.Contains(line, key) }) {
			n.take(trim(line))
		}
	}
}

// take takes the names from a line that has the key or that of its authority.
func (n *naming) take(line []byte) {
	names, ok := hostField(line)
	marker, _, public, _, _, err := ssh.ParseKnownHosts(line)
	if err != nil || !ok {
		return
	}
	isKey := same(public, n.key)
	isAuthority := n.cert != nil && same(public, n.cert.SignatureKey)
	var candidates []string
	switch {
	case marker == "revoked" && (isKey || isAuthority):
		n.revoked = true
	case marker == "" && isKey && strings.HasPrefix(names, "|"):
		candidates = n.guesses
	case marker == "" && isKey:
		candidates = strings.SplitN(strings.ToLower(names), ",", maxNames)
	case marker == "cert-authority" && isAuthority:
		candidates = n.cert.ValidPrincipals
	}
	for _, name := range candidates {
		if len(name) > maxName || strings.ContainsAny(name, "*?!|,") {
			continue
		}
		if match, err := matches(name, names); err == nil && match { // or it is negated
			n.add(strings.ToLower(name))
		}
	}
}

func same(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

func (n *naming) add(name string) {
	if n.first == "" {
		n.first = name
	}
	if n.guessed == "" && slices.Contains(n.guesses, name) {
		n.guessed = name
	}
}

func (n *naming) result() (name string, found bool) {
	name = n.first
	if n.guessed != "" {
		name = n.guessed
	}
	if n.revoked {
		name = ""
	}
	return name, name != ""
}
