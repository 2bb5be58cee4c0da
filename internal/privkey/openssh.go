package privkey

import (
	"bytes"
	"crypto/elliptic"
	"fmt"
	"math/big"
	"strings"
	"unicode"

	"golang.org/x/crypto/ssh"
)

// opensshMagic is what openssh-key-v1 begins with (PROTOCOL.key of OpenSSH).
const opensshMagic = "openssh-key-v1\x00"

// container is the outside of an openssh-key-v1 file.
type container struct {
	cipher, kdf string
	kdfOptions  []byte
	public      []byte // the public key, which is not encrypted
	data        []byte
	tag         []byte // of the ciphers that have one
}

// parseOpenSSH reads openssh-key-v1.
func (p *parser) parseOpenSSH(content []byte) error {
	c, err := openContainer(content)
	if err != nil {
		return err
	}
	typ := publicType(c.public)
	if err := checkType(typ); err != nil {
		return err
	}
	data, err := p.unlockContainer(c)
	if err != nil {
		return err
	}
	if p.key.Encrypted {
		defer clear(data)
	}
	return p.parsePrivate(data, typ, c.public)
}

func openContainer(content []byte) (*container, error) {
	rest, ok := bytes.CutPrefix(content, []byte(opensshMagic))
	if !ok {
		return nil, malformed("OpenSSH: the content does not begin with openssh-key-v1")
	}
	w := &wire{rest: rest}
	c := &container{cipher: w.text("cipher"), kdf: w.text("key derivation"), kdfOptions: w.bytes("key derivation options")}
	if n := w.number("number of keys"); w.err == nil && n != 1 {
		return nil, malformed("OpenSSH: the file has %d keys; put each into a file of its own", n)
	}
	c.public = w.bytes("public key")
	c.data = w.bytes("private key")
	c.tag = w.rest
	return c, w.err
}

// unlockContainer returns the private part, which is c's own if it is not
// encrypted.
func (p *parser) unlockContainer(c *container) ([]byte, error) {
	if (c.cipher == "none") != (c.kdf == "none") {
		return nil, malformed("OpenSSH: cipher %q with key derivation %q", c.cipher, c.kdf)
	}
	s, err := opensshCipherOf(c.cipher)
	if err != nil {
		return nil, err
	}
	switch {
	case len(c.data) == 0 || len(c.data)%s.block != 0:
		return nil, malformed("OpenSSH: %d octets of private key are no number of blocks of %d", len(c.data), s.block)
	case len(c.tag) != s.tag:
		return nil, malformed("OpenSSH: %d octets behind the private key, %d are right", len(c.tag), s.tag)
	case s.open == nil:
		return c.data, nil
	}
	derive, err := p.bcryptKDF(c, s.key+s.iv)
	if err != nil {
		return nil, err
	}
	return p.unlock(func(passphrase []byte) ([]byte, error) {
		key := derive(passphrase)
		defer clear(key)
		return s.open(key[:s.key], key[s.key:], c.data, c.tag)
	})
}

// bcryptKDF checks the key derivation and its work.
func (p *parser) bcryptKDF(c *container, size int) (func(passphrase []byte) []byte, error) {
	if c.kdf != "bcrypt" {
		return nil, encryptedWith("the key derivation "+quoted(c.kdf), wayRekey)
	}
	w := &wire{rest: c.kdfOptions}
	salt := w.bytes("salt")
	rounds := w.number("rounds")
	switch {
	case w.err != nil:
		return nil, w.err
	case len(w.rest) != 0 || len(salt) == 0 || rounds == 0:
		return nil, malformed("OpenSSH: the salt and rounds of bcrypt are none")
	case rounds > p.most.rounds:
		return nil, tooMuch(fmt.Sprintf("%d rounds of bcrypt", rounds), uint64(p.most.rounds), wayRekey)
	}
	return func(passphrase []byte) []byte { return bcryptKey(passphrase, salt, int(rounds), size) }, nil
}

// wayRekey changes the file in place, hence a copy.
const wayRekey = wayConvert + "cp FILE NEW && ssh-keygen -p -Z aes256-ctr -a 24 -f NEW"

// publicType is the type that the public key begins with.
func publicType(public []byte) string {
	w := &wire{rest: public}
	return w.text("type of the public key")
}

