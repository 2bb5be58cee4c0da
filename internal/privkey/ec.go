package privkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	encoding_asn1 "encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// parseEC reads an ECPrivateKey (RFC 5915). curve is that of the file around
// it, as DER, or nil.
func parseEC(der, curve []byte) (*ecdsa.PrivateKey, error) {
	s, err := sequence("SEC 1", der)
	if err != nil {
		return nil, err
	}
	var version int64
	if !s.ReadASN1Integer(&version) || version != 1 {
		return nil, malformed("SEC 1: the version is not 1")
	}
	var scalar, params, public cryptobyte.String
	var hasParams, hasPublic bool
	switch {
	case !s.ReadASN1(&scalar, asn1.OCTET_STRING):
		return nil, malformed("SEC 1: the private number cannot be read")
	case !s.ReadOptionalASN1(&params, &hasParams, context(0).Constructed()):
		return nil, malformed("SEC 1: the curve cannot be read")
	case !s.ReadOptionalASN1(&public, &hasPublic, context(1).Constructed()):
		return nil, malformed("SEC 1: the public key cannot be read")
	case !s.Empty():
		return nil, malformed("SEC 1: %d octets behind the key", len(s))
	}
	switch {
	case !hasParams && curve == nil:
		return nil, malformed("SEC 1: the key names no curve")
	case !hasParams:
		params = curve
	case curve != nil && !bytes.Equal(params, curve):
		return nil, malformed("SEC 1: two different curves are named")
	}
	return newEC(scalar, params, public, hasPublic)
}

func newEC(scalar, params, public cryptobyte.String, hasPublic bool) (*ecdsa.PrivateKey, error) {
	c, err := readCurve(params)
	if err != nil {
		return nil, err
	}
	key, err := scalarKey(c, scalar)
	if err != nil || !hasPublic {
		return key, err
	}
	var point []byte
	if !public.ReadASN1BitStringAsBytes(&point) || !public.Empty() {
		return nil, malformed("SEC 1: the public key cannot be read")
	}
	return key, checkPoint(key, point)
}

// scalarKey makes a key of its private number, which writers have cut short or
// lengthened by zeros.
func scalarKey(c elliptic.Curve, scalar []byte) (*ecdsa.PrivateKey, error) {
	number := bytes.TrimLeft(scalar, "\x00")
	size := (c.Params().BitSize + 7) / 8
	if len(number) > size {
		return nil, malformed("EC: the private number is larger than the curve")
	}
	full := make([]byte, size)
	defer clear(full)
	copy(full[size-len(number):], number)
	key, err := ecdsa.ParseRawPrivateKey(c, full)
	if err != nil {
		return nil, malformed("EC: the private number is zero or larger than the curve's order")
	}
	return key, nil
}

// checkPoint compares the public key in the file with that of the private one.
// The file's may be compressed.
func checkPoint(key *ecdsa.PrivateKey, point []byte) error {
	want, err := key.PublicKey.Bytes()
	if err != nil {
		return malformed("EC: %v", err)
	}
	if len(point) == 0 {
		return malformed("EC: the public key is empty")
	}
	odd := want[len(want)-1] & 1
	switch point[0] {
	case 2, 3: // compressed
		want = want[:1+len(want)/2]
		want[0] = 2 | odd
	case 6, 7: // both, "hybrid"
		want[0] = 6 | odd
	}
	if !bytes.Equal(want, point) {
		return errOtherPublic()
	}
	return nil
}

// readCurve reads ECParameters.
func readCurve(params cryptobyte.String) (elliptic.Curve, error) {
	if params.PeekASN1Tag(asn1.SEQUENCE) {
		return nil, unsupportedKey("EC key with explicit parameters", "its curve is spelled out where a name should be",
			wayConvert+"openssl pkey -aes256 -in FILE -ec_param_enc named_curve -out NEW", wayNew)
	}
	var id encoding_asn1.ObjectIdentifier
	if !params.ReadASN1ObjectIdentifier(&id) || !params.Empty() {
		return nil, malformed("EC: the name of the curve cannot be read")
	}
	switch oid := id.String(); oid {
	case "1.2.840.10045.3.1.7":
		return elliptic.P256(), nil
	case "1.3.132.0.34":
		return elliptic.P384(), nil
	case "1.3.132.0.35":
		return elliptic.P521(), nil
	default:
		return nil, curveKey(curveName(oid))
	}
}

// curveName gives the usual name of a curve that SSH lacks, else the number.
func curveName(oid string) string {
	names := map[string]string{
		"1.2.840.10045.3.1.1":   "P-192",
		"1.3.132.0.33":          "P-224",
		"1.3.132.0.10":          "secp256k1",
		"1.3.36.3.3.2.8.1.1.7":  "brainpoolP256r1",
		"1.3.36.3.3.2.8.1.1.8":  "brainpoolP256t1",
		"1.3.36.3.3.2.8.1.1.9":  "brainpoolP320r1",
		"1.3.36.3.3.2.8.1.1.11": "brainpoolP384r1",
		"1.3.36.3.3.2.8.1.1.12": "brainpoolP384t1",
		"1.3.36.3.3.2.8.1.1.13": "brainpoolP512r1",
		"1.3.36.3.3.2.8.1.1.14": "brainpoolP512t1",
		"1.2.156.10197.1.301":   "SM2",
	}
	if name := names[oid]; name != "" {
		return name
	}
	return "the curve " + oid
}
