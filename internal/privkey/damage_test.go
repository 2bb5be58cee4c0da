package privkey

import (
	"bytes"
	"encoding/pem"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// light is the effort that the files of testdata are, so that nothing here
// takes its time.
func light() effort { return effort{rounds: 1, iterations: 2, scrypt: 2} }

func parseLight(data []byte) (*Key, error) {
	return parse(data, (&asker{passphrase: secret}).ask, light())
}

// inside returns the type and content of a file of testdata, and how to wrap
// such a content up again.
func inside(t *testing.T, name string) (der []byte, wrap func([]byte) []byte) {
	t.Helper()
	data := golden(t, name)
	block := lastBlock(data)
	if block == nil {
		return data, func(der []byte) []byte { return der }
	}
	return block.Bytes, func(der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: block.Type, Headers: block.Headers, Bytes: der})
	}
}

// lastBlock is the private key where something stands before it.
func lastBlock(data []byte) *pem.Block {
	var last *pem.Block
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return last
		}
		last, data = block, rest
	}
}

// binaryNames leaves out the files that have others' content in other text.
func binaryNames(t *testing.T) []string {
	var list []string
	for _, name := range names(t, false) {
		switch name {
		case "p256-around", "p256-utf16":
		default:
			list = append(list, name)
		}
	}
	return list
}

// TestTruncated cuts every file after every octet, text and content.
func TestTruncated(t *testing.T) {
	for _, name := range names(t, false) {
		data := golden(t, name)
		end := len(bytes.TrimRight(data, "\r\n\x00"))
		if name == "p256-around" {
			end = bytes.LastIndex(data, []byte("-----"))
		}
		if name == "p256-parameters" {
			end = 0 // the parameters alone are whole
		}
		for n := range end {
			if _, err := parseLight(data[:n]); family(err) != 1 {
				t.Fatalf("%s, %d of %d octets: %v", name, n, len(data), err)
			}
		}
	}
}

func TestTruncatedInside(t *testing.T) {
	for _, name := range binaryNames(t) {
		der, wrap := inside(t, name)
		for n := range der {
			a := &asker{passphrase: secret}
			_, err := parse(wrap(der[:n]), a.ask, light())
			switch {
			case family(err) != 1:
				t.Fatalf("%s, %d of %d octets: %v", name, n, len(der), err)
			case strings.Contains(name, "dek"):
				// What is cut between blocks of a cipher looks like a wrong
				// passphrase.
			case a.asked > 0:
				t.Fatalf("%s, %d of %d octets: the passphrase was asked for in vain", name, n, len(der))
			}
		}
		for _, junk := range []string{"\x00", "\x01", "\x30\x00", "junk and more"} {
			_, err := parseLight(wrap(append(bytes.Clone(der), junk...)))
			if family(err) != 1 {
				t.Errorf("%s with %q behind it: %v", name, junk, err)
			}
		}
	}
}

// TestFlipped changes bits of every file. What is still read must be the
// same key: but for the comment, and a key that has no public part to tell.
func TestFlipped(t *testing.T) {
	for _, name := range binaryNames(t) {
		k, err := parseLight(golden(t, name))
		if err != nil {
			t.Fatal(err)
		}
		der, wrap := inside(t, name)
		for i := range der {
			for bit := range 8 {
				if (i+bit)%flipEvery(name) != 0 {
					continue
				}
				der[i] ^= 1 << bit
				other, err := parseLight(wrap(der))
				switch {
				case err != nil && family(err) != 1:
					t.Fatalf("%s, octet %d, bit %d: %v", name, i, bit, err)
				case err == nil && name != "p256-nopublic" && !bytes.Equal(publicBlob(other.Private), publicBlob(k.Private)):
					t.Fatalf("%s, octet %d, bit %d: another key", name, i, bit)
				}
				der[i] ^= 1 << bit
			}
		}
	}
}

// flipEvery thins out the flips where each costs milliseconds.
func flipEvery(name string) int {
	switch {
	case strings.Contains(name, "openssh-"):
		return 211
	case strings.HasPrefix(name, "rsa"), strings.HasPrefix(name, "p5"), strings.HasPrefix(name, "p3"):
		return 23
	}
	return 7 // each octet, and a bit of it
}

