package privkey

import (
	"bytes"
	"encoding/pem"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// inside returns the content of a file of testdata, and a function that wraps
// other content in the same way.
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

// lastBlock returns the last PEM block of data, which is the private key.
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

// TestTruncated cuts the text of every file at every octet.
func TestTruncated(t *testing.T) {
	t.Parallel()
	for _, name := range names(t, false) {
		data := golden(t, name)
		end := len(bytes.TrimRight(data, "\r\n"))
		switch name {
		case "p256-around": // the text after the key does not matter
			end = bytes.LastIndex(data, []byte("-----"))
		case "p256-parameters": // two PEM blocks
			continue
		}
		for n := range end {
			if _, err := parseLight(data[:n]); classes(err) != 1 {
				t.Fatalf("%s, %d of %d octets: %v", name, n, len(data), err)
			}
		}
	}
}

// TestTruncatedInside cuts the content of every file at every octet, and appends
// to it.
func TestTruncatedInside(t *testing.T) {
	t.Parallel()
	for _, name := range names(t, false) {
		if name == "p256-around" {
			continue
		}
		der, wrap := inside(t, name)
		for n := range der {
			a := &asker{passphrase: secret}
			_, err := parseUpTo(wrap(der[:n]), a, effort{1, 2, 2})
			if classes(err) != 1 {
				t.Fatalf("%s, %d of %d octets: %v", name, n, len(der), err)
			}
			// Encrypted PEM does not say how long it must be.
			if a.asked > 0 && !strings.Contains(name, "dek") {
				t.Fatalf("%s, %d of %d octets: Parse asked for a passphrase", name, n, len(der))
			}
		}
		for _, junk := range []string{"\x00", "\x01", "\x30\x00", "junk and more"} {
			if _, err := parseLight(wrap(append(bytes.Clone(der), junk...))); classes(err) != 1 {
				t.Errorf("%s followed by %q: %v", name, junk, err)
			}
		}
	}
}

// TestFlippedBits accepts errors, or the same key. A key without a public half
// cannot show that its number is different.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	for _, name := range names(t, false) {
		if name == "p256-around" || name == "p256-nopublic" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flipBits(t, name)
		})
	}
}

func flipBits(t *testing.T, name string) {
	k, err := parseLight(golden(t, name))
	if err != nil {
		t.Fatal(err)
	}
	want := blobOf(t, k.Private)
	der, wrap := inside(t, name)
	for i := range der {
		for bit := range 8 {
			if (i+bit)%flipEvery(name) != 0 {
				continue
			}
			der[i] ^= 1 << bit
			other, err := parseLight(wrap(der))
			switch {
			case err != nil && classes(err) != 1:
				t.Fatalf("octet %d, bit %d: %v", i, bit, err)
			case err == nil && !bytes.Equal(blobOf(t, other.Private), want):
				t.Fatalf("octet %d, bit %d: a different key", i, bit)
			}
			der[i] ^= 1 << bit
		}
	}
}

// flipEvery flips fewer bits where each takes milliseconds.
func flipEvery(name string) int {
	switch {
	case strings.Contains(name, "openssh-"):
		return 211
	case strings.HasPrefix(name, "rsa"), strings.HasPrefix(name, "p5"), strings.HasPrefix(name, "p3"):
		return 23
	}
	return 7 // one bit of each octet, or two
}

