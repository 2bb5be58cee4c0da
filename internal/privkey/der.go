package privkey

import (
	"bytes"
	encoding_asn1 "encoding/asn1"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// context is the tag of a field [n]; constructed if it has others in it.
func context(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific() }

// sequence opens a SEQUENCE that is all of der.
func sequence(format string, der []byte) (cryptobyte.String, error) {
	s := cryptobyte.String(der)
	var content cryptobyte.String
	switch {
	case !s.PeekASN1Tag(asn1.SEQUENCE):
		return nil, malformed("%s: not a SEQUENCE", format)
	case !s.ReadASN1(&content, asn1.SEQUENCE):
		return nil, malformed("%s: the file ends too early, or its first length is wrong", format)
	case !s.Empty():
		return nil, malformed("%s: %d octets after its end", format, len(s))
	}
	return content, nil
}

// algorithm reads an AlgorithmIdentifier: an object identifier in text, and the
// element that follows it, if there is one.
func algorithm(s *cryptobyte.String) (oid string, params cryptobyte.String, ok bool) {
	var content cryptobyte.String
	var id encoding_asn1.ObjectIdentifier
	if !s.ReadASN1(&content, asn1.SEQUENCE) || !content.ReadASN1ObjectIdentifier(&id) {
		return "", nil, false
	}
	var tag asn1.Tag
	if !content.Empty() && (!content.ReadAnyASN1Element(&params, &tag) || !content.Empty()) {
		return "", nil, false
	}
	return id.String(), params, true
}

// plausible reports whether der is a SEQUENCE of exactly its length that begins
// with a version, as every format of keys does: what a wrong passphrase gives
// is not.
func plausible(der []byte) bool {
	s := cryptobyte.String(der)
	var content cryptobyte.String
	var version int64
	return s.ReadASN1(&content, asn1.SEQUENCE) && s.Empty() && content.ReadASN1Integer(&version)
}

// parseBinary reads DER without PEM, whose format is known by its first fields.
func (p *parser) parseBinary(data []byte) error {
	if data[0] != 0x30 {
		return malformed("no private key in the file: neither PEM nor DER")
	}
	content, err := sequence("DER", data)
	if err != nil {
		return err
	}
	switch shape := shapeOf(content); {
	case strings.HasPrefix(shape, "iso"):
		return p.parsePKCS8(data)
	case shape == "so":
		return p.parseEncryptedPKCS8(data)
	case shape == "iiiiii":
		return dsaKey()
	case strings.HasPrefix(shape, "iii"):
		return p.parsePKCS1(data)
	case strings.HasPrefix(shape, "io"):
		return p.parseSEC1(data, nil)
	default:
		return foreignDER(content, shape)
	}
}

// foreignDER names what is DER and no private key.
func foreignDER(content cryptobyte.String, shape string) error {
	switch {
	case shape == "sb", shape == "ii":
		return fmt.Errorf("%w: DER", ErrPublic)
	case shape == "ssb":
		return fmt.Errorf("%w: a certificate, or a request for one, in DER", ErrPublic)
	case bytes.HasPrefix(content, []byte{6, 6, 0x67, 0x81, 0x05, 0x0a}):
		return fmt.Errorf("%w: DER without PEM", ErrTPM)
	case strings.HasPrefix(shape, "is"):
		return unsupportedKey("PKCS #12 file", "keys in PKCS #12 are not read here",
			wayConvert+"openssl pkcs12 -in FILE -nocerts -out NEW")
	}
	return malformed("no private key in the file: DER of something else")
}

// shapeOf has a letter for each element: integer, octet string, bit string,
// sequence, object identifier; "?" for others.
func shapeOf(s cryptobyte.String) string {
	letters := map[asn1.Tag]byte{
		asn1.INTEGER: 'i', asn1.OCTET_STRING: 'o', asn1.BIT_STRING: 'b',
		asn1.SEQUENCE: 's', asn1.OBJECT_IDENTIFIER: 'd',
	}
	var shape []byte
	for !s.Empty() && len(shape) < 16 {
		var element cryptobyte.String
		var tag asn1.Tag
		if !s.ReadAnyASN1(&element, &tag) {
			break
		}
		letter := letters[tag]
		if letter == 0 {
			letter = '?'
		}
		shape = append(shape, letter)
	}
	return string(shape)
}