// TestText changes the text around a key in ways that do not matter.
func TestText(t *testing.T) {
	for _, name := range []string{"p256-openssh", "p256-pkcs8", "p256-dek-aes128", "rsa-dek"} {
		text := string(golden(t, name))
		base, _, _ := strings.Cut(name, "-")
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for what, changed := range map[string]string{
			"no last line feed":    strings.TrimSuffix(text, "\n"),
			"CRLF":                 strings.ReplaceAll(text, "\n", "\r\n"),
			"CR":                   strings.ReplaceAll(text, "\n", "\r"),
			"byte order mark":      "\ufeff" + text,
			"indented":             "  " + strings.Join(lines, "\n\t  ") + "\n",
			"blanks behind":        strings.Join(lines, "  \t\n"),
			"text around":          "Name: a key\n0x30 -----BEGIN what\n" + text + "-- \nand so on",
			"empty lines":          "\n\n" + text + "\n\n",
			"public key behind":    text + string(golden(t, base+".pub")),
			"certificate in front": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + text,
			"unknown block":        text + "-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
		} {
			k, err := parseLight([]byte(changed))
			if err != nil {
				t.Errorf("%s, %s: %v", name, what, err)
				continue
			}
			checkKey(t, k, golden(t, base+".pub"))
		}
	}
}

// TestForeign is what people take for private keys by mistake.
func TestForeign(t *testing.T) {
	key, pkcs8, public := string(golden(t, "p256-openssh")), string(golden(t, "p256-pkcs8")), string(golden(t, "p256.pub"))
	tpm := "-----BEGIN TSS2 PRIVATE KEY-----\nMIHw\n-----END TSS2 PRIVATE KEY-----\n"
	for name, c := range map[string]struct {
		data string
		want error
		text string
	}{
		"nothing":              {"", ErrFormat, "empty"},
		"blanks":               {" \n\r\n\t", ErrFormat, "empty"},
		"byte order mark":      {"\xef\xbb\xbf", ErrFormat, "no private key"},
		"half of UTF-16":       {"\xff\xfe-", ErrFormat, "no private key"},
		"text":                 {"Hello, world\n", ErrFormat, "neither PEM nor DER"},
		"junk":                 {"\x7fELF\x02\x01\x01\x00", ErrFormat, "neither PEM nor DER"},
		"a zero":               {"\x00", ErrFormat, "neither PEM nor DER"},
		"the start of DER":     {"0", ErrFormat, "neither PEM nor DER"},
		"some DER":             {"\x30\x03\x02\x01\x05", ErrFormat, "something else"},
		"too long":             {strings.Repeat("x", 1<<20), ErrFormat, "longer than 65536"},
		"two keys":             {key + key, ErrFormat, "two private keys in one file, in lines 1 and"},
		"two formats":          {key + pkcs8, ErrFormat, "two private keys"},
		"two with a TPM's":     {tpm + key, ErrFormat, "two private keys"},
		"two, DER":             {string(golden(t, "p256-pkcs8.der")) + string(golden(t, "p256-pkcs8.der")), ErrFormat, "after its end"},
		"no END":               {key[:len(key)-36], ErrFormat, "line 1: the OPENSSH PRIVATE KEY block has no END line"},
		"no BEGIN":             {key[36:], ErrFormat, "END OPENSSH PRIVATE KEY without its BEGIN"},
		"no END, then another": {key[:200] + "\n" + pkcs8, ErrFormat, "line 1: the OPENSSH PRIVATE KEY block has no END"},
		"another END":          {strings.Replace(key, "END OPENSSH", "END RSA", 1), ErrFormat, "END RSA PRIVATE KEY for the OPENSSH"},
		"a line is lost":       {strings.Replace(key, key[100:200], "", 1), ErrFormat, "line 1"},
		"not base64":           {strings.Replace(key, "AAAA", "A*AA", 1), ErrFormat, "line 1: the OPENSSH PRIVATE KEY block is not base64"},
		"line breaks are lost": {strings.ReplaceAll(key, "\n", " "), ErrFormat, "line breaks are lost"},
		"escaped line breaks":  {strings.ReplaceAll(key, "\n", `\n`), ErrFormat, "line breaks are lost"},
		"an empty block":       {"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", ErrFormat, "is empty"},
		"parameters":           {"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n", ErrFormat, `"DH PARAMETERS"`},
		"wrong label":          {strings.ReplaceAll(pkcs8, " PRIVATE", " EC PRIVATE"), ErrFormat, "SEC 1"},
		"OpenSSH label":        {strings.ReplaceAll(pkcs8, " PRIVATE", " OPENSSH PRIVATE"), ErrFormat, "openssh-key-v1"},
		"a public key":         {public, ErrPublic, "ecdsa-sha2-nistp256"},
		"authorized_keys":      {"# keys\nrestrict,from=\"*\" " + public + public, ErrPublic, "ecdsa-sha2-nistp256"},
		"RFC 4716":             {"---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", ErrPublic, "RFC 4716"},
		"PEM public":           {"-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n", ErrPublic, "PUBLIC KEY in line 1"},
		"certificate":          {"\n-----BEGIN CERTIFICATE-----\nMFkw\n-----END CERTIFICATE-----\n", ErrPublic, "CERTIFICATE in line 2"},
		"a TPM's key":          {tpm, ErrTPM, "TSS2 PRIVATE KEY"},
		"an old TPM's key":     {strings.ReplaceAll(tpm, "PRIVATE KEY", "KEY BLOB"), ErrTPM, "TSS2 KEY BLOB"},
		"a TPM 1.2's key":      {strings.ReplaceAll(tpm, "TSS2 PRIVATE KEY", "TSS KEY BLOB"), ErrTPM, "TSS KEY BLOB"},
		"a TPM's key, DER":     {"\x30\x08\x06\x06\x67\x81\x05\x0a\x01\x03", ErrTPM, "DER"},
		"no DEK-Info":          {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", ErrFormat, "DEK-Info"},
		"short DEK-Info":       {"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", ErrFormat, "not 16 octets"},
		"no blocks":            {"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: DES-CBC,0011223344556677\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", ErrFormat, "blocks of 8"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseLight([]byte(c.data))
			wantError(t, err, c.want, c.text)
		})
	}
}

