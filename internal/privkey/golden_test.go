package privkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// secret is the passphrase of the files that testdata/make.sh made.
const secret = "correct horse"

func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// names lists the key files of testdata: those that are refused, or the others.
func names(t testing.TB, refused bool) []string {
	t.Helper()
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || strings.HasSuffix(name, ".pub") || name == "make.sh" {
			continue
		}
		if strings.HasPrefix(name, "refused-") == refused {
			list = append(list, name)
		}
	}
	if len(list) < 30 {
		t.Fatalf("%d files in testdata", len(list))
	}
	return list
}

// An asker gives a passphrase and counts the questions.
type asker struct {
	passphrase string
	err        error
	asked      int
}

func (a *asker) ask() ([]byte, error) {
	a.asked++
	return []byte(a.passphrase), a.err
}

func parseWith(data []byte, passphrase string) (*Key, error) {
	return Parse(data, (&asker{passphrase: passphrase}).ask)
}

// parseUpTo is Parse with a limit on the work.
func parseUpTo(data []byte, a *asker, most effort) (*Key, error) {
	p := &parser{passphrase: a.ask, most: most}
	if err := p.parse(data); err != nil {
		return nil, err
	}
	return &p.key, nil
}

// parseLight computes no more than the files of testdata need, so that damage to
// their parameters does not make the tests slow.
func parseLight(data []byte) (*Key, error) {
	return parseUpTo(data, &asker{passphrase: secret}, effort{rounds: 1, iterations: 2, scrypt: 2})
}

// classes returns how many of the documented classes err belongs to.
func classes(err error) int {
	n := 0
	for _, target := range []error{ErrFormat, ErrPublic, ErrTPM, ErrPassphrase} {
		if errors.Is(err, target) {
			n++
		}
	}
	if u := (*UnsupportedError)(nil); errors.As(err, &u) {
		n++
	}
	return n
}

// wantError asserts that err is in the class of want only, and has the texts.
func wantError(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) || classes(err) != 1 {
		t.Errorf("error %v, want %v", err, want)
		return
	}
	if len(err.Error()) > 200 {
		t.Errorf("error %q is so long that it may quote the key", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q, want one with %q", err, text)
		}
	}
}

func wantUnsupported(t *testing.T, name string, err error, text string) {
	t.Helper()
	var u *UnsupportedError
	switch {
	case !errors.As(err, &u) || classes(err) != 1:
		t.Errorf("%s: %v", name, err)
	case text == "" || !strings.HasPrefix(err.Error(), text):
		t.Errorf("%s: error %q, want %q", name, err, text)
	case u.Why == "" || len(u.Ways) == 0:
		t.Errorf("%s: no reason or no alternative: %+v", name, u)
	}
}

// blobOf returns the public key of a private key as SSH encodes it.
func blobOf(t testing.TB, private crypto.PrivateKey) []byte {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer.PublicKey().Marshal()
}

// checkKey asserts that k signs, and that authorized is a line with its public key.
func checkKey(t *testing.T, k *Key, authorized []byte) {
	t.Helper()
	digest := sha256.Sum256([]byte("message"))
	sig, err := k.Private.(crypto.Signer).Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	valid := false
	switch key := k.Private.(type) {
	case *ecdsa.PrivateKey:
		valid = ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig)
	case *rsa.PrivateKey:
		valid = rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], sig) == nil
	}
	if !valid {
		t.Error("the signature is wrong")
	}
	want, _, _, _, err := ssh.ParseAuthorizedKey(authorized)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(blobOf(t, k.Private), want.Marshal()) {
		t.Error("the public key is wrong")
	}
}

// isEncrypted recognizes the encrypted files of testdata by their names.
func isEncrypted(name string) bool {
	for _, part := range []string{"-pbes2", "-scrypt", "-dek", "-cbc", "-ctr"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

func TestParseReadsEverySample(t *testing.T) {
	t.Parallel()
	for _, name := range names(t, false) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, _, _ := strings.Cut(name, "-")
			public := golden(t, base+".pub")
			data := golden(t, name)
			before := bytes.Clone(data)
			a := &asker{passphrase: secret}
			k, err := Parse(data, a.ask)
			if err != nil {
				t.Fatal(err)
			}
			checkKey(t, k, public)
			if !bytes.Equal(data, before) {
				t.Error("Parse changed its input")
			}
			if k.Encrypted != isEncrypted(name) || a.asked != map[bool]int{true: 1}[k.Encrypted] {
				t.Errorf("encrypted %v, asked %d times", k.Encrypted, a.asked)
			}
			comment := ""
			if strings.HasSuffix(name, "-openssh") {
				comment = strings.TrimSpace(strings.SplitN(string(public), " ", 3)[2])
			}
			if k.Comment != comment {
				t.Errorf("comment %q, want %q", k.Comment, comment)
			}
		})
	}
}

