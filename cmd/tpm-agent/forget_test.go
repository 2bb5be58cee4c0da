package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"runtime"
	"slices"
	"strings"
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

// What the agent is started again with does not reach the programs that it runs.
func TestRestarted(t *testing.T) {
	for _, before := range [][]string{{"A=b"}, {"A=b", "GODEBUG=x=1,y=2"}} {
		s := system{environ: slices.Clone(before)}
		if got := s.without(); !slices.Equal(got, before) {
			t.Errorf("before: %q", got)
		}
		again := system{environ: s.restarted()}
		if !strings.HasSuffix(again.getenv("GODEBUG"), noPreemption) || again.getenv(startedBlocked) == "" {
			t.Errorf("started again with %q", again.environ)
		}
		if got := again.without(); !slices.Equal(got, before) {
			t.Errorf("children get %q, not %q", got, before)
		}
	}
}
