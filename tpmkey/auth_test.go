package tpmkey_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// lockout sets the dictionary attack parameters of the TPM: the number of tries, and
// the seconds until it forgets one wrong try.
func (f *fixture) lockout(tries, seconds string) {
	f.Tool("tpm2_dictionarylockout", "-s", "-n", tries, "-t", seconds, "-l", seconds)
}

func TestWrongPIN(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("3", "1000")
	key := f.create(t, tpmkey.ECDSAP256, "right")
	for _, want := range []int{2, 1} {
		_, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256)
		var wrong *tpmkey.AuthError
		if !errors.As(err, &wrong) || wrong.Left != want {
			t.Fatalf("Sign with a wrong PIN: %v, want an AuthError with %d tries left", err, want)
		}
	}
	mustSign(t, key, "right", crypto.SHA256)

	// A correct PIN does not give a try back. The third wrong one locks.
	_, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256)
	var wrong *tpmkey.AuthError
	if !errors.As(err, &wrong) || wrong.Left != 0 {
		t.Fatalf("third wrong PIN: %v", err)
	}
	_, err = key.Sign(testContext(t), []byte("right"), digest(crypto.SHA256), crypto.SHA256)
	var locked *tpmkey.LockoutError
	if !errors.As(err, &locked) || locked.Wait != 1000*time.Second {
		t.Fatalf("Sign while locked: %v, want a LockoutError that says 1000 s", err)
	}
	// A key without a PIN has noDA and keeps working.
	mustSign(t, f.create(t, tpmkey.ECDSAP256, ""), "", crypto.SHA256)

	f.Close(t)
	f.Tool("tpm2_dictionarylockout", "-c")
	f.tpm = f.newTPM(t)
	mustSign(t, f.key(t, key.File()), "right", crypto.SHA256)
}

func TestPINMissing(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "right")
	_, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
	var wrong *tpmkey.AuthError
	if !errors.As(err, &wrong) {
		t.Fatalf("Sign without the PIN: %v, want an AuthError", err)
	}
	if n, known := wrong.TriesLeft(); !known || n < 1 || !wrong.WrongAuth() {
		t.Errorf("TriesLeft() = %d, %v", n, known)
	}
}

// TestPINs tries auth values that libraries get wrong: with zero octets inside and at
// the end, and longer than a digest of the key's nameAlg.
func TestPINs(t *testing.T) {
	t.Parallel()
	f := start(t)
	zeroInside := ""
	for i := 0; zeroInside == ""; i++ { // a long PIN whose digest has a zero octet inside
		pin := strings.Repeat("long PIN ", 5) + strings.Repeat("!", i)
		if d := sha256.Sum256([]byte(pin)); bytes.IndexByte(d[:31], 0) >= 0 {
			zeroInside = pin
		}
	}
	for _, pin := range []string{
		"1", "a\x00b", "\x00b", "ends in zero\x00\x00", "pässwörd", "with\nnewline",
		strings.Repeat("x", 31), strings.Repeat("x", 32), strings.Repeat("x", 33), strings.Repeat("x", 1000), zeroInside,
	} {
		key := f.create(t, tpmkey.ECDSAP256, pin)
		mustSign(t, key, pin, crypto.SHA256)
		mustSign(t, key, pin, crypto.SHA256)
	}
	if _, err := f.tpm.Capabilities(testContext(t)); err != nil {
		t.Fatal(err)
	}
	f.Close(t)
	if out := string(f.Tool("tpm2_getcap", "properties-variable")); !strings.Contains(out, "TPM2_PT_LOCKOUT_COUNTER: 0x0") {
		t.Errorf("right PINs cost tries:\n%s", out)
	}
}

// TestPINIsNotOnTheWire looks for the PIN, and for the digest that replaces a long
// one, in everything that is sent to the TPM when a key is created and when it is
// used with the correct and with a wrong PIN.
func TestPINIsNotOnTheWire(t *testing.T) {
	t.Parallel()
	f := start(t)
	long := strings.Repeat("correct horse ", 4)
	sum := sha256.Sum256([]byte(long))
	for _, tt := range []struct {
		pin    string
		secret []byte
	}{{"a PIN of mine", []byte("a PIN of mine")}, {long, sum[:]}} {
		f.Forget()
		key := f.create(t, tpmkey.ECDSAP256, tt.pin)
		mustSign(t, key, tt.pin, crypto.SHA256)
		if _, err := key.Sign(testContext(t), []byte("wrong one"), digest(crypto.SHA256), crypto.SHA256); err == nil {
			t.Error("a wrong PIN signed")
		}
		if !slices.Contains(f.Commands(), "Create") || !slices.Contains(f.Commands(), "Sign") {
			t.Fatalf("commands: %v", f.Commands())
		}
		for _, octets := range [][]byte{tt.secret, []byte(tt.pin), []byte("wrong one")} {
			if f.Sent(octets) {
				t.Errorf("%q was sent in clear", octets)
			}
		}
	}
}

// TestOneSessionServesAllKeys checks that the session is started once, and flushed
// when the TPM gets idle.
func TestOneSessionServesAllKeys(t *testing.T) {
	t.Parallel()
	f := start(t)
	a, b := f.create(t, tpmkey.ECDSAP256, "one"), f.create(t, tpmkey.RSA2048, "two")
	got := f.steadyCommands(func() {
		mustSign(t, a, "one", crypto.SHA256)
		mustSign(t, b, "two", crypto.SHA512)
	})
	if n := count(got, "StartAuthSession"); n != 0 {
		t.Errorf("%d sessions were started beside the one that is there", n)
	}
	f.waitIdle(t)
	left, err := f.Leftovers()
	if err != nil || len(left) > 0 {
		t.Errorf("an idle agent left in the TPM: %v %v", left, err)
	}
	mustSign(t, a, "one", crypto.SHA256)
}

// waitIdle waits until the idle timer has closed the device.
func (f *fixture) waitIdle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); f.StillOpen() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the device stays open")
		}
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// TestTypingMistakeCostsOneTry checks that one wrong PIN raises the counter in the
// TPM by one.
func TestTypingMistakeCostsOneTry(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "right")
	mustSign(t, key, "right", crypto.SHA256)
	if _, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256); err == nil {
		t.Fatal("a wrong PIN signed")
	}
	f.Close(t)
	if out := string(f.Tool("tpm2_getcap", "properties-variable")); !strings.Contains(out, "TPM2_PT_LOCKOUT_COUNTER: 0x1") {
		t.Errorf("one mistake did not cost one try:\n%s", out)
	}
}
