package softkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// signsWith signs with each algorithm of the key and verifies with pub.
func signsWith(t testing.TB, k *Key, pub ssh.PublicKey) {
	t.Helper()
	if cert, ok := pub.(*ssh.Certificate); ok {
		pub = cert.Key
	}
	data := []byte("what is to be signed")
	formats := map[string]crypto.Hash{}
	switch pub.Type() {
	case ssh.KeyAlgoRSA:
		formats[ssh.KeyAlgoRSASHA256] = crypto.SHA256
		formats[ssh.KeyAlgoRSASHA512] = crypto.SHA512
		formats[ssh.KeyAlgoRSA] = crypto.SHA1
	case ssh.KeyAlgoED25519:
		formats[pub.Type()] = 0
	default:
		formats[pub.Type()] = map[string]crypto.Hash{
			ssh.KeyAlgoECDSA256: crypto.SHA256, ssh.KeyAlgoECDSA384: crypto.SHA384, ssh.KeyAlgoECDSA521: crypto.SHA512,
		}[pub.Type()]
	}
	for format, hash := range formats {
		digest := data
		if hash != 0 {
			h := hash.New()
			h.Write(data)
			digest = h.Sum(nil)
		}
		sig, err := k.Sign(context.Background(), nil, digest, hash)
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		if strings.HasPrefix(format, "ecdsa") {
			var numbers struct{ R, S *big.Int }
			if _, err := asn1.Unmarshal(sig, &numbers); err != nil {
				t.Fatal(err)
			}
			sig = ssh.Marshal(numbers)
		}
		if err := pub.Verify(data, &ssh.Signature{Format: format, Blob: sig}); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
}

// TestWipeWhileSigning checks that each signature is right or refused.
func TestWipeWhileSigning(t *testing.T) {
	t.Parallel()
	for name, s := range sshtest.Signers() {
		t.Run(name, func(t *testing.T) {
			a := added(t, sshtest.Adding(s, nil))
			digest, hash := make([]byte, 32), crypto.SHA256
			if a.Typ == ssh.KeyAlgoED25519 {
				hash = 0
			}
			var users sync.WaitGroup
			started := make(chan struct{}, 8)
			for range cap(started) {
				users.Go(func() {
					for i := 0; ; i++ {
						sig, err := a.Key.Sign(context.Background(), nil, digest, hash)
						if errors.Is(err, ErrWiped) {
							return
						}
						if err != nil || !a.Key.verify(hash, digest, sig) {
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
			a.Key.Wipe()
			users.Wait()
			if a.Key.secret.b != nil {
				t.Error("still mapped after the last signature")
			}
		})
	}
}

// TestFault checks that no wrong signature leaves if a bit of the private key
// flips in memory.
func TestFault(t *testing.T) {
	t.Parallel()
	for typ, s := range sshtest.Signers() {
		a := added(t, sshtest.Adding(s, nil))
		hash := crypto.SHA256
		if a.Typ == ssh.KeyAlgoED25519 {
			hash = 0
		}
		for name, number := range sshtest.SecretsOf(s) {
			last := bytes.Index(a.Key.secret.b, number) + len(number) - 1
			if last < len(number)-1 {
				t.Fatalf("%s: %s is not in memory", typ, name)
			}
			a.Key.secret.b[last] ^= 1
			if sig, err := a.Key.Sign(context.Background(), nil, make([]byte, 32), hash); err == nil {
				t.Errorf("%s: with a bit of %s flipped, the signature is %x", typ, name, sig)
			}
			a.Key.secret.b[last] ^= 1
		}
		signsWith(t, a.Key, a.Public)
	}
}

// TestKeyRefuses has digests that do not fit the key or the hash.
func TestKeyRefuses(t *testing.T) {
	t.Parallel()
	p256, rsaKey, ed := added(t, sshtest.Adding(sshtest.P256(), nil)), added(t, sshtest.Adding(sshtest.RSA2048(), nil)), added(t, sshtest.Adding(sshtest.Ed25519(), nil))
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p256.Key.Sign(ended, nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, a := range []*Addition{p256, rsaKey, ed} {
		if _, err := a.Key.Sign(context.Background(), nil, make([]byte, 33), crypto.SHA256); err == nil {
			t.Error(a.Typ, "signs 33 bytes for SHA-256")
		}
	}
	if _, err := ed.Key.Sign(context.Background(), nil, make([]byte, 64), crypto.SHA512); err == nil {
		t.Error("an Ed25519 key signs a digest")
	}
	for _, a := range []*Addition{p256, rsaKey} {
		if _, err := a.Key.Sign(context.Background(), nil, make([]byte, 32), crypto.Hash(0)); err == nil {
			t.Error(a.Typ, "signs data that is not hashed")
		}
	}
}

func BenchmarkKey(b *testing.B) {
	keys := sshtest.Signers()
	keys["rsa4096"] = sshtest.Must(rsa.GenerateKey(rand.Reader, 4096))
	for name, s := range keys {
		a := added(b, sshtest.Adding(s, nil))
		digest, hash := make([]byte, 32), crypto.SHA256
		if a.Typ == ssh.KeyAlgoED25519 {
			hash = 0
		}
		b.Run(name+"/kept", func(b *testing.B) { // by a key that stays parsed, not verified
			for b.Loop() {
				if _, err := s.Sign(nil, digest, hash); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/held", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Key.Sign(context.Background(), nil, digest, hash); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/verify", func(b *testing.B) {
			sig := sshtest.Must(a.Key.Sign(context.Background(), nil, digest, hash))
			for b.Loop() {
				a.Key.verify(hash, digest, sig)
			}
		})
		b.Run(name+"/add", func(b *testing.B) {
			request := sshtest.Adding(s, nil)
			for b.Loop() {
				sshtest.Must(ParseAddition(request)).Key.Wipe()
			}
		})
	}
}
