package keyfile

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// The object identifiers under id-tpmkey, 2.23.133.10.1, as their DER content; the
// last octet distinguishes them. The early one, 2.23.133.10.2, has two layouts: the
// old one, and that of a loadable key in files that follow an early README of
// go-tpm-keyfiles.
var (
	oidTPMKey = []byte{0x67, 0x81, 0x05, 0x0a, 0x01}
	oidEarly  = []byte{0x67, 0x81, 0x05, 0x0a, 0x02}
)

const (
	oidLoadable   = 3
	oidImportable = 4
	oidSealed     = 5
)

// The tag numbers of the optional fields.
const (
	tagEmptyAuth   = 0
	tagPolicy      = 1
	tagSecret      = 2
	tagAuthPolicy  = 3
	tagDescription = 4
	tagRSAParent   = 5
	tagMax         = 30 // the last that fits one octet
)

// explicit is the tag [0] EXPLICIT.
const explicit asn1.Tag = 0xa0

// Parse reads a key file: PEM with exactly one TSS2 PRIVATE KEY block, and any text
// around it. Every error wraps [ErrFormat] or names an unsupported algorithm.
func Parse(data []byte) (*TPMKey, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%w: longer than %d octets", ErrFormat, maxFile)
	}
	der, _, _, err := decodePEM(data)
	if err != nil {
		return nil, err
	}
	return parseDER(der)
}

func parseDER(der []byte) (*TPMKey, error) {
	whole := newCursor(der)
	c := whole.element("key", asn1.SEQUENCE)
	whole.done("key")
	k := new(TPMKey)
	k.parseType(&c)
	k.parseOptional(&c)
	start := c.offset()
	// 32-bit builds of some writers write the handle as a negative number.
	k.Parent = uint32(c.integer("parent", math.MinInt32, math.MaxUint32))
	c.fail(checkParent(k.Parent, start))
	pubkey := c.element("pubkey", asn1.OCTET_STRING)
	k.Pubkey = bytes.Clone(pubkey.String)
	k.Public = parsePublic(pubkey)
	privkey := c.element("privkey", asn1.OCTET_STRING)
	k.Privkey = bytes.Clone(privkey.String)
	c.fail(checkTPM2B("privkey", k.Privkey, privkey.offset()))
	c.done("key")
	if *c.err != nil {
		return nil, *c.err
	}
	return k, nil
}

func (k *TPMKey) parseType(c *cursor) {
	start := c.offset()
	oid := []byte(c.element("type", asn1.OBJECT_IDENTIFIER).String)
	last, known := bytes.CutPrefix(oid, oidTPMKey)
	k.Type = Loadable
	switch {
	case *c.err != nil:
	case bytes.Equal(oid, oidEarly):
		c.fail(legacyLayout(*c))
	case !known || len(last) != 1:
		c.malformed("type", start, "the object identifier % x is not that of a TPM key", oid)
	case last[0] == oidImportable:
		k.Type = Importable
	case last[0] == oidSealed:
		c.fail(ErrSealed)
	case last[0] != oidLoadable:
		c.malformed("type", start, "there is no key type 2.23.133.10.1.%d", last[0])
	}
}

// legacyLayout returns [ErrLegacy] for the fields of a TSS2 KEY BLOB, after its object
// identifier: the parent is [1] or absent, the public area is [2].
func legacyLayout(c cursor) error {
	c.SkipOptionalASN1(explicit)
	var parent cryptobyte.String
	var has bool
	c.ReadOptionalASN1(&parent, &has, explicit+1)
	if has && !parent.PeekASN1Tag(asn1.INTEGER) || !has && !c.PeekASN1Tag(explicit+2) {
		return nil
	}
	return fmt.Errorf("%w: the fields of a TSS2 KEY BLOB, of openssl_tpm2_engine before 2018", ErrLegacy)
}