// TestForeignKinds is what is refused as somebody else's.
func TestForeignKinds(t *testing.T) {
	for text, data := range map[string]string{
		"SSH 1 key":    "SSH PRIVATE KEY FILE FORMAT 1.1\n\x00\x00\x00\x00\x00",
		"JSON Web Key": `{"kty":"EC","crv":"P-256","d":"AAAA"}`,
		"PGP key":      "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ==\n-----END PGP PRIVATE KEY BLOCK-----\n",
		"FIDO key (sk-ssh-ed25519@openssh.com): it is in hardware": string(opensshOf("sk-ssh-ed25519@openssh.com")),
		"FIDO key (sk-ecdsa-sha2-nistp256@openssh.com)":            string(opensshOf("sk-ecdsa-sha2-nistp256@openssh.com")),
		"Ed448 key":                         string(opensshOf("ssh-ed448")),
		`key of the type "ssh-xmss\x1b[2J"`: string(opensshOf("ssh-xmss\x1b[2J")),
	} {
		_, err := parseLight([]byte(data))
		wantUnsupported(t, text, err, text)
	}
}

// openssh are the fields of openssh-key-v1.
type openssh struct {
	Cipher, KDF, Options string
	Count                uint32
	Public, Private      []byte
	Rest                 []byte `ssh:"rest"`
}

func (o openssh) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: append([]byte(opensshMagic), ssh.Marshal(o)...)})
}

// opensshOf is a file with a key of a type, whose private part is encrypted.
func opensshOf(typ string) []byte {
	return openssh{
		Cipher: "aes256-ctr", KDF: "bcrypt", Options: string(ssh.Marshal(struct {
			Salt   string
			Rounds uint32
		}{"salt", 1})),
		Count: 1, Public: ssh.Marshal(struct{ Type string }{typ}), Private: make([]byte, 64),
	}.pem()
}

