package privkey

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/crypto/ssh"
)

// opensshMagic begins every openssh-key-v1 file (PROTOCOL.key of OpenSSH).
const opensshMagic = "openssh-key-v1\x00"

// A container is the outside of an openssh-key-v1 file.
type container struct {
	Cipher, KDF, Options string
	Keys                 uint32
	Public               []byte // not encrypted
	Private              []byte
	Rest                 []byte `ssh:"rest"`
}

// A field is a string of RFC 4251, and what follows it.
type field struct {
	Text string
	Rest []byte `ssh:"rest"`
}

// parseOpenSSH lets x/crypto/ssh read a key, after it has refused what it can
// without a passphrase.
func (p *parser) parseOpenSSH(content []byte) error {
	c := new(container)
	inside, ok := bytes.CutPrefix(content, []byte(opensshMagic))
	if !ok || ssh.Unmarshal(inside, c) != nil {
		return malformed("OpenSSH: the file ends too early, or is not openssh-key-v1")
	}
	var public field
	switch err := ssh.Unmarshal(c.Public, &public); {
	case c.Keys != 1:
		return malformed("OpenSSH: the file has %d keys; put each into a file of its own", c.Keys)
	case err != nil:
		return malformed("OpenSSH: the public key cannot be read")
	case !slices.Contains([]string{ssh.KeyAlgoRSA, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521}, public.Text):
		return unusable(public.Text)
	}
	if err := c.checkCipher(p.most.rounds); err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: content})
	if c.Cipher == "none" {
		key, err := ssh.ParseRawPrivateKey(text)
		p.key.Comment = c.comment()
		return p.keepOpenSSH(c, key, err)
	}
	return p.unlock(func(passphrase []byte) error {
		key, err := ssh.ParseRawPrivateKeyWithPassphrase(text, passphrase)
		if len(passphrase) == 0 || errors.Is(err, x509.IncorrectPasswordError) {
			return ErrPassphrase
		}
		return p.keepOpenSSH(c, key, err)
	})
}

// keepOpenSSH compares the key with the public key outside of the encryption.
func (p *parser) keepOpenSSH(c *container, key any, err error) error {
	if err := p.keep("OpenSSH", key, err); err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(p.key.Private)
	if err != nil || !bytes.Equal(signer.PublicKey().Marshal(), c.Public) {
		return errOtherPublic
	}
	return nil
}

// checkCipher accepts what all versions of ssh-keygen use unless they are told
// otherwise, and limits the work for the passphrase.
func (c *container) checkCipher(most uint32) error {
	var options struct {
		Salt   string
		Rounds uint32
	}
	err := ssh.Unmarshal([]byte(c.Options), &options)
	switch {
	case c.Cipher != "none" && c.Cipher != "aes256-ctr" && c.Cipher != "aes256-cbc":
		return encryptedWith("the cipher "+quoted(c.Cipher), useKeygen)
	case len(c.Rest) > 0:
		return malformed("OpenSSH: %d octets follow the private key", len(c.Rest))
	case c.Cipher == "none":
		return nil
	case c.KDF != "bcrypt":
		return encryptedWith("the key derivation "+quoted(c.KDF), useKeygen)
	case err != nil || options.Salt == "" || options.Rounds == 0:
		return malformed("OpenSSH: the salt or the number of rounds of bcrypt is missing")
	case options.Rounds > most:
		return tooMuch("rounds of bcrypt", int64(options.Rounds), int64(most), useKeygen)
	}
	return nil
}

// comment returns the comment of a key that is not encrypted, as one line that
// fits into authorized_keys.
func (c *container) comment() string {
	f := field{Rest: c.Private[min(8, len(c.Private)):]} // after the two check numbers
	fields := 4                                          // type, curve, public and private number
	for i := 0; i <= fields; i++ {
		if err := ssh.Unmarshal(f.Rest, &f); err != nil {
			return ""
		}
		if i == 0 && f.Text == ssh.KeyAlgoRSA {
			fields = 7 // type, and six numbers
		}
	}
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(f.Text, ""), unicode.IsControl), "")
}
