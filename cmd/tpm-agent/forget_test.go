package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"syscall"
	"testing"
	"time"

	sshagent "golang.org/x/crypto/ssh/agent"
)

// TestForget checks that SIGUSR1 between requests removes the keys that were added
// before it, and that a key that is added afterwards stays.
func TestForget(t *testing.T) {
	t.Parallel()
	r := startLimited(t, "")
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := sshagent.NewClient(connect(t, r.socket))
	for range 30 {
		if err := client.Add(sshagent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
		if keys, err := client.List(); err != nil || len(keys) == 0 {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		if err := syscall.Kill(r.pid, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); ; {
			keys, err := client.List()
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) == 0 {
				break
			}
			if time.Since(start) > longEnough {
				t.Fatal("the agent still lists the key")
			}
		}
	}
}
