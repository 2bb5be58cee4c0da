package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	sshagent "golang.org/x/crypto/ssh/agent"
)

// TestForgetInOrder: who sends SIGUSR1 and asks next finds no key that was
// added, however busy the machine is; and who was answered before it, did.
func TestForgetInOrder(t *testing.T) {
	r := startLimited(t, "")
	var done atomic.Bool
	var load sync.WaitGroup
	for range runtime.NumCPU() {
		load.Go(func() {
			for n := 0; !done.Load(); n++ {
				runtime.KeepAlive(n)
			}
		})
	}
	defer load.Wait()
	defer done.Store(true)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, r.socket)
	client := sshagent.NewClient(conn)
	for i := range 30 {
		if err := client.Add(sshagent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(r.pid, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		keys, err := client.List()
		if err != nil {
			t.Fatal(err)
		}
		if len(keys) > 0 {
			t.Fatalf("signal %d: %d keys are listed after it was sent", i, len(keys))
		}
	}
}
