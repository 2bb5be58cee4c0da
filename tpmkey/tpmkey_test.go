package tpmkey_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a software TPM with a recorder in front of it.
type fixture struct {
	*tpmtest.SWTPM
	*tpmtest.Recorder
	tpm *tpmkey.TPM
}

func start(t testing.TB) *fixture {
	t.Helper()
	sw := tpmtest.Start(t)
	addr, err := tcti.Parse(sw.Address())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{SWTPM: sw, Recorder: tpmtest.Record(addr.Open)}
	t.Cleanup(func() {
		if n := f.StillOpen(); n != 0 {
			t.Errorf("%d connections were not closed", n)
		}
	})
	f.tpm = f.newTPM(t)
	return f
}

// newTPM returns another TPM over the same chip, closed at the end of the test.
func (f *fixture) newTPM(t testing.TB) *tpmkey.TPM {
	t.Helper()
	tpm := tpmkey.New(func(ctx context.Context) (tpmkey.Conn, error) { return f.Open(ctx) })
	t.Cleanup(func() {
		if err := tpm.Close(); err != nil {
			t.Errorf("closing the TPM: %v", err)
		}
	})
	return tpm
}

// create creates a key and returns it ready for use.
func (f *fixture) create(t testing.TB, a tpmkey.Algorithm, pin string) *tpmkey.Key {
	t.Helper()
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: a, Auth: []byte(pin)})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return f.key(t, file)
}

func (f *fixture) key(t testing.TB, file *keyfile.TPMKey) *tpmkey.Key {
	t.Helper()
	key, err := f.tpm.Key(file)
	if err != nil {
		t.Fatalf("Key: %v", err)
	}
	return key
}

// commands runs fn and returns the commands that it sent.
func (f *fixture) commands(fn func()) []string {
	f.Forget()
	fn()
	return f.Commands()
}

// steadyCommands is commands for an fn that may be repeated. It returns what fn sends
// while the device stays open: a TPM that serves one client at a time is closed every
// second.
func (f *fixture) steadyCommands(fn func()) []string {
	for {
		fn()
		opened := f.Opened()
		got := f.commands(fn)
		fn() // opens the device again if it was closed at the end
		if f.Opened() == opened {
			return got
		}
	}
}

// Bits of TPMA_OBJECT (TPM 2.0 Part 2, 8.3).
const (
	attrFixedTPM            keyfile.Attributes = 1 << 1
	attrFixedParent         keyfile.Attributes = 1 << 4
	attrSensitiveDataOrigin keyfile.Attributes = 1 << 5
	attrUserWithAuth        keyfile.Attributes = 1 << 6
	attrNoDA                keyfile.Attributes = 1 << 10
	attrDecrypt             keyfile.Attributes = 1 << 17
	attrSign                keyfile.Attributes = 1 << 18
)

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// message is what tests sign, hashed as they need it.
const message = "the main job: a key in the TPM logs you in"

func digest(h crypto.Hash) []byte {
	d := h.New()
	d.Write([]byte(message))
	return d.Sum(nil)
}

// mustSign signs message and checks the signature in software.
func mustSign(t testing.TB, key *tpmkey.Key, pin string, h crypto.Hash) {
	t.Helper()
	sig, err := key.Sign(testContext(t), []byte(pin), digest(h), h)
	if err != nil {
		t.Fatalf("Sign: %v", err)
	}
	if !verifies(key.Public(), h, sig) {
		t.Fatal("the signature does not verify")
	}
}

func verifies(pub crypto.PublicKey, h crypto.Hash, sig []byte) bool {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest(h), sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, h, digest(h), sig) == nil
	default:
		return false
	}
}

func TestCreateAndSign(t *testing.T) {
	t.Parallel()
	tests := []struct {
		algorithm tpmkey.Algorithm
		hashes    []crypto.Hash
	}{
		{tpmkey.ECDSAP256, []crypto.Hash{crypto.SHA256}},
		{tpmkey.ECDSAP384, []crypto.Hash{crypto.SHA384}},
		{tpmkey.ECDSAP521, []crypto.Hash{crypto.SHA512}},
		{tpmkey.RSA2048, []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA512}},
		{tpmkey.RSA3072, []crypto.Hash{crypto.SHA256, crypto.SHA512}},
	}
	f := start(t)
	for _, tt := range tests {
		for _, pin := range []string{"", "1234"} {
			t.Run(tt.algorithm.String()+"/PIN="+pin, func(t *testing.T) {
				key := f.create(t, tt.algorithm, pin)
				if got := key.AuthRequired(); got != (pin != "") {
					t.Errorf("AuthRequired() = %v", got)
				}
				for _, h := range tt.hashes {
					mustSign(t, key, pin, h)
					mustSign(t, key, pin, h)
				}
			})
		}
	}
}

// TestCommandsPerSignature checks that a warm signature takes three commands, with
// and without a PIN, and no parent in the TPM.
func TestCommandsPerSignature(t *testing.T) {
	t.Parallel()
	steady := []string{"ContextLoad", "Sign", "FlushContext"}
	for name, pin := range map[string]string{"no PIN": "", "PIN": "1234"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			key := f.create(t, tpmkey.ECDSAP256, pin)
			mustSign(t, key, pin, crypto.SHA256)
			for range 3 {
				got := f.steadyCommands(func() { mustSign(t, key, pin, crypto.SHA256) })
				if !slices.Equal(got, steady) {
					t.Errorf("commands of one signature: %v, want %v", got, steady)
				}
			}
		})
	}
}

func TestPublicKeyFile(t *testing.T) {
	t.Parallel()
	f := start(t)
	for pin, wantEmpty := range map[string]bool{"": true, "1234": false} {
		file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.RSA2048, Auth: []byte(pin)})
		if err != nil {
			t.Fatal(err)
		}
		a := file.Public.Attributes
		const want = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth | attrSign | attrDecrypt
		if a&want != want {
			t.Errorf("attributes %#x, want %#x among them", a, want)
		}
		if a.NoDA() != wantEmpty || file.EmptyAuth != wantEmpty {
			t.Errorf("PIN %q: noDA %v, emptyAuth %v", pin, a.NoDA(), file.EmptyAuth)
		}
		if file.Parent != keyfile.ParentOwner {
			t.Errorf("parent %#x", file.Parent)
		}
	}
}

// Close closes the TPM before the end of the test, so that tools can use it.
func (f *fixture) Close(t testing.TB) {
	t.Helper()
	if err := f.tpm.Close(); err != nil {
		t.Fatalf("closing the TPM: %v", err)
	}
}
