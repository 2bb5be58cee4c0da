package privkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
)

// The shapes of the formats, as shapeOf returns them.
var (
	shapesPKCS1 = []string{"\x02\x02\x02\x02\x02\x02\x02\x02\x02", "\x02\x02\x02\x02\x02\x02\x02\x02\x02\x30"}
	shapesPKCS8 = []string{"\x02\x30\x04", "\x02\x30\x04\xa0", "\x02\x30\x04\x81", "\x02\x30\x04\xa0\x81"}
	shapesSEC1  = []string{"\x02\x04", "\x02\x04\xa0", "\x02\x04\xa1", "\x02\x04\xa0\xa1"}
)

// shapeOf returns the tags of the elements of the SEQUENCE that is all of der,
// as far as they can be read, or "". The shape tells the format, and that
// nothing follows the key, which encoding/asn1 allows inside a SEQUENCE.
func shapeOf(der []byte) string {
	var outer, element asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	if err != nil || len(rest) > 0 || der[0] != 0x30 {
		return ""
	}
	var shape []byte
	for rest = outer.Bytes; len(rest) > 0; {
		if rest, err = asn1.Unmarshal(rest, &element); err != nil {
			return string(append(shape, 0))
		}
		shape = append(shape, element.FullBytes[0])
	}
	return string(shape)
}

func (p *parser) parseDER(der []byte) error {
	switch shape := shapeOf(der); {
	case slices.Contains(shapesPKCS1, shape):
		return p.parsePKCS1(der)
	case slices.Contains(shapesPKCS8, shape):
		return p.parsePKCS8(der)
	case slices.Contains(shapesSEC1, shape):
		key, err := x509.ParseECPrivateKey(der)
		return p.keepEC(key, err, der, nil)
	case shape == "\x30\x04":
		return p.parseEncryptedPKCS8(der)
	case shape == "\x02\x02\x02\x02\x02\x02":
		return unusable("ssh-dss")
	case shape == "\x30\x03", shape == "\x02\x02", shape == "\x30\x30\x03":
		return fmt.Errorf("%w: a public key or a certificate in DER", ErrPublic)
	case shape == "\x02\x30", shape == "\x02\x30\x30":
		return convert("PKCS #12 file", "tpm-agent does not read PKCS #12", "openssl pkcs12 -in FILE -nocerts -out NEW")
	case bytes.Contains(der[:min(16, len(der))], []byte{6, 6, 0x67, 0x81, 0x05, 0x0a}): // an object identifier of the TCG
		return fmt.Errorf("%w: DER without PEM", ErrTPM)
	case shape == "":
		return malformed("DER: the file ends too early, or something follows its end")
	}
	return malformed("DER: not a private key, or damaged")
}

// parseDecrypted reads DER that was decrypted. A wrong passphrase hardly ever
// gives what all formats have: a SEQUENCE that begins with a version.
func (p *parser) parseDecrypted(der []byte) error {
	if !strings.HasPrefix(shapeOf(der), "\x02") {
		return ErrPassphrase
	}
	return p.parseDER(der)
}

// parsePKCS1 reads an RSAPrivateKey (RFC 8017, appendix A.1.2).
func (p *parser) parsePKCS1(der []byte) error {
	if !slices.Contains(shapesPKCS1, shapeOf(der)) {
		return malformed("PKCS #1: a number is missing, or something follows the key")
	}
	key, err := x509.ParsePKCS1PrivateKey(der)
	return p.keep("PKCS #1", key, err)
}

// parsePKCS8 reads a PrivateKeyInfo (RFC 5208).
func (p *parser) parsePKCS8(der []byte) error {
	var info struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}
	if err := unmarshal("PKCS #8", der, &info); err != nil {
		return err
	}
	switch id := info.Algorithm.Algorithm.String(); id {
	case "1.2.840.113549.1.1.1":
		return p.parsePKCS1(info.Key)
	case "1.2.840.10045.2.1":
		key, err := x509.ParsePKCS8PrivateKey(der)
		return p.keepEC(key, err, info.Key, info.Algorithm.Parameters.FullBytes)
	default:
		return unusable(id)
	}
}

// keepEC keeps the key that crypto/x509 returned, after checking what it passes
// over in the ECPrivateKey (RFC 5915): a curve that it lacks, and the public key.
// PKCS #8 names the curve outside of der.
func (p *parser) keepEC(key any, err error, der, curve []byte) error {
	var inner struct {
		Version int
		Key     []byte
		Curve   asn1.RawValue  `asn1:"optional,explicit,tag:0"`
		Public  asn1.BitString `asn1:"optional,explicit,tag:1"`
	}
	if !slices.Contains(shapesSEC1, shapeOf(der)) {
		return malformed("SEC 1: a field is missing, or something follows the key")
	}
	if err := unmarshal("SEC 1", der, &inner); err != nil {
		return err
	}
	if curve == nil {
		curve = inner.Curve.Bytes
	}
	if err := checkCurve(curve); err != nil {
		return err
	}
	if err := p.keep("EC", key, err); err != nil {
		return err
	}
	if strings.HasSuffix(shapeOf(der), "\xa1") && !samePoint(p.key.Private.(*ecdsa.PrivateKey), inner.Public.Bytes) {
		return errOtherPublic
	}
	return nil
}

func checkCurve(der []byte) error {
	var id asn1.ObjectIdentifier
	if bytes.HasPrefix(der, []byte{0x30}) {
		return convert("EC key with explicit parameters", "the file describes its curve instead of naming it",
			"openssl pkey -aes256 -in FILE -ec_param_enc named_curve -out NEW")
	}
	if err := unmarshal("EC curve", der, &id); err != nil {
		return err
	}
	switch id.String() {
	case "1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35": // P-256, P-384, P-521
		return nil
	}
	return useless("EC key on the curve "+id.String(), "SSH has ECDSA with P-256, P-384 and P-521 only")
}

// unmarshal reads DER that ends with its value.
func unmarshal(format string, der []byte, value any) error {
	if rest, err := asn1.Unmarshal(der, value); err != nil || len(rest) > 0 {
		return malformed("%s: a field cannot be read, or something follows the last one", format)
	}
	return nil
}
