package keyfile

import (
	"bytes"
	"fmt"
	"math"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// The object identifiers under id-tpmkey, 2.23.133.10.1, as their DER
// content; the last octet tells them apart. The early one, 2.23.133.10.2,
// comes in two layouts: the old one, and in files made after an early README
// of go-tpm-keyfiles that of a loadable key.
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

// Parse reads a key file: PEM with exactly one TSS2 PRIVATE KEY block, and any
// text around it. Every error wraps ErrFormat or ErrUnsupported.
func Parse(data []byte) (*TPMKey, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%w: %d octets, at most %d are allowed", ErrFormat, len(data), maxFile)
	}
	der, err := decodePEM(data)
	if err != nil {
		return nil, err
	}
	return parseDER(der)
}

func parseDER(der []byte) (*TPMKey, error) {
	whole := newCursor(der)
	c, err := whole.element("key", asn1.SEQUENCE)
	if err != nil {
		return nil, err
	}
	if err := whole.done("key"); err != nil {
		return nil, err
	}
	k := new(TPMKey)
	if err := k.parseType(&c); err != nil {
		return nil, err
	}
	if err := k.parseOptional(&c); err != nil {
		return nil, err
	}
	if err := k.parseRequired(&c); err != nil {
		return nil, err
	}
	return k, c.done("key")
}

func (k *TPMKey) parseType(c *cursor) error {
	start := c.offset()
	oid, err := c.element("type", asn1.OBJECT_IDENTIFIER)
	if err != nil {
		return err
	}
	if bytes.Equal(oid.String, oidEarly) {
		k.Type = Loadable
		return legacyLayout(*c)
	}
	prefix, last := split(oid.String)
	if !bytes.Equal(prefix, oidTPMKey) {
		return malformed("type", start, "the object identifier % x is not that of a TPM key", []byte(oid.String))
	}
	switch last {
	case oidLoadable:
		k.Type = Loadable
	case oidImportable:
		k.Type = Importable
	case oidSealed:
		return ErrSealed
	default:
		return malformed("type", start, "there is no key type 2.23.133.10.1.%d", last)
	}
	return nil
}

// split parts the last octet from the rest.
func split(oid []byte) (prefix []byte, last byte) {
	if len(oid) == 0 {
		return nil, 0
	}
	return oid[:len(oid)-1], oid[len(oid)-1]
}

// legacyLayout recognises the fields of a TSS2 KEY BLOB after its object
// identifier: the parent is [1] or absent, the public area is [2].
func legacyLayout(c cursor) error {
	c.SkipOptionalASN1(contextTag(0))
	var parent cryptobyte.String
	var has bool
	c.ReadOptionalASN1(&parent, &has, contextTag(1))
	if has && !parent.PeekASN1Tag(asn1.INTEGER) {
		return nil
	}
	if !has && !c.PeekASN1Tag(contextTag(2)) {
		return nil
	}
	return fmt.Errorf("%w: the fields of a TSS2 KEY BLOB, of openssl_tpm2_engine before 2018", ErrLegacy)
}

// parseOptional reads the tagged fields, which come in ascending order.
func (k *TPMKey) parseOptional(c *cursor) error {
	next := 0
	secretAt := c.offset()
	for !c.Empty() && c.String[0]&0xc0 == 0x80 {
		n, start := int(c.String[0]&0x1f), c.offset()
		field := fmt.Sprintf("field [%d]", n)
		if n < next || n > tagMax {
			return malformed(field, start, "the tag is out of order")
		}
		next = n + 1
		if n > tagRSAParent {
			if !c.SkipASN1(asn1.Tag(c.String[0])) {
				return malformed(field, start, "the length is wrong")
			}
			k.Unknown = append(k.Unknown, n)
			continue
		}
		if err := k.parseTagged(c, n); err != nil {
			return err
		}
		if n <= tagSecret {
			secretAt = start
		}
	}
	return checkSecret(k.Type, k.Secret, secretAt)
}