// TestTextAroundKey changes the text in ways that do not matter.
func TestTextAroundKey(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"p256-openssh", "p256-pkcs8", "p256-dek-aes128", "rsa-dek"} {
		text := string(golden(t, name))
		base, _, _ := strings.Cut(name, "-")
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for what, changed := range map[string]string{
			"no last line feed":  strings.TrimSuffix(text, "\n"),
			"CRLF":               strings.ReplaceAll(text, "\n", "\r\n"),
			"CR":                 strings.ReplaceAll(text, "\n", "\r"),
			"byte order mark":    "\ufeff" + text,
			"indented":           "  " + strings.Join(lines, "\n\t  ") + "\n",
			"trailing blanks":    strings.Join(lines, "  \t\n"),
			"text around":        "Name: a key\n0x30 -----BEGIN what\n" + text + "-- \nand so on",
			"empty lines":        "\n\n" + text + "\n\n",
			"public key after":   text + string(golden(t, base+".pub")),
			"certificate before": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + text,
			"unknown block":      text + "-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
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

// TestNotAPrivateKey tries what people mistake for private keys.
func TestNotAPrivateKey(t *testing.T) {
	t.Parallel()
	key, pkcs8, public := string(golden(t, "p256-openssh")), string(golden(t, "p256-pkcs8")), string(golden(t, "p256.pub"))
	tpm := "-----BEGIN TSS2 PRIVATE KEY-----\nMIHw\n-----END TSS2 PRIVATE KEY-----\n"
	for name, c := range map[string]struct {
		data string
		want error
		text string
	}{
		"nothing":              {"", ErrFormat, "empty"},
		"blanks":               {" \n\r\n\t", ErrFormat, "empty"},
		"byte order mark":      {"\xef\xbb\xbf", ErrFormat, "empty"},
		"text":                 {"Hello, world\n", ErrFormat, "neither PEM nor DER"},
		"program":              {"\x7fELF\x02\x01\x01\x00", ErrFormat, "neither PEM nor DER"},
		"a zero":               {"\x00", ErrFormat, "neither PEM nor DER"},
		"start of DER":         {"0", ErrFormat, "ends too early"},
		"other DER":            {"\x30\x03\x02\x01\x05", ErrFormat, "not a private key"},
		"too long":             {strings.Repeat("x", 1<<20), ErrFormat, "longer than 65536"},
		"two keys":             {key + key, ErrFormat, "two private keys in one file"},
		"two formats":          {key + pkcs8, ErrFormat, "two private keys"},
		"two, one of a TPM":    {tpm + key, ErrFormat, "two private keys"},
		"two, DER":             {string(golden(t, "p256-pkcs8.der")) + string(golden(t, "p256-pkcs8.der")), ErrFormat, "follows its end"},
		"no END":               {key[:len(key)-36], ErrFormat, "block is damaged"},
		"no BEGIN":             {key[36:], ErrFormat, "block is damaged"},
		"no END, then another": {key[:200] + "\n" + pkcs8, ErrFormat, "block is damaged"},
		"wrong END":            {strings.Replace(key, "END OPENSSH", "END RSA", 1), ErrFormat, "block is damaged"},
		"lost octets":          {strings.Replace(key, key[100:200], "", 1), ErrFormat, "block is damaged"},
		"not base64":           {strings.Replace(key, "AAAA", "A*AA", 1), ErrFormat, "block is damaged"},
		"damaged and whole":    {strings.Replace(key, "AAAA", "A*AA", 1) + pkcs8, ErrFormat, "block is damaged"},
		"lost line breaks":     {strings.ReplaceAll(key, "\n", " "), ErrFormat, "line breaks are lost"},
		"escaped line breaks":  {strings.ReplaceAll(key, "\n", `\n`), ErrFormat, "line breaks are lost"},
		"empty block":          {"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", ErrFormat, "ends too early"},
		"parameters":           {"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n", ErrFormat, `"DH PARAMETERS"`},
		"OpenSSH label":        {strings.ReplaceAll(pkcs8, " PRIVATE", " OPENSSH PRIVATE"), ErrFormat, "openssh-key-v1"},
		"public key":           {public, ErrPublic, "ecdsa-sha2-nistp256"},
		"authorized_keys":      {"# keys\nrestrict,from=\"*\" " + public + public, ErrPublic, "ecdsa-sha2-nistp256"},
		"RFC 4716":             {"---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", ErrPublic, "RFC 4716"},
		"PEM public key":       {"-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n", ErrPublic, "PUBLIC KEY"},
		"certificate":          {"\n-----BEGIN CERTIFICATE-----\nMFkw\n-----END CERTIFICATE-----\n", ErrPublic, "CERTIFICATE"},
		"TPM key":              {tpm, ErrTPM, "TSS2 PRIVATE KEY"},
		"old TPM key":          {strings.ReplaceAll(tpm, "PRIVATE KEY", "KEY BLOB"), ErrTPM, "TSS2 KEY BLOB"},
		"TPM 1.2 key":          {strings.ReplaceAll(tpm, "TSS2 PRIVATE KEY", "TSS KEY BLOB"), ErrTPM, "TSS KEY BLOB"},
		"TPM key, DER":         {"\x30\x08\x06\x06\x67\x81\x05\x0a\x01\x03", ErrTPM, "DER"},
		"no DEK-Info":          {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", ErrFormat, "DEK-Info"},
		"short DEK-Info":       {"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", ErrFormat, "IV size"},
		"no blocks":            {"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: DES-CBC,0011223344556677\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", ErrFormat, "block size"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parseLight([]byte(c.data))
			wantError(t, err, c.want, c.text)
		})
	}
}

func TestKeysOfOtherPrograms(t *testing.T) {
	t.Parallel()
	for text, data := range map[string]string{
		"PGP key":                                 "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ==\n=abcd\n-----END PGP PRIVATE KEY BLOCK-----\n",
		"FIDO key (Ed25519): it is in hardware":   string(opensshOf("sk-ssh-ed25519@openssh.com")),
		"FIDO key (ECDSA)":                        string(opensshOf("sk-ecdsa-sha2-nistp256@openssh.com")),
		`key of the type "ssh-xmss\x1b[2J"`:       string(opensshOf("ssh-xmss\x1b[2J")),
		`key encrypted with the cipher "new"`:     string(spoiled(t, "p256-openssh", func(c *container) { c.Cipher = "new" })),
		`key encrypted with the key derivation "`: string(spoiled(t, "p256-openssh-aes256-ctr", func(c *container) { c.KDF = "none" })),
	} {
		_, err := parseLight([]byte(data))
		wantUnsupported(t, text, err, text)
	}
}

func (c container) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: append([]byte(opensshMagic), ssh.Marshal(c)...)})
}

