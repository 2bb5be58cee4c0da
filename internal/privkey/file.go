package privkey

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// parseText reads the one private key among the blocks of a text.
func (p *parser) parseText(text []byte) error {
	list, err := blocks(text)
	if err != nil {
		return err
	}
	b, err := theKey(list)
	switch {
	case err != nil:
		return err
	case b == nil:
		return foreignText(text)
	}
	return p.parseBlock(b, parameters(list))
}

// theKey returns the one block that is a private key, nil if there is no block
// of any kind.
func theKey(list []*block) (*block, error) {
	var key, public *block
	for _, b := range list {
		switch b.kind() {
		case blockPrivate, blockTPM:
			if key != nil {
				return nil, malformed("two private keys in one file, in lines %d and %d; put each into a file of its own", key.line, b.line)
			}
			key = b
		case blockPublic:
			public = b
		}
	}
	switch {
	case key != nil && key.kind() == blockTPM:
		return nil, fmt.Errorf("%w: %s in line %d", ErrTPM, key.typ, key.line)
	case key != nil:
		return key, nil
	case public != nil:
		return nil, fmt.Errorf("%w: %s in line %d", ErrPublic, public.typ, public.line)
	case len(list) > 0:
		return nil, malformed("line %d: a block of type %q, which is no private key", list[0].line, list[0].typ)
	}
	return nil, nil
}

// parameters returns the EC PARAMETERS that openssl writes in front of a key.
func parameters(list []*block) *block {
	i := slices.IndexFunc(list, func(b *block) bool { return b.typ == "EC PARAMETERS" })
	if i < 0 {
		return nil
	}
	return list[i]
}

// parseBlock reads a block of the kind blockPrivate.
func (p *parser) parseBlock(b, params *block) error {
	switch b.typ {
	case "DSA PRIVATE KEY":
		return dsaKey()
	case "PGP PRIVATE KEY BLOCK":
		return useless("PGP key", "keys of OpenPGP are not taken apart here")
	}
	content, err := b.decode()
	if err != nil {
		return err
	}
	defer clear(content)
	switch b.typ {
	case "OPENSSH PRIVATE KEY":
		return p.parseOpenSSH(content)
	case "PRIVATE KEY":
		return p.parsePKCS8(content)
	case "ENCRYPTED PRIVATE KEY":
		return p.parseEncryptedPKCS8(content)
	}
	return p.parseTraditional(b, content, params)
}

// parseTraditional reads what OpenSSL called its traditional format, in which
// the PEM is encrypted and not the key.
func (p *parser) parseTraditional(b *block, content []byte, params *block) error {
	if b.encrypted() {
		decrypt, err := b.unlocker(content)
		if err != nil {
			return err
		}
		plain, err := p.unlock(decrypt)
		if err != nil {
			return err
		}
		defer clear(plain)
		content = plain
	}
	if b.typ == "RSA PRIVATE KEY" {
		return p.parsePKCS1(content)
	}
	var curve []byte
	if params != nil {
		var err error
		if curve, err = params.decode(); err != nil {
			return err
		}
	}
	return p.parseSEC1(content, curve)
}

// foreignText names the texts without PEM that are keys nevertheless.
func foreignText(text []byte) error {
	head := strings.TrimSpace(string(text[:min(len(text), 512)]))
	switch {
	case strings.HasPrefix(head, "PuTTY-User-Key-File-"):
		return puttyKey(head)
	case strings.Contains(head, "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"):
		return unsupportedKey("SSH2 key", "it is in the format of ssh.com", wayConvert+"(umask 077 && ssh-keygen -i -f FILE >NEW)")
	case strings.Contains(head, "---- BEGIN SSH2 PUBLIC KEY ----"):
		return fmt.Errorf("%w: SSH2 PUBLIC KEY, of RFC 4716", ErrPublic)
	case strings.HasPrefix(head, "{") && strings.Contains(head, `"kty"`):
		return unsupportedKey("JSON Web Key", "keys in JSON are not read here", "convert it to PKCS #8")
	case bytes.Contains(text, []byte(pemBegin)):
		return malformed("BEGIN without a line of its own: the line breaks are lost")
	}
	if key, _, _, _, err := ssh.ParseAuthorizedKey(text); err == nil {
		return fmt.Errorf("%w: %s, as in a .pub file", ErrPublic, key.Type())
	}
	return malformed("no private key in the file: neither PEM nor DER")
}

// puttyKey names the key by the first line of its file, "…-2: TYPE".
func puttyKey(head string) error {
	line, _, _ := strings.Cut(head, "\n")
	_, typ, _ := strings.Cut(line, ": ")
	if err := uselessType(strings.TrimSpace(typ), addPuTTY); err != nil {
		return err
	}
	return unsupportedKey("PuTTY key", "PuTTY's own format is not read here",
		wayConvert+"puttygen FILE -O private-openssh -o NEW")
}

// uselessType refuses the types of keys of SSH that no TPM has; nil for others. add
// is how an Ed25519 key of that format is added to an agent.
func uselessType(typ, add string) error {
	switch {
	case typ == ssh.KeyAlgoED25519:
		return ed25519Key(add)
	case typ == "ssh-ed448":
		return useless("Ed448 key", "no TPM has Ed448")
	case typ == "ssh-dss":
		return dsaKey()
	case strings.HasPrefix(typ, "sk-"), strings.HasPrefix(typ, "webauthn-sk-"):
		return fidoKey(typ)
	}
	return nil
}
