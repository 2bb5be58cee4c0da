package keydir

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
)

// stems returns the names that stand before .pub and -cert.pub in the files
// that may belong to the key file name, the most likely first. ssh-keygen and
// we write id_ecdsa.pub for id_ecdsa.tpm; users of openssl have .pem or .key.
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
	key    *content
	beside [4]*content // .pub and -cert.pub of each stem, or nil
	// theirs: a different file, usually an ordinary private key, has the stem as
	// its name, so that the files beside it may belong to that.
	theirs [2]bool
}

// link makes the Entry of the key file name, or keeps it if none of the files
// that it is made of has changed.
func (d *directory) link(name string, f *file) {
	p := parts{key: f.content}
	var paths [4]string
	for i, stem := range stems(name) {
		p.theirs[i] = stem != name && d.files[stem] != nil
		for j, suffix := range []string{".pub", "-cert.pub"} {
			paths[2*i+j] = d.join(stem + suffix)
			if b := d.files[stem+suffix]; b != nil && b.content.kind == kindPublic {
				p.beside[2*i+j] = b.content
			}
		}
	}
	if f.entry != nil && f.parts == p {
		return
	}
	f.parts, f.findings = p, nil
	f.entry = &Entry{Path: d.join(name), Key: p.key.key, Public: p.key.public}
	for i, c := range p.beside {
		if c == nil {
			continue
		}
		if err := f.entry.add(c, p.key.blob, i%2 == 1); err != nil && !p.theirs[i/2] {
			other := c.blob
			if other == p.key.blob {
				other = ""
			}
			f.findings = append(f.findings, finding{Problem{paths[i], err}, c, other})
		}
	}
	for _, text := range []string{p.key.key.DisplayDescription(), name, "?"} {
		if f.entry.Comment == "" {
			f.entry.Comment = display(text)
		}
	}
}

// add takes a certificate, or the comment of a public key, for the key blob.
func (e *Entry) add(c *content, blob string, certificate bool) error {
	cert, isCert := c.public.(*ssh.Certificate)
	switch name := filepath.Base(e.Path); {
	case c.err != nil && certificate:
		return fmt.Errorf("not an SSH certificate: %w", c.err)
	case c.err != nil:
		return errors.New("not an SSH public key")
	case certificate && !isCert:
		return errors.New("a plain public key, not a certificate")
	case c.blob != blob && certificate:
		return fmt.Errorf("a certificate for a different key than %s", name)
	case c.blob != blob:
		return fmt.Errorf("the public key of a different key than %s", name)
	case certificate:
		e.Certificates = append(e.Certificates, cert)
	case e.Comment == "":
		e.Comment = display(c.comment)
	}
	return nil
}

// maxComment bounds a comment in bytes. The answer with all keys may have
// 256 KiB.
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
