//go:build vmtest

package vm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// Contexts and sessions pass through the kernel's resource manager, so a signature
// takes three commands. They end when the device is closed, and the next signature
// creates new ones.
func TestThreeCommands(t *testing.T) {
	onEach(t, func(t *testing.T, device string) {
		address, err := tcti.Parse("device:" + device)
		if err != nil {
			t.Fatal(err)
		}
		recorder := tpmtest.Record(address.Open)
		tpm := tpmkey.New(func(ctx context.Context) (tpmkey.Conn, error) { return recorder.Open(ctx) })
		defer tpm.Close()
		for _, pin := range []string{"", "1234"} {
			file, err := tpm.Create(t.Context(), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: []byte(pin)})
			if err != nil {
				t.Fatal(err)
			}
			key, err := tpm.Key(file)
			if err != nil {
				t.Fatal(err)
			}
			signOnce(t, key, pin)
			steady(t, recorder, func() { signOnce(t, key, pin) })
			eventually(t, "the device is closed", func() error { return stillOpen(recorder) })
			signOnce(t, key, pin)
			steady(t, recorder, func() { signOnce(t, key, pin) })
		}
	})
}

func signOnce(t *testing.T, key *tpmkey.Key, pin string) {
	t.Helper()
	digest := sha256.Sum256([]byte("three commands"))
	sig, err := key.Sign(t.Context(), []byte(pin), digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Fatal("the signature does not verify")
	}
}

// steady checks the commands of a signature during which the device was not opened
// again: the agent closes /dev/tpm0 every second.
func steady(t *testing.T, r *tpmtest.Recorder, sign func()) {
	t.Helper()
	want := []string{"ContextLoad", "Sign", "FlushContext"}
	for {
		opened := r.Opened()
		r.Forget()
		sign()
		if got := r.Commands(); r.Opened() == opened {
			if !slices.Equal(got, want) {
				t.Errorf("commands of one signature: %v, want %v", got, want)
			}
			return
		}
	}
}

func stillOpen(r *tpmtest.Recorder) error {
	if n := r.StillOpen(); n > 0 {
		return fmt.Errorf("%d connections are open", n)
	}
	return nil
}