// parseOptional reads the tagged fields, which come in ascending order.
func (k *TPMKey) parseOptional(c *cursor) {
	next := 0
	secretAt := c.offset()
	for c.more() && c.String[0]&0xc0 == 0x80 {
		n, start := int(c.String[0]&0x1f), c.offset()
		field := fmt.Sprintf("field [%d]", n)
		switch {
		case n < next || n > tagMax:
			c.malformed(field, start, "the tag is out of order")
		case n > tagRSAParent && !c.SkipASN1(asn1.Tag(c.String[0])):
			c.malformed(field, start, "the length is wrong")
		case n > tagRSAParent:
			k.Unknown = append(k.Unknown, n)
		case n == tagEmptyAuth:
			k.EmptyAuth = c.boolean("emptyAuth", n)
		case n == tagPolicy:
			k.Policy = parsePolicies(c.explicit("policy", n, asn1.SEQUENCE), "policy")
		case n == tagSecret:
			v := c.explicit("secret", n, asn1.OCTET_STRING)
			k.Secret = bytes.Clone(v.String)
			c.fail(checkTPM2B("secret", k.Secret, v.offset()))
		case n == tagAuthPolicy:
			k.AuthPolicy = parseAuthPolicies(c.explicit("authPolicy", n, asn1.SEQUENCE))
		case n == tagDescription:
			v := c.explicit("description", n, asn1.UTF8String)
			if len(v.String) > maxDescription {
				c.malformed("description", v.offset(), "%d octets, at most %d are allowed", len(v.String), maxDescription)
			}
			k.Description = string(v.String)
		case n == tagRSAParent:
			k.RSAParent = c.boolean("rsaParent", n)
		}
		if n <= tagSecret {
			secretAt = start
		}
		next = n + 1
	}
	switch has := len(k.Secret) != 0; {
	case k.Type == Importable && !has:
		c.malformed("secret", secretAt, "missing, an importable key needs one")
	case k.Type == Loadable && has:
		c.malformed("secret", secretAt, "a loadable key has none")
	}
}

// parsePolicies reads the content of a SEQUENCE OF TPMPolicy.
func parsePolicies(c cursor, field string) (list []Policy) {
	for c.more() {
		if len(list) == maxPolicy {
			c.malformed(field, c.offset(), "more than %d commands", maxPolicy)
		}
		item := c.element(field, asn1.SEQUENCE)
		code := item.element(field+" commandCode", explicit)
		n := code.integer(field+" commandCode", 0, math.MaxUint32)
		code.done(field + " commandCode")
		body := item.explicit(field+" commandPolicy", 1, asn1.OCTET_STRING)
		item.done(field)
		list = append(list, Policy{uint32(n), bytes.Clone(body.String)})
	}
	return list
}

// parseAuthPolicies reads the content of a SEQUENCE OF TPMAuthPolicy.
func parseAuthPolicies(c cursor) (list []AuthPolicy) {
	for c.more() {
		item := c.element("authPolicy", asn1.SEQUENCE)
		var p AuthPolicy
		if item.PeekASN1Tag(explicit) {
			name := item.explicit("authPolicy name", 0, asn1.UTF8String)
			p.Name = string(name.String)
		}
		p.Policy = parsePolicies(item.explicit("authPolicy policy", 1, asn1.SEQUENCE), "authPolicy policy")
		item.done("authPolicy")
		list = append(list, p)
	}
	return list
}

// cursor reads a string of octets and knows its offset in the whole, for errors. It
// reads DER and the TPM's own structures inside of it. All cursors of one parse share
// err, which keeps the first error; after it all reads return zero values.
type cursor struct {
	cryptobyte.String
	end int // where the string ends, in octets from the start of the whole
	err *error
}

func newCursor(b []byte) cursor { return cursor{b, len(b), new(error)} }

func (c *cursor) offset() int { return c.end - len(c.String) }

// more reports whether there is more to read, and no error.
func (c *cursor) more() bool { return *c.err == nil && !c.Empty() }

// fail records err unless there is an earlier error.
func (c *cursor) fail(err error) {
	if *c.err == nil {
		*c.err = err
	}
}

func (c *cursor) malformed(field string, offset int, format string, args ...any) {
	c.fail(malformed(field, offset, format, args...))
}

// element reads one DER element with the given tag and returns its content.
func (c *cursor) element(field string, tag asn1.Tag) cursor {
	start := c.offset()
	var content cryptobyte.String
	switch {
	case *c.err != nil:
	case c.Empty():
		c.malformed(field, start, "missing")
	case !c.PeekASN1Tag(tag):
		c.malformed(field, start, "tag %#02x where %#02x should be", c.String[0], uint8(tag))
	case !c.ReadASN1(&content, tag):
		c.malformed(field, start, "the length is wrong")
	}
	return cursor{content, c.offset(), c.err}
}

// explicit reads the element [n] EXPLICIT whose only content has the given tag.
func (c *cursor) explicit(field string, n int, tag asn1.Tag) cursor {
	outer := c.element(field, explicit+asn1.Tag(n))
	inner := outer.element(field, tag)
	outer.done(field)
	return inner
}

