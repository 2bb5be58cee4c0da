package keyfile

import (
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// cursor is a string that knows where it stands in the whole, for errors. It
// reads both worlds: DER, and the TPM's own structures inside of it.
type cursor struct {
	cryptobyte.String
	end int // where the string ends, in octets from the start of the whole
}

func newCursor(b []byte) cursor { return cursor{b, len(b)} }

func (c *cursor) offset() int { return c.end - len(c.String) }

// element reads one DER element with the given tag and returns its content.
func (c *cursor) element(field string, tag asn1.Tag) (cursor, error) {
	start := c.offset()
	if c.Empty() {
		return cursor{}, malformed(field, start, "missing")
	}
	if !c.PeekASN1Tag(tag) {
		return cursor{}, malformed(field, start, "tag %#02x where %#02x should be", c.String[0], uint8(tag))
	}
	var content cryptobyte.String
	if !c.ReadASN1(&content, tag) {
		return cursor{}, malformed(field, start, "the length is wrong")
	}
	return cursor{content, c.offset()}, nil
}

// explicit reads the element [n] EXPLICIT whose only content has the given tag.
func (c *cursor) explicit(field string, n int, tag asn1.Tag) (cursor, error) {
	outer, err := c.element(field, contextTag(n))
	if err != nil {
		return cursor{}, err
	}
	inner, err := outer.element(field, tag)
	if err != nil {
		return cursor{}, err
	}
	return inner, outer.done(field)
}

func contextTag(n int) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }

// done refuses octets that nothing has claimed.
func (c *cursor) done(field string) error {
	if c.Empty() {
		return nil
	}
	return malformed(field, c.offset(), "%d octets too many", len(c.String))
}

// boolean takes the content of a BOOLEAN as BER does, any octet but zero is
// TRUE: half of the writers put 01 where DER has FF.
func (c *cursor) boolean(field string) (bool, error) {
	if len(c.String) != 1 {
		return false, malformed(field, c.offset(), "a BOOLEAN of %d octets", len(c.String))
	}
	return c.String[0] != 0, nil
}

// integer reads an INTEGER from min to max.
func (c *cursor) integer(field string, min, max int64) (int64, error) {
	start := c.offset()
	probe := *c
	if _, err := probe.element(field, asn1.INTEGER); err != nil {
		return 0, err
	}
	var n int64
	if !c.ReadASN1Integer(&n) {
		return 0, malformed(field, start, "not an INTEGER of at most 64 bits in shortest form")
	}
	if n < min || n > max {
		return 0, malformed(field, start, "%d is out of range", n)
	}
	return n, nil
}

func (c *cursor) uint16(field string) (uint16, error) {
	start, v := c.offset(), uint16(0)
	if !c.ReadUint16(&v) {
		return 0, malformed(field, start, "ends too early")
	}
	return v, nil
}

func (c *cursor) uint32(field string) (uint32, error) {
	start, v := c.offset(), uint32(0)
	if !c.ReadUint32(&v) {
		return 0, malformed(field, start, "ends too early")
	}
	return v, nil
}

// sized reads a TPM2B and returns its content, which may be empty.
func (c *cursor) sized(field string) (cursor, error) {
	start := c.offset()
	var content cryptobyte.String
	if !c.ReadUint16LengthPrefixed(&content) {
		return cursor{}, malformed(field, start, "ends too early")
	}
	return cursor{content, c.offset()}, nil
}