// parseTagged reads the optional field [n].
func (k *TPMKey) parseTagged(c *cursor, n int) (err error) {
	var v cursor
	switch n {
	case tagEmptyAuth:
		if v, err = c.explicit("emptyAuth", n, asn1.BOOLEAN); err == nil {
			k.EmptyAuth, err = v.boolean("emptyAuth")
		}
	case tagPolicy:
		if v, err = c.explicit("policy", n, asn1.SEQUENCE); err == nil {
			k.Policy, err = parsePolicies(v, "policy")
		}
	case tagSecret:
		if v, err = c.explicit("secret", n, asn1.OCTET_STRING); err == nil {
			k.Secret = bytes.Clone(v.String)
			err = checkTPM2B("secret", k.Secret, v.offset())
		}
	case tagAuthPolicy:
		if v, err = c.explicit("authPolicy", n, asn1.SEQUENCE); err == nil {
			k.AuthPolicy, err = parseAuthPolicies(v)
		}
	case tagDescription:
		if v, err = c.explicit("description", n, asn1.UTF8String); err == nil {
			k.Description, err = parseDescription(v)
		}
	case tagRSAParent:
		if v, err = c.explicit("rsaParent", n, asn1.BOOLEAN); err == nil {
			k.RSAParent, err = v.boolean("rsaParent")
		}
	}
	return err
}

func parseDescription(v cursor) (string, error) {
	if len(v.String) > maxDescription {
		return "", malformed("description", v.offset(), "%d octets, at most %d are allowed", len(v.String), maxDescription)
	}
	return string(v.String), nil
}

// parsePolicies reads the content of a SEQUENCE OF TPMPolicy.
func parsePolicies(c cursor, field string) ([]Policy, error) {
	var list []Policy
	for !c.Empty() {
		if len(list) == maxPolicy {
			return nil, tooManyCommands(field, c.offset())
		}
		item, err := c.element(field, asn1.SEQUENCE)
		if err != nil {
			return nil, err
		}
		code, err := item.element(field+" commandCode", contextTag(0))
		if err != nil {
			return nil, err
		}
		n, err := code.integer(field+" commandCode", 0, math.MaxUint32)
		if err != nil {
			return nil, err
		}
		if err := code.done(field + " commandCode"); err != nil {
			return nil, err
		}
		body, err := item.explicit(field+" commandPolicy", 1, asn1.OCTET_STRING)
		if err != nil {
			return nil, err
		}
		if err := item.done(field); err != nil {
			return nil, err
		}
		list = append(list, Policy{uint32(n), bytes.Clone(body.String)})
	}
	return list, nil
}

// parseAuthPolicies reads the content of a SEQUENCE OF TPMAuthPolicy.
func parseAuthPolicies(c cursor) ([]AuthPolicy, error) {
	var list []AuthPolicy
	for !c.Empty() {
		item, err := c.element("authPolicy", asn1.SEQUENCE)
		if err != nil {
			return nil, err
		}
		var p AuthPolicy
		if item.PeekASN1Tag(contextTag(0)) {
			name, err := item.explicit("authPolicy name", 0, asn1.UTF8String)
			if err != nil {
				return nil, err
			}
			p.Name = string(name.String)
		}
		policies, err := item.explicit("authPolicy policy", 1, asn1.SEQUENCE)
		if err != nil {
			return nil, err
		}
		if p.Policy, err = parsePolicies(policies, "authPolicy policy"); err != nil {
			return nil, err
		}
		if err := item.done("authPolicy"); err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// parseRequired reads parent, pubkey and privkey.
func (k *TPMKey) parseRequired(c *cursor) error {
	start := c.offset()
	// 32-bit builds of some writers made the handle a negative number.
	parent, err := c.integer("parent", math.MinInt32, math.MaxUint32)
	if err != nil {
		return err
	}
	k.Parent = uint32(parent)
	if err := checkParent(k.Parent, start); err != nil {
		return err
	}
	pubkey, err := c.element("pubkey", asn1.OCTET_STRING)
	if err != nil {
		return err
	}
	k.Pubkey = bytes.Clone(pubkey.String)
	if k.Public, err = parsePublic(pubkey); err != nil {
		return err
	}
	privkey, err := c.element("privkey", asn1.OCTET_STRING)
	if err != nil {
		return err
	}
	k.Privkey = bytes.Clone(privkey.String)
	return checkTPM2B("privkey", k.Privkey, privkey.offset())
}
