package tpmkey_test

import (
	"crypto"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

func (f *fixture) mustLockout(t *testing.T) tpmkey.Lockout {
	t.Helper()
	lo, err := f.tpm.Lockout(testContext(t))
	if err != nil {
		t.Fatalf("Lockout: %v", err)
	}
	return lo
}

// TestLockout follows the counter into the lockout and out of it.
func TestLockout(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("3", "1000")
	want := tpmkey.Lockout{Tries: 3, Max: 3, Interval: 1000 * time.Second}
	if got := f.mustLockout(t); got != want {
		t.Errorf("unused: %+v, want %+v", got, want)
	}
	key := f.create(t, tpmkey.ECDSAP256, "right")
	mustSign(t, key, "right", crypto.SHA256)
	for want.Counter = 1; want.Counter <= 3; want.Counter++ {
		if _, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256); err == nil {
			t.Fatal("a wrong PIN signed")
		}
		want.Tries, want.Wait = 3-want.Counter, 1000*time.Second
		if got := f.mustLockout(t); got != want {
			t.Errorf("after %d wrong ones: %+v, want %+v", want.Counter, got, want)
		}
	}
	_, err := key.Sign(testContext(t), []byte("right"), digest(crypto.SHA256), crypto.SHA256)
	var locked *tpmkey.LockoutError
	if !errors.As(err, &locked) || locked.Wait != 1000*time.Second {
		t.Fatalf("Sign while locked: %v", err)
	}
	for _, says := range []string{"in at most 16m40s", "tpm2_dictionarylockout --clear-lockout", "lockout password"} {
		if !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q does not say %q in one line", err, says)
		}
	}
	f.Close(t)
	f.Tool("tpm2_dictionarylockout", "-c")
	f.tpm = f.newTPM(t)
	if got := f.mustLockout(t); got.Tries != 3 || got.Counter != 0 || got.Wait != 0 {
		t.Errorf("cleared: %+v", got)
	}
}

// TestLockoutOfKeys checks that keys outside the lockout have no limit, without
// asking the TPM.
func TestLockoutOfKeys(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("5", "100")
	for name, test := range map[string]struct {
		key  *tpmkey.Key
		want int
	}{
		"PIN":             {f.create(t, tpmkey.ECDSAP256, "1234"), 5},
		"no PIN":          {f.create(t, tpmkey.ECDSAP256, ""), -1},
		"PIN and PCRs":    {f.createBound(t, "1234", 7), 5},
		"PCRs and no PIN": {f.createBound(t, "", 7), -1},
	} {
		var got tpmkey.Lockout
		sent := f.commands(func() {
			var err error
			if got, err = test.key.Lockout(testContext(t)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		})
		want := []string{"GetCapability"}
		if test.want < 0 {
			want = nil
		}
		if got.Tries != test.want || !slices.Equal(sent, want) {
			t.Errorf("%s: %+v by %v, want %d tries by %v", name, got, sent, test.want, want)
		}
	}
}

// TestNoLockout checks that a TPM with an interval of zero does not count.
func TestNoLockout(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("3", "0")
	key := f.create(t, tpmkey.ECDSAP256, "right")
	for range 4 {
		_, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256)
		var wrong *tpmkey.AuthError
		if !errors.As(err, &wrong) || wrong.Left != -1 {
			t.Fatalf("a wrong PIN: %v", err)
		}
	}
	if got := f.mustLockout(t); got.Tries != -1 || got.Wait != 0 {
		t.Errorf("%+v", got)
	}
	mustSign(t, key, "right", crypto.SHA256)
}

// TestLockoutNotKnown has a TPM that does not report the state of its lockout. Its
// refusal must still be recognized.
func TestLockoutNotKnown(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "right")
	mustSign(t, key, "right", crypto.SHA256)
	f.Inject(tpmtest.Fault{Command: "GetCapability", Effect: tpmtest.Code(0x101)})
	_, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256)
	var wrong *tpmkey.AuthError
	if !errors.As(err, &wrong) || wrong.Left != -1 || f.Disarm() != 0 {
		t.Errorf("a wrong PIN: %v", err)
	}
	f.Inject(tpmtest.Fault{Command: "GetCapability", Effect: tpmtest.Code(0x101)})
	if _, err := key.Lockout(testContext(t)); err == nil {
		t.Error("Lockout knows what the TPM did not tell")
	}
}