// checkType refuses, before a passphrase is asked for, what is of no use.
func checkType(typ string) error {
	switch typ {
	case ssh.KeyAlgoRSA, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return nil
	case "":
		return malformed("OpenSSH: the public key cannot be read")
	}
	if err := uselessType(typ, addOpenSSH); err != nil {
		return err
	}
	return useless("key of the type "+quoted(typ), "neither the TPM nor this program knows it")
}

// quoted makes text from a file fit for a terminal.
func quoted(text string) string { return fmt.Sprintf("%.64q", text) }

// parsePrivate reads the decrypted part.
func (p *parser) parsePrivate(data []byte, typ string, public []byte) error {
	w := &wire{rest: data}
	first, second := w.number("check"), w.number("check")
	if w.err != nil || first != second {
		if p.key.Encrypted {
			return ErrPassphrase
		}
		return malformed("OpenSSH: the two check numbers differ")
	}
	if inner := w.text("type"); w.err == nil && inner != typ {
		return malformed("OpenSSH: the private key is of type %s, the public one of type %s", quoted(inner), quoted(typ))
	}
	if err := p.readPrivate(w, typ); err != nil {
		return err
	}
	if !bytes.Equal(publicBlob(p.key.Private), public) {
		return errOtherPublic()
	}
	return nil
}

// readPrivate reads the fields of a type, the comment and the padding, 1, 2, 3
// and so on. The checks, which cost, come after all that can be cut short.
func (p *parser) readPrivate(w *wire, typ string) (err error) {
	var rsa rsaNumbers
	var curve string
	var point, scalar []byte
	if typ == ssh.KeyAlgoRSA {
		rsa = rsaNumbers{
			n: w.integer("modulus"), e: w.integer("public exponent"), d: w.integer("private exponent"),
			qinv: w.integer("coefficient"), p: w.integer("first prime"), q: w.integer("second prime"),
		}
	} else {
		curve, point, scalar = w.text("curve"), w.bytes("public point"), w.bytes("private number")
	}
	p.key.Comment = oneLine(w.text("comment"))
	for i, pad := range w.rest {
		if w.err == nil && pad != byte(i+1) {
			return malformed("OpenSSH: the padding is wrong, or something follows the comment")
		}
	}
	switch {
	case w.err != nil:
		return w.err
	case typ == ssh.KeyAlgoRSA:
		p.key.Private, err = rsa.key()
		return err
	case typ != "ecdsa-sha2-"+curve:
		return malformed("OpenSSH: a key of type %s on curve %s", quoted(typ), quoted(curve))
	case len(scalar) > 0 && scalar[0]&0x80 != 0:
		return malformed("OpenSSH: the private number is negative")
	}
	key, err := scalarKey(curveOf(typ), scalar)
	if err != nil {
		return err
	}
	p.key.Private = key
	return checkPoint(key, point)
}

func curveOf(typ string) elliptic.Curve {
	switch typ {
	case ssh.KeyAlgoECDSA384:
		return elliptic.P384()
	case ssh.KeyAlgoECDSA521:
		return elliptic.P521()
	}
	return elliptic.P256()
}

// oneLine leaves out what cannot stand in a line of authorized_keys.
func oneLine(comment string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, comment)
}

// wire reads the encodings of RFC 4251, section 5. The first error stays.
type wire struct {
	rest []byte
	err  error
}

func (w *wire) fail(field string) {
	w.err = malformed("OpenSSH: the file ends in the %s, or a length before it is wrong", field)
}

func (w *wire) number(field string) uint32 {
	if w.err == nil && len(w.rest) < 4 {
		w.fail(field)
	}
	if w.err != nil {
		return 0
	}
	n := uint32(w.rest[0])<<24 | uint32(w.rest[1])<<16 | uint32(w.rest[2])<<8 | uint32(w.rest[3])
	w.rest = w.rest[4:]
	return n
}

// bytes returns a string, which stays part of the file.
func (w *wire) bytes(field string) []byte {
	n := w.number(field)
	if w.err == nil && uint64(n) > uint64(len(w.rest)) {
		w.fail(field)
	}
	if w.err != nil {
		return nil
	}
	b := w.rest[:n:n]
	w.rest = w.rest[n:]
	return b
}

func (w *wire) text(field string) string { return string(w.bytes(field)) }

// integer returns an mpint; one that is negative gives zero, which no number
// of a key may be either.
func (w *wire) integer(field string) *big.Int {
	b := w.bytes(field)
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = nil
	}
	return new(big.Int).SetBytes(b)
}
