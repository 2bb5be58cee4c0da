package tpmkey_test

import (
	"context"
	"crypto"
	_ "crypto/sha1" // old clients ask for it
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// foreignRSA creates an RSA 2048 key with tpm2-tools under the draft's parent.
func (f *fixture) foreignRSA(t *testing.T, attributes string) *tpmkey.Key {
	t.Helper()
	primary := f.primaryContext(t)
	return f.key(t, f.foreign(t, primary, 0x40000001, "-G", "rsa2048", "-a", attributes))
}

// TestDecryptOnlyRSA signs with RSA keys that may decrypt but not sign, as
// create_tpm2_key makes them.
func TestDecryptOnlyRSA(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.foreignRSA(t, "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt")
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA512} {
		got := f.commands(func() { mustSign(t, key, "", h) })
		if !slices.Contains(got, "RSA_Decrypt") || slices.Contains(got, "Sign") {
			t.Errorf("%v: commands %v, want RSA_Decrypt and no Sign", h, got)
		}
	}
}

// withoutSHA512 makes the TPM a chip without SHA-512: it does not list it, and does
// not sign with it.
func (f *fixture) withoutSHA512() {
	f.Inject(tpmtest.Fault{Command: "GetCapability", Times: 1 << 30, Effect: tpmtest.Change(func(answer []byte) []byte {
		const entry = "\x00\x0d\x00\x00\x00\x04" // TPMS_ALG_PROPERTY of SHA-512
		for i := 19; i+6 <= len(answer); i++ {
			if string(answer[i:i+6]) == entry {
				binary.BigEndian.PutUint32(answer[i+2:], 0)
			}
		}
		return answer
	})})
	f.Inject(tpmtest.Fault{Command: "Sign", Times: 1 << 30, Effect: func(ctx context.Context, c tpmtest.Conn, cmd []byte) ([]byte, error) {
		if i := len(cmd) - 12; i > 0 && string(cmd[i:i+4]) == "\x00\x14\x00\x0d" {
			return tpmtest.NewAnswer(uint32(tpm2.TPMRCHash) | 0x2C0), nil
		}
		return c.Send(ctx, cmd)
	}})
}

func TestRSAWithoutSHA512(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, pin := range []string{"", "1234"} {
		f.tpm = f.newTPM(t)
		key := f.create(t, tpmkey.RSA2048, pin)
		f.withoutSHA512()
		got := f.commands(func() { mustSign(t, key, pin, crypto.SHA512) })
		if !slices.Contains(got, "RSA_Decrypt") {
			t.Errorf("PIN %q: commands %v, want RSA_Decrypt", pin, got)
		}
		got = f.steadyCommands(func() { mustSign(t, key, pin, crypto.SHA512) })
		if want := []string{"ContextLoad", "RSA_Decrypt", "FlushContext"}; !slices.Equal(got, want) {
			t.Errorf("PIN %q: commands %v, want %v", pin, got, want)
		}
		got = f.commands(func() { mustSign(t, key, pin, crypto.SHA256) })
		if !slices.Contains(got, "Sign") {
			t.Errorf("PIN %q: SHA-256 by %v, want Sign", pin, got)
		}
		f.Disarm()
		f.Close(t)
	}
}

func TestSignOnlyRSA(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.foreignRSA(t, "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign")
	mustSign(t, key, "", crypto.SHA256)
	mustSign(t, key, "", crypto.SHA512)
	f.Close(t)
	f.tpm = f.newTPM(t)
	key = f.key(t, key.File())
	f.withoutSHA512()
	_, err := key.Sign(testContext(t), nil, digest(crypto.SHA512), crypto.SHA512)
	var unsupported *tpmkey.UnsupportedError
	if !errors.As(err, &unsupported) || !slices.Contains(unsupported.Supported, "rsa-sha2-256") {
		t.Errorf("SHA-512 without support: %v, want an UnsupportedError that names rsa-sha2-256", err)
	}
	mustSign(t, key, "", crypto.SHA256)
	f.Disarm()
}

func TestUnsupportedAlgorithm(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.Inject(tpmtest.Fault{Command: "TestParms", Times: 1, Effect: tpmtest.Code(uint32(tpm2.TPMRCValue) | 0x1C0)})
	_, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.RSA4096})
	var unsupported *tpmkey.UnsupportedError
	if !errors.As(err, &unsupported) || !slices.Contains(unsupported.Supported, "ECDSA P-256") {
		t.Errorf("RSA 4096: %v, want an UnsupportedError that says what there is", err)
	}
	if _, err := f.tpm.Create(testContext(t), tpmkey.Template{}); err == nil {
		t.Error("a key without an algorithm was made")
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	f := start(t)
	c, err := f.tpm.Capabilities(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if c.Manufacturer != "IBM" || c.Vendor == "" || c.Firmware == "0.0.0.0" {
		t.Errorf("%+v", c)
	}
	for _, a := range []tpmkey.Algorithm{tpmkey.ECDSAP256, tpmkey.ECDSAP384, tpmkey.RSA2048} {
		if !slices.Contains(c.Algorithms, a) {
			t.Errorf("%v is missing in %v", a, c.Algorithms)
		}
	}
}
