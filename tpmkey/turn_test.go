package tpmkey_test

import (
	"context"
	"crypto"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// TestManyAtOnce checks that one caller at a time uses the TPM, and that every
// signature is correct.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	began := time.Now()
	f := start(t)
	keys := []struct {
		key *tpmkey.Key
		pin string
		h   crypto.Hash
	}{
		{f.create(t, tpmkey.ECDSAP256, ""), "", crypto.SHA256},
		{f.create(t, tpmkey.ECDSAP384, "1234"), "1234", crypto.SHA384},
		{f.create(t, tpmkey.RSA2048, "5678"), "5678", crypto.SHA512},
	}
	var wg sync.WaitGroup
	for i := range 24 {
		k := keys[i%len(keys)]
		wg.Go(func() {
			for range 5 {
				sig, err := k.key.Sign(testContext(t), []byte(k.pin), digest(k.h), k.h)
				if err != nil || !verifies(k.key.Public(), k.h, sig) {
					t.Errorf("%v: %v", k.key.Public(), err)
				}
			}
		})
	}
	wg.Wait()
	// It stays open for a second at least, however busy the machine is.
	if n, most := f.Opened(), 1+int(time.Since(began)/time.Second); n > most {
		t.Errorf("the TPM was opened %d times, at most %d are necessary", n, most)
	}
}

// TestLeavingTheQueue cancels two callers. The one that waits must cost the TPM no
// command; the one whose turn has begun must get no signature.
func TestLeavingTheQueue(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	busy, release := make(chan struct{}), make(chan struct{})
	f.Inject(tpmtest.Fault{Command: "ContextLoad", Effect: tpmtest.Hold(func() { close(busy) }, release)})

	first, hangUp := context.WithCancel(testContext(t))
	results := make(chan error, 2)
	f.Forget()
	go func() {
		_, err := key.Sign(first, nil, digest(crypto.SHA256), crypto.SHA256)
		results <- err
	}()
	<-busy
	waiting, leave := context.WithCancel(testContext(t))
	go func() {
		_, err := key.Sign(waiting, nil, digest(crypto.SHA256), crypto.SHA256)
		results <- err
	}()
	leave()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that waited: %v, want context.Canceled", err)
	}
	hangUp()
	close(release)
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller whose turn it was: %v, want context.Canceled", err)
	}
	if n := count(f.Commands(), "Sign"); n != 0 {
		t.Errorf("%d signatures were made for callers that have gone", n)
	}
	mustSign(t, key, "", crypto.SHA256)
}

// TestSilentTPM checks that a caller can give up waiting while the TPM is silent.
func TestSilentTPM(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	f.Pause()
	done, busy := make(chan error, 1), make(chan struct{})
	f.Inject(tpmtest.Fault{Effect: func(ctx context.Context, c tpmtest.Conn, cmd []byte) ([]byte, error) {
		close(busy)
		return c.Send(ctx, cmd)
	}})
	go func() {
		_, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
		done <- err
	}()
	<-busy
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := key.Sign(ctx, nil, digest(crypto.SHA256), crypto.SHA256); err == nil {
		t.Error("a mute TPM signed")
	}
	f.Resume()
	if err := <-done; err != nil {
		t.Errorf("when the TPM speaks again: %v", err)
	}
}

// TestSharesTheTPM checks that two programs that are never idle share a TPM that
// serves one client at a time.
func TestSharesTheTPM(t *testing.T) {
	t.Parallel()
	f := start(t)
	a := f.create(t, tpmkey.ECDSAP256, "")
	second := f.newTPM(t)
	b, err := second.Key(a.File())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(testContext(t))
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := a.Sign(ctx, nil, digest(crypto.SHA256), crypto.SHA256); err != nil && ctx.Err() == nil {
				t.Errorf("the busy one: %v", err)
				return
			}
		}
	})
	mustSign(t, b, "", crypto.SHA256)
	stop()
	wg.Wait()
}

// TestOpenFails checks that the device is opened again at each try.
func TestOpenFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("no such device")
	opened := 0
	tpm := tpmkey.New(func(context.Context) (tpmkey.Conn, error) { opened++; return nil, broken })
	defer tpm.Close()
	for range 3 {
		if _, err := tpm.Capabilities(testContext(t)); !errors.Is(err, broken) {
			t.Errorf("%v, want what opening gave", err)
		}
	}
	if opened != 3 {
		t.Errorf("opened %d times, want a try each time", opened)
	}
}
