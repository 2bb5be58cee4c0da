package privkey

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

var (
	margins = regexp.MustCompile(`(?m)^[ \t]+|[ \t]+$`)
	// borders are the first and last lines of PEM blocks. A key that lost its
	// line breaks has none, so no error can quote it.
	borders = regexp.MustCompile(`(?m)^-----(BEGIN|END) [A-Z0-9 ]{1,40}-----$`)
)

// plainText returns data with line feeds between lines, without indentation and
// without the byte order marks of Windows.
func plainText(data []byte) string {
	text := strings.NewReplacer("\ufeff", "", "\r\n", "\n", "\r", "\n").Replace(string(data))
	return margins.ReplaceAllString(text, "")
}

// blocks returns all PEM blocks of a text, or nil if there are none or one is
// damaged: encoding/pem skips those, but the key can be in one.
func blocks(text string) (list []*pem.Block) {
	for b, rest := pem.Decode([]byte(text)); b != nil; b, rest = pem.Decode(rest) {
		list = append(list, b)
	}
	if len(borders.FindAllString(text, -1)) != 2*len(list) {
		return nil
	}
	return list
}

// parseBlocks reads the only private key among PEM blocks.
func (p *parser) parseBlocks(list []*pem.Block) error {
	var key, public *pem.Block
	for _, b := range list {
		switch {
		case strings.HasSuffix(b.Type, "PRIVATE KEY") || strings.HasPrefix(b.Type, "TSS"): // also TSS2 KEY BLOB
			if key != nil {
				return malformed("two private keys in one file; put each into a file of its own")
			}
			key = b
		case strings.HasSuffix(b.Type, "PUBLIC KEY") || strings.Contains(b.Type, "CERTIFICATE") || b.Type == "PKCS7":
			public = b
		}
	}
	switch {
	case key != nil:
		return p.parseBlock(key)
	case public != nil:
		return fmt.Errorf("%w: %s", ErrPublic, public.Type)
	}
	return malformed("a PEM block of type %q is not a private key", list[0].Type)
}

func (p *parser) parseBlock(b *pem.Block) error {
	switch {
	case strings.HasPrefix(b.Type, "TSS"):
		return fmt.Errorf("%w: %s", ErrTPM, b.Type)
	case b.Type == "DSA PRIVATE KEY":
		return unusable("ssh-dss")
	case b.Type == "OPENSSH PRIVATE KEY":
		return p.parseOpenSSH(b.Bytes)
	case b.Headers["DEK-Info"] != "" || b.Headers["Proc-Type"] != "":
		return p.parseEncryptedPEM(b)
	}
	return p.parseDER(b.Bytes) // which tells the other types apart
}

// parseEncryptedPEM reads a key in what OpenSSL calls its traditional format,
// in which the PEM is encrypted (RFC 1421), not the key.
func (p *parser) parseEncryptedPEM(b *pem.Block) error {
	name, _, _ := strings.Cut(b.Headers["DEK-Info"], ",")
	if name != "" && !slices.Contains([]string{"AES-128-CBC", "AES-192-CBC", "AES-256-CBC", "DES-EDE3-CBC", "DES-CBC"}, name) {
		return encryptedWith(quoted(name), useOpenSSL)
	}
	//lint:ignore SA1019 the format is weak, but ssh-keygen -m PEM still writes it
	decrypt := x509.DecryptPEMBlock
	// A try with any passphrase finds damage to the headers, and costs nothing.
	if _, err := decrypt(b, nil); err != nil && err != x509.IncorrectPasswordError {
		return libraryError("encrypted PEM", err)
	}
	return p.unlock(func(passphrase []byte) error {
		der, _ := decrypt(b, passphrase) // nil, if the padding is wrong
		return p.parseDecrypted(der)
	})
}

// notPEM returns the error for a text without PEM, or with damaged PEM.
func notPEM(text string) error {
	text = strings.TrimSpace(text)
	for _, f := range []struct{ prefix, kind, why, way string }{
		{"\xff\xfe", "UTF-16 text", "tpm-agent reads UTF-8", wayConvert + "(umask 077 && iconv -f UTF-16 -t UTF-8 FILE >NEW)"},
		{"PuTTY-User-Key-File-", "PuTTY key", "tpm-agent does not read PuTTY's format", wayConvert + "puttygen FILE -O private-openssh -o NEW"},
		{"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----", "SSH2 key", "tpm-agent does not read the format of ssh.com", wayConvert + "(umask 077 && ssh-keygen -i -f FILE >NEW)"},
		{"-----BEGIN PGP PRIVATE KEY BLOCK-----", "PGP key", "tpm-agent does not read OpenPGP", wayNew},
	} {
		if strings.HasPrefix(text, f.prefix) {
			return &UnsupportedError{f.kind, f.why, []string{f.way}}
		}
	}
	switch {
	case text == "":
		return malformed("the file is empty")
	case borders.MatchString(text):
		return malformed("a PEM block is damaged: it has no BEGIN or END line, they differ, or it is not base64")
	case strings.Contains(text, "-----BEGIN "):
		return malformed("BEGIN is not on a line of its own: the line breaks are lost")
	case strings.Contains(text, "---- BEGIN SSH2 PUBLIC KEY ----"):
		return fmt.Errorf("%w: SSH2 PUBLIC KEY, of RFC 4716", ErrPublic)
	}
	if key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text)); err == nil {
		return fmt.Errorf("%w: %s, as in a .pub file", ErrPublic, key.Type())
	}
	return malformed("no private key in the file: it is neither PEM nor DER")
}
