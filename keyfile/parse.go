package keyfile

import (
	"bytes"
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
	k.parseRequired(&c)
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
	c.SkipOptionalASN1(contextTag(0))
	var parent cryptobyte.String
	var has bool
	c.ReadOptionalASN1(&parent, &has, contextTag(1))
	if has && !parent.PeekASN1Tag(asn1.INTEGER) || !has && !c.PeekASN1Tag(contextTag(2)) {
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
		default:
			k.parseTagged(c, n)
		}
		if n <= tagSecret {
			secretAt = start
		}
		next = n + 1
	}
	c.fail(checkSecret(k.Type, k.Secret, secretAt))
}

// parseTagged reads the optional field [n].
func (k *TPMKey) parseTagged(c *cursor, n int) {
	switch n {
	case tagEmptyAuth:
		k.EmptyAuth = c.boolean("emptyAuth", n)
	case tagPolicy:
		k.Policy = parsePolicies(c.explicit("policy", n, asn1.SEQUENCE), "policy")
	case tagSecret:
		v := c.explicit("secret", n, asn1.OCTET_STRING)
		k.Secret = bytes.Clone(v.String)
		c.fail(checkTPM2B("secret", k.Secret, v.offset()))
	case tagAuthPolicy:
		k.AuthPolicy = parseAuthPolicies(c.explicit("authPolicy", n, asn1.SEQUENCE))
	case tagDescription:
		v := c.explicit("description", n, asn1.UTF8String)
		if len(v.String) > maxDescription {
			c.malformed("description", v.offset(), "%d octets, at most %d are allowed", len(v.String), maxDescription)
		}
		k.Description = string(v.String)
	case tagRSAParent:
		k.RSAParent = c.boolean("rsaParent", n)
	}
}

// parsePolicies reads the content of a SEQUENCE OF TPMPolicy.
func parsePolicies(c cursor, field string) (list []Policy) {
	for c.more() {
		if len(list) == maxPolicy {
			c.fail(tooManyCommands(field, c.offset()))
		}
		item := c.element(field, asn1.SEQUENCE)
		code := item.element(field+" commandCode", contextTag(0))
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
		if item.PeekASN1Tag(contextTag(0)) {
			name := item.explicit("authPolicy name", 0, asn1.UTF8String)
			p.Name = string(name.String)
		}
		p.Policy = parsePolicies(item.explicit("authPolicy policy", 1, asn1.SEQUENCE), "authPolicy policy")
		item.done("authPolicy")
		list = append(list, p)
	}
	return list
}

// parseRequired reads parent, pubkey and privkey.
func (k *TPMKey) parseRequired(c *cursor) {
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
}
