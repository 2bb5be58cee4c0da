package keydir

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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

// link makes the Entry of the key file name from what is beside it. It keeps the
// old one if nothing has changed.
func (d *directory) link(name string, f *file) {
	e := &Entry{Path: d.join(name), Key: f.content.key, Public: f.content.public}
	f.findings = nil
	for _, stem := range stems(name) {
		// If a different file, usually an ordinary private key, has the stem as
		// its name, the files beside it may belong to that.
		theirs := stem != name && d.files[stem] != nil
		for _, suffix := range []string{".pub", "-cert.pub"} {
			b := d.files[stem+suffix]
			if b == nil || b.content.kind != kindPublic {
				continue
			}
			err := e.add(b.content, f.content.blob, suffix == "-cert.pub")
			if err == nil || theirs {
				continue
			}
			odd := finding{Problem: Problem{d.join(stem + suffix), err}}
			if b.content.blob != f.content.blob {
				odd.blob = b.content.blob
			}
			f.findings = append(f.findings, odd)
		}
	}
	for _, text := range []string{e.Key.DisplayDescription(), name, "?"} {
		if e.Comment == "" {
			e.Comment = display(text)
		}
	}
	if old := f.entry; old == nil || old.Comment != e.Comment || !slices.Equal(old.Certificates, e.Certificates) {
		f.entry = e
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
