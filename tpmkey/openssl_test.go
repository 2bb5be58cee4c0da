package tpmkey_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// openssl runs OpenSSL with Debian's tpm2 provider (package tpm2-openssl) against the
// software TPM.
func (f *fixture) openssl(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	needs.Program(t, "openssl")
	cmd := exec.Command("openssl", append(args, "-provider", "tpm2", "-provider", "default")...)
	cmd.Env = append(os.Environ(), "TPM2OPENSSL_TCTI=swtpm:path="+f.Socket())
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("unable to load provider tpm2")) {
		t.Skip("needs OpenSSL's tpm2 provider: install the package tpm2-openssl, or run make deps")
	}
	return out, err
}

// TestOpenSSLReadsOurFiles checks that OpenSSL signs with our key files, created and
// imported ones, with the PIN and not without it.
func TestOpenSSLReadsOurFiles(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("100", "1000")
	dir := t.TempDir()
	in := filepath.Join(dir, "digest")
	if err := os.WriteFile(in, digest(crypto.SHA256), 0o600); err != nil {
		t.Fatal(err)
	}
	for a, get := range map[string]func(pin string) *tpmkey.Key{
		"ECDSA": func(pin string) *tpmkey.Key { return f.create(t, tpmkey.ECDSAP256, pin) },
		"RSA":   func(pin string) *tpmkey.Key { return f.create(t, tpmkey.RSA2048, pin) },
		"imported ECDSA": func(pin string) *tpmkey.Key {
			return f.importPrivate(t, newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{Auth: []byte(pin)})
		},
		"imported RSA": func(pin string) *tpmkey.Key {
			return f.importPrivate(t, newRSA(t, 2048), tpmkey.WrapOptions{Auth: []byte(pin)})
		},
	} {
		for _, pin := range []string{"", "1234"} {
			f.tpm = f.newTPM(t)
			key := get(pin)
			f.Close(t)
			data, err := key.File().Marshal()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "key")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			sig := filepath.Join(dir, "signature")
			args := []string{"pkeyutl", "-sign", "-inkey", path, "-in", in, "-out", sig, "-pkeyopt", "digest:sha256"}
			if pin != "" {
				if _, err := f.openssl(t, append(args, "-passin", "pass:wrong")...); err == nil {
					t.Errorf("%v: OpenSSL signed with a wrong PIN", a)
				}
				args = append(args, "-passin", "pass:"+pin)
			}
			if out, err := f.openssl(t, args...); err != nil {
				t.Fatalf("%v, PIN %q: %v\n%s", a, pin, err, out)
			}
			if !verifies(key.Public(), crypto.SHA256, read(t, sig)) {
				t.Errorf("%v, PIN %q: OpenSSL's signature does not verify", a, pin)
			}
		}
	}
	f.Tool("tpm2_flushcontext", "-t") // what the provider left
}

// TestKeysOfOpenSSL signs with keys that OpenSSL's provider created.
func TestKeysOfOpenSSL(t *testing.T) {
	t.Parallel()
	f := start(t)
	path := filepath.Join(t.TempDir(), "key")
	tests := map[string]struct {
		args []string
		pin  string
		hash crypto.Hash
	}{
		"P-256":          {[]string{"-algorithm", "EC", "-pkeyopt", "group:P-256"}, "", crypto.SHA256},
		"P-384":          {[]string{"-algorithm", "EC", "-pkeyopt", "group:P-384"}, "", crypto.SHA384},
		"P-256 with PIN": {[]string{"-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "user-auth:1234"}, "1234", crypto.SHA256},
		"RSA":            {[]string{"-algorithm", "RSA", "-pkeyopt", "bits:2048"}, "", crypto.SHA512},
		"RSA with PIN":   {[]string{"-algorithm", "RSA", "-pkeyopt", "bits:2048", "-pkeyopt", "user-auth:1234"}, "1234", crypto.SHA256},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := f.openssl(t, append([]string{"genpkey", "-out", path}, tt.args...)...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			f.Tool("tpm2_flushcontext", "-t")
			file, err := keyfile.Parse(bytes.TrimSpace(read(t, path)))
			if err != nil {
				t.Fatal(err)
			}
			f.tpm = f.newTPM(t)
			mustSign(t, f.key(t, file), tt.pin, tt.hash)
			f.Close(t)
		})
	}
}
