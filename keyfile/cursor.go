package keyfile

import (
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

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
	outer := c.element(field, contextTag(n))
	inner := outer.element(field, tag)
	outer.done(field)
	return inner
}

func contextTag(n int) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }

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
