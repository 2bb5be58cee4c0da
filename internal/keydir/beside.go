package keydir

import (
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
)

// stems returns the names that stand before .pub and -cert.pub in the files
// that may belong to the key file name, the likeliest first. `ssh-keygen` and
// we write id_ecdsa.pub for id_ecdsa.tpm; openssl users put .pem or .key.
func stems(name string) []string {
	ext := filepath.Ext(name)
	short := strings.TrimSuffix(name, ext)
	if short == "" {
		return []string{name}
	}
	switch ext {
	case ".tpm":
		return []string{short, name}
	case ".pem", ".key", ".tss", ".tss2":
		return []string{name, short}
	}
	return []string{name}
}

// parts are the versions of the files that an Entry is made of.
type parts struct {
	key         *content
	pubs, certs [2]*content
	// theirs: another file has the stem for its name, an ordinary private key
	// as a rule, and what is beside the stem may well belong to that.
	theirs [2]bool
}

// link makes the Entry of the key file name, or keeps it when none of the
// files that it is made of has changed.
func (d *directory) link(name string, f *file) {
	p := parts{key: f.content}
	names := stems(name)
	for i, stem := range names {
		p.pubs[i] = d.publicText(stem + ".pub")
		p.certs[i] = d.publicText(stem + "-cert.pub")
		p.theirs[i] = stem != name && d.files[stem] != nil
	}
	if f.entry != nil && f.parts == p {
		return
	}
	f.parts, f.findings = p, nil
	f.entry = &Entry{Path: d.join(name), Key: p.key.key, Public: p.key.public}
	f.entry.Comment = d.comment(name, names, f)
	f.entry.Certificates = d.certificates(names, f)
}

// publicText returns the content of a .pub file, or nil.
func (d *directory) publicText(name string) *content {
	if f := d.files[name]; f != nil && f.content.kind == kindPublic {
		return f.content
	}
	return nil
}

// comment takes the comment of the key's .pub, else the file's description,
// else its name. A .pub of another key is a finding, unless one of the key's
// own is there too or the other key is.
func (d *directory) comment(name string, names []string, f *file) string {
	var mismatches []finding
	for i, stem := range names {
		c := f.parts.pubs[i]
		if c == nil {
			continue
		}
		blob, comment, err := parsePublic(c.line)
		if err == nil && blob == f.content.blob {
			if comment = display(comment); comment != "" {
				return comment
			}
			mismatches = nil
			break
		}
		if err == nil {
			err = fmt.Errorf("the public key of another key than %s", name)
		}
		if !f.parts.theirs[i] {
			mismatches = append(mismatches, finding{Problem{d.join(stem + ".pub"), err}, c, blob})
		}
	}
	f.findings = append(f.findings, mismatches...)
	if text := display(f.content.key.DisplayDescription()); text != "" {
		return text
	}
	if text := display(name); text != "" {
		return text
	}
	return "?"
}

// certificates returns the certificates beside the key that certify it.
func (d *directory) certificates(names []string, f *file) (certs []*ssh.Certificate) {
	for i, stem := range names {
		c := f.parts.certs[i]
		if c == nil {
			continue
		}
		cert, err := parseCertificate(c.line)
		blob := ""
		if err == nil {
			if blob = string(cert.Key.Marshal()); blob == f.content.blob {
				certs = append(certs, cert)
				continue
			}
			err = fmt.Errorf("a certificate for another key than %s", filepath.Base(f.entry.Path))
		}
		if !f.parts.theirs[i] {
			f.findings = append(f.findings, finding{Problem{d.join(stem + "-cert.pub"), err}, c, blob})
		}
	}
	return certs
}

// parsePublic takes a line of a .pub file apart: type, base64, comment. It
// does not look into the blob, which is only compared.
func parsePublic(line string) (blob, comment string, err error) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return "", "", errors.New("not an SSH public key")
	}
	raw, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil {
		return "", "", errors.New("not an SSH public key")
	}
	return string(raw), strings.Join(fields[2:], " "), nil
}

func parseCertificate(line string) (*ssh.Certificate, error) {
	p, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, fmt.Errorf("not an SSH certificate: %w", err)
	}
	cert, ok := p.(*ssh.Certificate)
	if !ok {
		return nil, errors.New("a plain public key, not a certificate")
	}
	return cert, nil
}

// maxComment bounds a comment in bytes: all keys of a list answer together
// may have 256 KiB.
const maxComment = 256

// display makes text fit to be shown and sent: one line of valid UTF-8 without
// control characters, of bounded length.
func display(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	for len(text) > maxComment {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return strings.TrimSpace(text)
}
