package privkey

import (
	"bytes"
	"encoding/base64"
	"strings"
)

const (
	pemBegin = "-----BEGIN "
	pemEnd   = "-----END "
	pemTail  = "-----"
)

// block is one block of PEM.
type block struct {
	typ     string
	line    int // of its BEGIN, from 1
	headers map[string]string
	body    []byte // base64, without line feeds; in place of the lines
}

// blocks finds all PEM blocks in a text, those that are indented too. Unlike
// encoding/pem it never passes over a damaged block, and says which line is
// wrong. It works in the text, of which there is then one copy to overwrite.
func blocks(text []byte) ([]*block, error) {
	var list []*block
	var open *block
	n, next := 0, 0
	for line := range bytes.Lines(text) {
		n++
		next += len(line)
		line = bytes.Trim(line, " \t\n")
		begin, isBegin := boundary(line, pemBegin)
		end, isEnd := boundary(line, pemEnd)
		switch {
		case isBegin && open != nil:
			return nil, malformed("line %d: the %s block has no END line", open.line, open.typ)
		case isBegin:
			open = &block{typ: begin, line: n, headers: map[string]string{}, body: text[next:next]}
		case isEnd && open == nil:
			return nil, malformed("line %d: END %s without its BEGIN line", n, end)
		case isEnd && end != open.typ:
			return nil, malformed("line %d: END %s for the %s block of line %d", n, end, open.typ, open.line)
		case isEnd:
			list = append(list, open)
			open = nil
		case open != nil:
			open.add(line)
		}
	}
	if open != nil {
		return nil, malformed("line %d: the %s block has no END line", open.line, open.typ)
	}
	return list, nil
}

// boundary returns the type in a BEGIN or END line. It gets into messages: what
// does not look like one must not, for it can be a key without its line breaks.
func boundary(line []byte, head string) (typ string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(head))
	if !ok {
		return "", false
	}
	name, ok := bytes.CutSuffix(rest, []byte(pemTail))
	return string(name), ok && len(name) <= maxType && bytes.IndexFunc(name, notInType) < 0
}

// maxType is the length of the longest type, in octets: "NEW CERTIFICATE
// REQUEST" is one of the longer ones.
const maxType = 40

func notInType(r rune) bool { return r < ' ' || r == '-' || r > '~' }

// add takes a line between BEGIN and END: headers come first (RFC 1421).
func (b *block) add(line []byte) {
	name, value, found := bytes.Cut(line, []byte(":"))
	if found && len(b.body) == 0 {
		b.headers[strings.TrimSpace(string(name))] = strings.TrimSpace(string(value))
		return
	}
	b.body = append(b.body, line...)
}

// decode returns the content, for the caller to overwrite.
func (b *block) decode() ([]byte, error) {
	der := make([]byte, base64.StdEncoding.DecodedLen(len(b.body)))
	n, err := base64.StdEncoding.Decode(der, b.body)
	switch {
	case err != nil:
		clear(der)
		return nil, malformed("line %d: the %s block is not base64: %v", b.line, b.typ, err)
	case n == 0:
		return nil, malformed("line %d: the %s block is empty", b.line, b.typ)
	}
	return der[:n], nil
}

// The kinds of blocks, by what they mean for a file.
type blockKind int

const (
	blockOther blockKind = iota
	blockPrivate
	blockPublic
	blockTPM
)

func (b *block) kind() blockKind {
	switch b.typ {
	case "OPENSSH PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY",
		"DSA PRIVATE KEY", "PGP PRIVATE KEY BLOCK":
		return blockPrivate
	case "PUBLIC KEY", "RSA PUBLIC KEY", "EC PUBLIC KEY", "DSA PUBLIC KEY", "CERTIFICATE", "X509 CERTIFICATE",
		"TRUSTED CERTIFICATE", "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST", "PKCS7", "PGP PUBLIC KEY BLOCK":
		return blockPublic
	case "TSS2 PRIVATE KEY", "TSS2 KEY BLOB", "TSS KEY BLOB":
		return blockTPM
	}
	return blockOther
}
