package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/crypto/ssh"
)

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// TestMemorySetApart: not dumped and, as the limit allows one page, locked.
func TestMemorySetApart(t *testing.T) {
	m := must(newMemory(100, func(b []byte) { copy(b, "secret") }))
	defer m.wipe()
	var flags string
	for _, r := range regions(t, os.Getpid()) {
		if r.has(address(m.b)) {
			flags = r.flags
		}
	}
	for _, flag := range []string{" dd ", " lo "} {
		if !strings.Contains(" "+flags+" ", flag) {
			t.Errorf("flags of the mapping: %q, without %s", flags, flag)
		}
	}
}

func TestMemoryWipe(t *testing.T) {
	m := must(newMemory(100, func(b []byte) { copy(b, "secret") }))
	err := m.use(func(b []byte) error {
		m.wipe()
		m.wipe()
		if string(b[:6]) != "secret" || len(b) != 100 {
			t.Errorf("%q while it is used", b)
		}
		// A second user comes too late, and does not take it from the first.
		if err := m.use(func([]byte) error { return nil }); !errors.Is(err, errWiped) {
			t.Errorf("use after wipe: %v", err)
		}
		if string(b[:6]) != "secret" {
			t.Errorf("%q while it is used", b)
		}
		return os.ErrClosed
	})
	if !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if m.b != nil {
		t.Error("not given back by its last user")
	}
	m.wipe()
}

// TestMemoryForgotten: a key that nobody wiped goes when nobody has it.
func TestMemoryForgotten(t *testing.T) {
	a, err := parseAddition(adding(p256(), nil))
	if err != nil {
		t.Fatal(err)
	}
	m := a.key.memory
	a = nil
	soon(t, "a key that nobody has is given back", func() bool {
		runtime.GC()
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.wiped && m.b == nil
	})
}

// TestWipeWhileSigning: each signature is right or refused.
func TestWipeWhileSigning(t *testing.T) {
	for name, s := range signers() {
		t.Run(name, func(t *testing.T) {
			a := added(t, adding(s, nil))
			digest, hash := make([]byte, 32), crypto.SHA256
			if a.typ == ssh.KeyAlgoED25519 {
				hash = 0
			}
			var users sync.WaitGroup
			started := make(chan struct{}, 8)
			for range cap(started) {
				users.Go(func() {
					for i := 0; ; i++ {
						sig, err := a.key.Sign(context.Background(), nil, digest, hash)
						if errors.Is(err, errWiped) {
							return
						}
						if err != nil || !a.key.verify(hash, digest, sig) {
							t.Errorf("signature %x, %v", sig, err)
							return
						}
						if i == 0 {
							started <- struct{}{}
						}
					}
				})
			}
			for range cap(started) {
				<-started
			}
			a.key.wipe()
			users.Wait()
			if a.key.memory.b != nil {
				t.Error("still in memory when all are done")
			}
		})
	}
}

// TestFault: a signature that comes out wrong does not leave.
func TestFault(t *testing.T) {
	for name, s := range signers() {
		a := added(t, adding(s, nil))
		hash := crypto.SHA256
		if a.typ == ssh.KeyAlgoED25519 {
			hash = 0
		}
		// The lowest bit of the last byte, which is in 1/q mod p, in the
		// scalar, or in what an Ed25519 key says that its public key is.
		b := a.key.memory.b
		before := bytes.Clone(b)
		b[len(b)-1] ^= 1
		if sig, err := a.key.Sign(context.Background(), nil, make([]byte, 32), hash); err == nil {
			t.Errorf("%s: a spoilt key gives the signature %x", name, sig)
		}
		copy(b, before)
		signsWith(t, a.key, a.public)
	}
}

func BenchmarkSoftwareKey(b *testing.B) {
	keys := signers()
	keys["rsa4096"] = must(rsa.GenerateKey(rand.Reader, 4096))
	for name, s := range keys {
		a := added(b, adding(s, nil))
		digest, hash := make([]byte, 32), crypto.SHA256
		if a.typ == ssh.KeyAlgoED25519 {
			hash = 0
		}
		b.Run(name+"/kept", func(b *testing.B) { // parsed, and not verified
			for b.Loop() {
				if _, err := s.Sign(nil, digest, hash); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/held", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.key.Sign(context.Background(), nil, digest, hash); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/verify", func(b *testing.B) {
			sig := must(a.key.Sign(context.Background(), nil, digest, hash))
			for b.Loop() {
				a.key.verify(hash, digest, sig)
			}
		})
		b.Run(name+"/add", func(b *testing.B) {
			request := adding(s, nil)
			for b.Loop() {
				must(parseAddition(request)).key.wipe()
			}
		})
	}
}