// opensshOf returns an encrypted key of a type.
func opensshOf(typ string) []byte {
	return container{
		Cipher: "aes256-ctr", KDF: "bcrypt", Options: "\x00\x00\x00\x04salt\x00\x00\x00\x01", Keys: 1,
		Public: ssh.Marshal(field{Text: typ}), Private: make([]byte, 64),
	}.pem()
}

// spoiled returns a file of testdata with a change.
func spoiled(t *testing.T, name string, spoil func(c *container)) []byte {
	t.Helper()
	var c container
	if err := ssh.Unmarshal(lastBlock(golden(t, name)).Bytes[len(opensshMagic):], &c); err != nil {
		t.Fatal(err)
	}
	spoil(&c)
	return c.pem()
}

// TestOpenSSHDamage spoils one field after another.
func TestOpenSSHDamage(t *testing.T) {
	t.Parallel()
	const plain, encrypted = "p256-openssh", "p256-openssh-aes256-ctr"
	for name, c := range map[string]struct {
		file  string
		spoil func(c *container)
		text  string
	}{
		"no keys":       {plain, func(c *container) { c.Keys = 0 }, "the file has 0 keys"},
		"two keys":      {plain, func(c *container) { c.Keys = 2 }, "the file has 2 keys"},
		"no cipher":     {plain, func(c *container) { c.KDF = "bcrypt" }, "passphrase protected"},
		"no salt":       {encrypted, func(c *container) { c.Options = "\x00\x00\x00\x00\x00\x00\x00\x01" }, "salt"},
		"no rounds":     {encrypted, func(c *container) { c.Options = "\x00\x00\x00\x01s\x00\x00\x00\x00" }, "rounds"},
		"no options":    {encrypted, func(c *container) { c.Options = "" }, "salt"},
		"no private":    {plain, func(c *container) { c.Private = nil }, "malformed"},
		"extra octet":   {plain, func(c *container) { c.Rest = []byte("x") }, "1 octets follow the private key"},
		"checksum":      {encrypted, func(c *container) { c.Rest = make([]byte, 16) }, "16 octets follow the private key"},
		"no public":     {plain, func(c *container) { c.Public = nil }, "public key cannot be read"},
		"other public":  {plain, func(c *container) { c.Public[60] ^= 1 }, "does not match the public key"},
		"other type":    {plain, func(c *container) { c.Public = ssh.Marshal(field{Text: "ssh-rsa"}) }, "does not match the public key"},
		"encrypted":     {encrypted, func(c *container) { c.Public[60] ^= 1 }, "does not match the public key"},
		"check numbers": {plain, func(c *container) { c.Private[0] ^= 1 }, "OpenSSH"},
		"padding":       {plain, func(c *container) { c.Private = append(c.Private, 1, 2, 3, 4, 5, 6, 7, 9) }, "padding"},
		"something":     {plain, func(c *container) { c.Private = append(c.Private, "8 octets"...) }, "padding"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := parseLight(spoiled(t, c.file, c.spoil))
			wantError(t, err, ErrFormat, c.text)
		})
	}
}