// done refuses octets that were not read.
func (c *cursor) done(field string) {
	if c.more() {
		c.malformed(field, c.offset(), "%d octets too many", len(c.String))
	}
}

// boolean reads the element [n] EXPLICIT BOOLEAN. As in BER, any octet but zero is
// TRUE: half of the writers use 01, where DER has FF.
func (c *cursor) boolean(field string, n int) bool {
	v := c.explicit(field, n, asn1.BOOLEAN)
	if *c.err == nil && len(v.String) != 1 {
		c.malformed(field, v.offset(), "a BOOLEAN of %d octets", len(v.String))
	}
	return *c.err == nil && v.String[0] != 0
}

// integer reads an INTEGER from low to high.
func (c *cursor) integer(field string, low, high int64) (n int64) {
	start := c.offset()
	probe := *c
	probe.element(field, asn1.INTEGER)
	switch {
	case *c.err != nil:
	case !c.ReadASN1Integer(&n):
		c.malformed(field, start, "not an INTEGER of at most 64 bits in shortest form")
	case n < low || n > high:
		c.malformed(field, start, "%d is out of range", n)
	}
	return n
}

func (c *cursor) uint16(field string) (v uint16) {
	start := c.offset()
	if *c.err == nil && !c.ReadUint16(&v) {
		c.malformed(field, start, "ends too early")
	}
	return v
}

func (c *cursor) uint32(field string) (v uint32) {
	start := c.offset()
	if *c.err == nil && !c.ReadUint32(&v) {
		c.malformed(field, start, "ends too early")
	}
	return v
}

// sized reads a TPM2B and returns its content, which may be empty.
func (c *cursor) sized(field string) cursor {
	start := c.offset()
	var content cryptobyte.String
	if *c.err == nil && !c.ReadUint16LengthPrefixed(&content) {
		c.malformed(field, start, "ends too early")
	}
	return cursor{content, c.offset(), c.err}
}

const (
	pemType   = "TSS2 PRIVATE KEY"
	pemBegin  = "-----BEGIN " + pemType + "-----"
	pemEnd    = "-----END " + pemType + "-----"
	pemLegacy = "-----BEGIN TSS2 KEY BLOB-----"
	pemTPM12  = "-----BEGIN TSS KEY BLOB-----"
)

// decodePEM returns the content of the only TSS2 PRIVATE KEY block in data, and where
// the lines of the block start and end. Unlike encoding/pem it never skips a damaged
// block, and its errors name the line.
func decodePEM(data []byte) (der []byte, start, end int, err error) {
	var body []byte
	begin, n, offset := 0, 0, 0 // begin and n are lines, from 1
	for line := range bytes.Lines(data) {
		n++
		trimmed := bytes.TrimRight(line, " \t\r\n")
		switch inside := begin > 0 && end == 0; {
		case string(trimmed) == pemBegin && begin > 0:
			return nil, 0, 0, malformedLine(n, "a second %s block, one is allowed", pemType)
		case string(trimmed) == pemBegin:
			begin, start = n, offset
		case string(trimmed) == pemEnd && inside:
			end = offset + len(line)
		case inside && bytes.IndexByte(trimmed, ':') >= 0:
			return nil, 0, 0, malformedLine(n, "a header, none is allowed: the TPM encrypts the key, not the file")
		case inside:
			body = append(body, trimmed...)
		}
		offset += len(line)
	}
	switch {
	case begin == 0:
		return nil, 0, 0, noBlock(data)
	case end == 0:
		return nil, 0, 0, malformedLine(begin, "no END line for this block")
	}
	if der, err = base64.StdEncoding.AppendDecode(nil, body); err != nil {
		return nil, 0, 0, malformedLine(begin, "the block is not base64: %v", err)
	}
	return der, start, end, nil
}

// noBlock returns [ErrLegacy] for old formats, [ErrNoKey] for all other files.
func noBlock(data []byte) error {
	switch {
	case bytes.Contains(data, []byte(pemLegacy)):
		return fmt.Errorf("%w: TSS2 KEY BLOB, of openssl_tpm2_engine before 2018", ErrLegacy)
	case bytes.Contains(data, []byte(pemTPM12)):
		return fmt.Errorf("%w: TSS KEY BLOB, a key of a TPM 1.2", ErrLegacy)
	}
	return ErrNoKey
}

func malformedLine(line int, format string, args ...any) error {
	return fmt.Errorf("%w: line %d: %s", ErrFormat, line, fmt.Sprintf(format, args...))
}
