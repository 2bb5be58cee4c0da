package privkey

import (
	"bytes"
	"crypto/x509"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

const (
	oidRSA = "1.2.840.113549.1.1.1"
	oidEC  = "1.2.840.10045.2.1"
)

// parsePKCS8 reads a PrivateKeyInfo (RFC 5208), with the public key that RFC
// 5958 allows behind it.
func (p *parser) parsePKCS8(der []byte) error {
	s, err := sequence("PKCS #8", der)
	if err != nil {
		return err
	}
	var version int64
	if !s.ReadASN1Integer(&version) || version < 0 || version > 1 {
		return malformed("PKCS #8: the version is neither 1 nor 2")
	}
	oid, params, ok := algorithm(&s)
	if !ok {
		return malformed("PKCS #8: the algorithm cannot be read")
	}
	var inner cryptobyte.String
	if !s.ReadASN1(&inner, asn1.OCTET_STRING) {
		return malformed("PKCS #8: the private key cannot be read")
	}
	public, err := behindPKCS8(s)
	if err != nil {
		return err
	}
	switch oid {
	case oidRSA:
		return p.holdRSA(inner, params, public)
	case oidEC:
		return p.holdEC(inner, params, public)
	}
	return otherAlgorithm(oid)
}

// behindPKCS8 reads the attributes, of which nothing is used, and the public
// key, which is nil if there is none.
func behindPKCS8(s cryptobyte.String) (public []byte, err error) {
	var bits cryptobyte.String
	var has bool
	if !s.SkipOptionalASN1(context(0).Constructed()) || !s.ReadOptionalASN1(&bits, &has, context(1)) || !s.Empty() {
		return nil, malformed("PKCS #8: what is behind the private key cannot be read")
	}
	if !has {
		return nil, nil
	}
	var unused uint8
	if !bits.ReadUint8(&unused) || unused != 0 {
		return nil, malformed("PKCS #8: the public key is no string of octets")
	}
	return bits, nil
}

func (p *parser) holdRSA(inner, params, public []byte) error {
	if len(params) > 0 && !bytes.Equal(params, []byte{5, 0}) {
		return malformed("PKCS #8: an RSA key has no parameters")
	}
	key, err := parseRSA(inner)
	if err != nil {
		return err
	}
	if public != nil && !bytes.Equal(public, x509.MarshalPKCS1PublicKey(&key.PublicKey)) {
		return errOtherPublic()
	}
	p.key.Private = key
	return nil
}

func (p *parser) holdEC(inner, params, public []byte) error {
	if len(params) == 0 {
		return malformed("PKCS #8: the EC key names no curve")
	}
	key, err := parseEC(inner, params)
	if err != nil {
		return err
	}
	if public != nil {
		if err := checkPoint(key, public); err != nil {
			return err
		}
	}
	p.key.Private = key
	return nil
}

// parsePKCS1 reads an RSAPrivateKey (RFC 8017, appendix A.1.2).
func (p *parser) parsePKCS1(der []byte) error {
	key, err := parseRSA(der)
	if err != nil {
		return err
	}
	p.key.Private = key
	return nil
}

// parseSEC1 reads an ECPrivateKey (RFC 5915). curve, if not nil, is for a key
// that does not name its own.
func (p *parser) parseSEC1(der, curve []byte) error {
	key, err := parseEC(der, curve)
	if err != nil {
		return err
	}
	p.key.Private = key
	return nil
}

func errOtherPublic() error {
	return malformed("the private key does not belong to the public key beside it")
}

// otherAlgorithm names the keys that PKCS #8 may have and a TPM has no use for.
func otherAlgorithm(oid string) error {
	switch oid {
	case "1.3.101.112":
		return ed25519Key(addPKCS8)
	case "1.3.101.113":
		return useless("Ed448 key", "no TPM has Ed448")
	case "1.3.101.110":
		return useless("X25519 key", "it cannot sign")
	case "1.3.101.111":
		return useless("X448 key", "it cannot sign")
	case "1.2.840.113549.1.3.1", "1.2.840.10046.2.1":
		return useless("Diffie-Hellman key", "it cannot sign")
	case "1.2.840.10040.4.1":
		return dsaKey()
	case "1.2.840.113549.1.1.10":
		return useless("RSA key for PSS only", "SSH signs with PKCS #1 v1.5, which this key must not")
	case "1.3.132.1.12", "1.3.132.1.13":
		return useless("EC key for key agreement only", "it must not sign")
	}
	if strings.HasPrefix(oid, "2.16.840.1.101.3.4.3.") {
		return useless("post-quantum key ("+oid+")", "no TPM 2.0 has its algorithm")
	}
	return useless("key of the algorithm "+oid, "neither SSH nor a TPM has it")
}