// TestNegativeNumbers gives x/crypto/ssh what it accepts.
func TestNegativeNumbers(t *testing.T) {
	t.Parallel()
	data := spoiled(t, "p256-openssh", func(c *container) {
		var key struct {
			Check1, Check2              uint32
			Type, Curve, Point, D, Text string
			Pad                         []byte `ssh:"rest"`
		}
		if err := ssh.Unmarshal(c.Private, &key); err != nil {
			t.Fatal(err)
		}
		number := strings.TrimLeft(key.D, "\x00")
		negative := make([]byte, len(number)+1) // two's complement of number
		carry := 1
		for i := len(number) - 1; i >= 0; i-- {
			carry += int(^number[i])
			negative[i+1] = byte(carry)
			carry >>= 8
		}
		negative[0] = 0xff
		key.D = string(negative)
		key.Pad = nil
		c.Private = ssh.Marshal(key)
	})
	_, err := parseLight(data)
	wantError(t, err, ErrFormat, "negative")
}

// TestComment: a comment must not be able to add a line to authorized_keys.
func TestComment(t *testing.T) {
	t.Parallel()
	block := lastBlock(golden(t, "p256-openssh"))
	old, changed := []byte("someone at p256"), []byte("some\none\x1b[2J\x00p\r")
	block.Bytes = bytes.Replace(block.Bytes, old, changed, 1)
	k, err := Parse(pem.EncodeToMemory(block), nil)
	if err != nil || len(old) != len(changed) || k.Comment != "someone[2Jp" {
		t.Errorf("%+v, %v", k, err)
	}
}

// TestTooMuchWork: the refusal comes before the passphrase.
func TestTooMuchWork(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]effort{
		"p256-openssh-aes256-ctr": {},
		"p256-pbes2-SHA512":       {iterations: 1},
		"p256-scrypt":             {scrypt: 1},
	} {
		a := &asker{passphrase: secret}
		_, err := parseUpTo(golden(t, name), a, most)
		wantUnsupported(t, name, err, "key encrypted with ")
		if a.asked != 0 {
			t.Errorf("%s: Parse asked for a passphrase", name)
		}
	}
	_, err := Parse(spoiled(t, "p256-openssh-aes256-ctr", func(c *container) {
		c.Options = "\x00\x00\x00\x04salt\xff\xff\xff\xff"
	}), nil)
	wantUnsupported(t, "bcrypt", err, "key encrypted with 4294967295 rounds of bcrypt: tpm-agent computes at most 512")
}
