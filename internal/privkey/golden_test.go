package privkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// secret is the passphrase of the files of testdata/make.sh.
const secret = "correct horse"

func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// names lists the files of testdata, those that are refused or the others.
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
	if len(list) < 20 {
		t.Fatalf("%d files in testdata", len(list))
	}
	return list
}

// asker counts how often it is asked.
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

// family returns how many kinds of error Parse knows err to be of.
func family(err error) int {
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

// wantError asserts that err is of one family, that of want, and has the texts.
func wantError(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) || family(err) != 1 {
		t.Errorf("error %v, want one that is %v", err, want)
		return
	}
	if len(err.Error()) > 200 {
		t.Errorf("error %q is too long: it may have parts of the key", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q says nothing of %q", err, text)
		}
	}
}

// checkKey asserts that the key signs, and that public is what it signs for.
func checkKey(t *testing.T, k *Key, public []byte) {
	t.Helper()
	signer, ok := k.Private.(crypto.Signer)
	if !ok {
		t.Fatalf("a key of type %T", k.Private)
	}
	digest := sha256.Sum256([]byte("message"))
	sig, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	switch pub := signer.Public().(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, digest[:], sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig) == nil
	}
	if !ok {
		t.Error("the signature is wrong")
	}
	want, _, _, _, err := ssh.ParseAuthorizedKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(publicBlob(k.Private), want.Marshal()) {
		t.Error("the public key is another")
	}
}

// sealedName tells the encrypted files of testdata by their names.
func sealedName(name string) bool {
	for _, part := range []string{"-pbes2", "-scrypt", "-dek", "-cbc", "-ctr", "-gcm", "-poly1305"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// TestGolden reads every file that make.sh made.
func TestGolden(t *testing.T) {
	for _, name := range names(t, false) {
		t.Run(name, func(t *testing.T) {
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
				t.Error("the caller's data is not what it was")
			}
			if k.Encrypted != sealedName(name) || a.asked != map[bool]int{true: 1}[k.Encrypted] {
				t.Errorf("encrypted %v, asked %d times", k.Encrypted, a.asked)
			}
			comment := ""
			if strings.Contains(name, "openssh") || strings.HasSuffix(name, "-utf16") { // no other format has one
				comment = strings.TrimSpace(strings.SplitN(string(public), " ", 3)[2])
			}
			if k.Comment != comment {
				t.Errorf("comment %q, want %q", k.Comment, comment)
			}
		})
	}
}

// TestPassphrase: what passphrase does wrong stays what it is.
func TestPassphrase(t *testing.T) {
	errStop := errors.New("no, I would rather not")
	for _, name := range names(t, false) {
		data := golden(t, name)
		if !sealedName(name) {
			if _, err := Parse(data, nil); err != nil {
				t.Errorf("%s, without anybody to ask: %v", name, err)
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
			t.Errorf("%s: %v", name, err)
		}
		_, err := Parse(data, nil)
		wantError(t, err, ErrPassphrase, "encrypted")
	}
}

// TestPassphraseIsTheCallers: it may become the PIN of the key.
func TestPassphraseIsTheCallers(t *testing.T) {
	for _, name := range []string{"p256-openssh-aes256-ctr", "p256-pbes2", "p256-scrypt", "rsa-dek"} {
		pass := []byte(secret)
		if _, err := Parse(golden(t, name), func() ([]byte, error) { return pass, nil }); err != nil || string(pass) != secret {
			t.Errorf("%s: %v, the passphrase is %q afterwards", name, err, pass)
		}
	}
}

// TestWrongPassphrases: a wrong key gives padding that looks right once in 256
// times, and must not be taken for damage then.
func TestWrongPassphrases(t *testing.T) {
	for _, name := range []string{"p256-pbes2", "p256-dek-des3", "rsa-dek"} {
		data := golden(t, name)
		for i := range 2000 {
			_, err := parseWith(data, string([]byte{byte(i), byte(i >> 8), 'x'}))
			wantError(t, err, ErrPassphrase)
		}
	}
}

// kinds are the refused files of testdata: what they are called, and whether
// that is seen before a passphrase is asked for.
var kinds = map[string]string{
	"refused-brainpoolP256r1":  "EC key on brainpoolP256r1: SSH has",
	"refused-camellia":         "key encrypted with the cipher 1.2.392.200011.61.1.1.1.4 (PBES2)",
	"refused-dek-camellia":     "key encrypted with CAMELLIA-128-CBC",
	"refused-dsa":              "DSA key: no TPM has DSA",
	"refused-dsa-pem":          "DSA key",
	"refused-dsa-pkcs8":        "DSA key",
	"refused-dsa.der":          "DSA key",
	"refused-ed25519":          "Ed25519 key: no TPM has Ed25519",
	"refused-ed25519-pkcs8":    "Ed25519 key: no TPM has Ed25519",
	"refused-ed448-pkcs8":      "Ed448 key",
	"refused-explicit":         "EC key with explicit parameters",
	"refused-pbe-md5-des":      "key encrypted with PBE-MD5-DES",
	"refused-pbe-sha1-3des":    "key encrypted with PBE-SHA1-3DES",
	"refused-pbe-sha1-des":     "key encrypted with PBE-SHA1-DES",
	"refused-pbe-sha1-rc2-40":  "key encrypted with PBE-SHA1-RC2-40",
	"refused-pbe-sha1-rc4-128": "key encrypted with PBE-SHA1-RC4-128",
	"refused-pkcs12":           "PKCS #12 file",
	"refused-ppk-ed25519":      "Ed25519 key: no TPM has Ed25519",
	"refused-ppk2":             "PuTTY key",
	"refused-ppk3":             "PuTTY key",
	"refused-prime192v1":       "EC key on P-192",
	"refused-primes":           "RSA key of more than two primes",
	"refused-rsa-pss":          "RSA key for PSS only",
	"refused-rsa512":           "RSA key of 512 bits",
	"refused-secp224r1":        "EC key on P-224",
	"refused-secp256k1":        "EC key on secp256k1",
	"refused-sect283r1":        "EC key on the curve 1.3.132.0.17",
	"refused-sshcom":           "SSH2 key",
	"refused-x25519-pkcs8":     "X25519 key: it cannot sign",
	"refused-x448-pkcs8":       "X448 key",
}

func TestRefused(t *testing.T) {
	files := names(t, true)
	if len(files) != len(kinds) {
		t.Errorf("%d files, %d kinds", len(files), len(kinds))
	}
	for _, name := range files {
		a := &asker{passphrase: secret}
		_, err := Parse(golden(t, name), a.ask)
		wantUnsupported(t, name, err, kinds[name])
		if a.asked != 0 {
			t.Errorf("%s: the passphrase was asked for in vain", name)
		}
	}
}

func wantUnsupported(t *testing.T, name string, err error, text string) {
	t.Helper()
	var u *UnsupportedError
	if !errors.As(err, &u) || family(err) != 1 {
		t.Errorf("%s: %v", name, err)
		return
	}
	if text == "" || !strings.HasPrefix(err.Error(), text) {
		t.Errorf("%s: %q, want %q", name, err, text)
	}
	if u.Why == "" || len(u.Ways) == 0 {
		t.Errorf("%s: neither a reason nor a way: %+v", name, u)
	}
}

func pemBlock(typ string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
}