// TestOpenSSHDamage spoils one field after the other, of a file that is not
// encrypted and of one that is.
func TestOpenSSHDamage(t *testing.T) {
	for name, c := range map[string]struct {
		file  string
		spoil func(o *openssh)
		text  string
	}{
		"no keys":         {"p256-openssh", func(o *openssh) { o.Count = 0 }, "the file has 0 keys"},
		"two keys":        {"p256-openssh", func(o *openssh) { o.Count = 2 }, "the file has 2 keys"},
		"no KDF":          {"p256-openssh-aes256-ctr", func(o *openssh) { o.KDF = "none" }, `"aes256-ctr" with key derivation "none"`},
		"no cipher":       {"p256-openssh", func(o *openssh) { o.KDF = "bcrypt" }, `"none" with key derivation "bcrypt"`},
		"no salt":         {"p256-openssh-aes256-ctr", func(o *openssh) { o.Options = "\x00\x00\x00\x00\x00\x00\x00\x01" }, "salt and rounds"},
		"no rounds":       {"p256-openssh-aes256-ctr", func(o *openssh) { o.Options = "\x00\x00\x00\x01s\x00\x00\x00\x00" }, "salt and rounds"},
		"no options":      {"p256-openssh-aes256-ctr", func(o *openssh) { o.Options = "" }, "salt"},
		"half a block":    {"p256-openssh-aes256-ctr", func(o *openssh) { o.Private = o.Private[:40] }, "blocks of 16"},
		"no private":      {"p256-openssh", func(o *openssh) { o.Private = nil }, "blocks of 8"},
		"something after": {"p256-openssh", func(o *openssh) { o.Rest = []byte("x") }, "1 octets behind the private key, 0 are right"},
		"no tag":          {"p256-openssh-aes128-gcm", func(o *openssh) { o.Rest = o.Rest[:15] }, "15 octets behind the private key, 16 are right"},
		"no public":       {"p256-openssh", func(o *openssh) { o.Public = nil }, "public key cannot be read"},
		"other public":    {"p256-openssh", func(o *openssh) { o.Public[60] ^= 1 }, "does not belong to the public key"},
		"other type":      {"p256-openssh", func(o *openssh) { o.Public = ssh.Marshal(struct{ T string }{"ssh-rsa"}) }, `of type "ecdsa-sha2-nistp256", the public one of type "ssh-rsa"`},
		"check numbers":   {"p256-openssh", func(o *openssh) { o.Private[0] ^= 1 }, "check numbers"},
		"padding":         {"p256-openssh", func(o *openssh) { o.Private = append(o.Private, 1, 2, 3, 4, 5, 6, 7, 9) }, "padding"},
		"too much behind": {"p256-openssh", func(o *openssh) { o.Private = append(o.Private, "8 octets"...) }, "padding"},
	} {
		block := lastBlock(golden(t, c.file))
		var o openssh
		if err := ssh.Unmarshal(block.Bytes[len(opensshMagic):], &o); err != nil {
			t.Fatal(err)
		}
		c.spoil(&o)
		t.Run(name, func(t *testing.T) {
			_, err := parseLight(o.pem())
			wantError(t, err, ErrFormat, c.text)
		})
	}
}

// TestComment: what has no place in a line of authorized_keys does not get
// there.
func TestComment(t *testing.T) {
	data := golden(t, "p256-openssh")
	block := lastBlock(data)
	old, changed := []byte("someone at p256"), []byte("some\none\x1b[2J\x00p\r")
	block.Bytes = bytes.Replace(block.Bytes, old, changed, 1)
	k, err := Parse(pem.EncodeToMemory(block), nil)
	if err != nil || len(old) != len(changed) || k.Comment != "someone[2Jp" {
		t.Errorf("%v, %v", k, err)
	}
}

// TestEffort: too much work is refused before a passphrase is asked for.
func TestEffort(t *testing.T) {
	for name, most := range map[string]effort{
		"p256-openssh-aes256-ctr": {},
		"p256-pbes2-SHA512":       {iterations: 1},
		"p256-scrypt":             {scrypt: 1},
	} {
		a := &asker{passphrase: secret}
		_, err := parse(golden(t, name), a.ask, most)
		wantUnsupported(t, name, err, "key encrypted with ")
		if a.asked != 0 {
			t.Errorf("%s: asked for a passphrase", name)
		}
	}
	for text, spoil := range map[string]func() []byte{
		"key encrypted with 4294967295 rounds of bcrypt: at most 512": func() []byte {
			return bytes.Replace(lastBlock(opensshOf(ssh.KeyAlgoECDSA256)).Bytes, []byte("salt\x00\x00\x00\x01"), []byte("salt\xff\xff\xff\xff"), 1)
		},
	} {
		_, err := Parse(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: spoil()}), nil)
		wantUnsupported(t, text, err, text)
	}
}