func TestWrongPassphrase(t *testing.T) {
	t.Parallel()
	errStop := errors.New("cancelled")
	for _, name := range names(t, false) {
		data := golden(t, name)
		if !isEncrypted(name) {
			if _, err := Parse(data, nil); err != nil {
				t.Errorf("%s, without a passphrase: %v", name, err)
			}
			continue
		}
		for _, wrong := range []string{"", "correct hors", "Correct horse", "correct horse\n"} {
			a := &asker{passphrase: wrong}
			_, err := Parse(data, a.ask)
			wantError(t, err, ErrPassphrase)
			if a.asked != 1 {
				t.Errorf("%s: asked %d times", name, a.asked)
			}
		}
		if _, err := Parse(data, (&asker{err: errStop}).ask); err != errStop {
			t.Errorf("%s: error %v, want that of the caller", name, err)
		}
		_, err := Parse(data, nil)
		wantError(t, err, ErrPassphrase, "encrypted")
	}
}

// TestPassphraseIsUnchanged matters because it can become the PIN of the key.
func TestPassphraseIsUnchanged(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"p256-openssh-aes256-ctr", "p256-pbes2", "p256-scrypt", "rsa-dek"} {
		pass := []byte(secret)
		if _, err := Parse(golden(t, name), func() ([]byte, error) { return pass, nil }); err != nil || string(pass) != secret {
			t.Errorf("%s: %v, the passphrase is %q afterwards", name, err, pass)
		}
	}
}

// TestManyWrongPassphrases: one in 256 gives padding that looks right. Parse must
// not take it for damage.
func TestManyWrongPassphrases(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"p256-pbes2", "p256-dek-des3", "rsa-dek"} {
		data := golden(t, name)
		for i := range 2000 {
			_, err := parseWith(data, string([]byte{byte(i), byte(i >> 8), 'x'}))
			wantError(t, err, ErrPassphrase)
		}
	}
}

// refusals are the beginnings of the errors for the refused files of testdata.
var refusals = map[string]string{
	"refused-brainpoolP256r1":           "EC key on the curve 1.3.36.3.3.2.8.1.1.7: SSH has",
	"refused-camellia":                  "key encrypted with the cipher 1.2.392.200011.61.1.1.1.4",
	"refused-dek-camellia":              `key encrypted with "CAMELLIA-128-CBC"`,
	"refused-dsa":                       "DSA key: no TPM has DSA",
	"refused-dsa-pem":                   "DSA key",
	"refused-dsa-pkcs8":                 "DSA key",
	"refused-dsa.der":                   "DSA key",
	"refused-ed25519":                   "Ed25519 key: no TPM has Ed25519",
	"refused-ed25519-pkcs8":             "Ed25519 key: no TPM has Ed25519",
	"refused-ed448-pkcs8":               "Ed448 key",
	"refused-explicit":                  "EC key with explicit parameters",
	"refused-openssh-3des-cbc":          `key encrypted with the cipher "3des-cbc"`,
	"refused-openssh-aes128-ctr":        `key encrypted with the cipher "aes128-ctr"`,
	"refused-openssh-aes256-gcm":        `key encrypted with the cipher "aes256-gcm@openssh.com"`,
	"refused-openssh-chacha20-poly1305": `key encrypted with the cipher "chacha20-poly1305@openssh.com"`,
	"refused-pbe-md5-des":               "key encrypted with the old algorithm 1.2.840.113549.1.5.3",
	"refused-pbe-sha1-3des":             "key encrypted with PBE-SHA1-3DES",
	"refused-pbe-sha1-des":              "key encrypted with the old algorithm 1.2.840.113549.1.5.10",
	"refused-pbe-sha1-rc2-40":           "key encrypted with the old algorithm 1.2.840.113549.1.12.1.6",
	"refused-pbe-sha1-rc4-128":          "key encrypted with the old algorithm 1.2.840.113549.1.12.1.1",
	"refused-pbes2-SHA224":              "key encrypted with PBKDF2 with 1.2.840.113549.2.8",
	"refused-pkcs12":                    "PKCS #12 file",
	"refused-ppk-ed25519":               "PuTTY key",
	"refused-ppk2":                      "PuTTY key",
	"refused-ppk3":                      "PuTTY key",
	"refused-prime192v1":                "EC key on the curve 1.2.840.10045.3.1.1",
	"refused-primes":                    "RSA key with more than two primes",
	"refused-rsa-pss":                   "RSA key for PSS only",
	"refused-rsa512":                    "RSA key of 512 bits",
	"refused-secp224r1":                 "EC key on the curve 1.3.132.0.33",
	"refused-secp256k1":                 "EC key on the curve 1.3.132.0.10",
	"refused-sect283r1":                 "EC key on the curve 1.3.132.0.17",
	"refused-sshcom":                    "SSH2 key",
	"refused-utf16":                     "UTF-16 text",
	"refused-x25519-pkcs8":              "X25519 key: it cannot sign",
	"refused-x448-pkcs8":                "X448 key",
}

func TestRefusalsComeBeforeThePassphrase(t *testing.T) {
	t.Parallel()
	files := names(t, true)
	if len(files) != len(refusals) {
		t.Errorf("%d files, %d refusals", len(files), len(refusals))
	}
	for _, name := range files {
		a := &asker{passphrase: secret}
		_, err := Parse(golden(t, name), a.ask)
		wantUnsupported(t, name, err, refusals[name])
		if a.asked != 0 {
			t.Errorf("%s: Parse asked for a passphrase", name)
		}
	}
}
