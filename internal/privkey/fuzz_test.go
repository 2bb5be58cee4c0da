package privkey

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/pem"
	"strings"
	"testing"
)

// FuzzParse begins with the files of testdata and with the content of their PEM,
// which it wraps up again, so that the fuzzer need not learn base64.
func FuzzParse(f *testing.F) {
	types := []string{"", "OPENSSH PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"}
	for _, name := range append(names(f, false), names(f, true)...) {
		data := golden(f, name)
		f.Add(uint8(0), data, secret)
		if block, _ := pem.Decode(data); block != nil {
			for i, typ := range types {
				if typ == block.Type {
					f.Add(uint8(i), block.Bytes, secret)
				}
			}
		}
	}
	f.Add(uint8(0), golden(f, "p256.pub"), "")
	f.Fuzz(func(t *testing.T, typ uint8, data []byte, passphrase string) {
		if i := int(typ) % len(types); i > 0 {
			data = pem.EncodeToMemory(&pem.Block{Type: types[i], Bytes: data})
		}
		checkParse(t, data, passphrase)
	})
}

// checkParse asserts what must be true of every input, with little work for each.
func checkParse(t *testing.T, data []byte, passphrase string) {
	t.Helper()
	a := &asker{passphrase: passphrase}
	k, err := parseUpTo(data, a, effort{rounds: 1, iterations: 100, scrypt: 100})
	if a.asked > 1 {
		t.Fatalf("asked %d times", a.asked)
	}
	if err != nil {
		if classes(err) != 1 || len(err.Error()) > 300 {
			t.Fatalf("%v, which is in %d classes", err, classes(err))
		}
		return
	}
	if k.Encrypted != (a.asked == 1) {
		t.Fatalf("encrypted %v, asked %d times", k.Encrypted, a.asked)
	}
	checkNumbers(t, k)
}

// checkNumbers asserts that a key is what the documentation of Key says.
func checkNumbers(t *testing.T, k *Key) {
	t.Helper()
	switch key := k.Private.(type) {
	case *ecdsa.PrivateKey:
		raw, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ecdsa.ParseRawPrivateKey(key.Curve, raw)
		if err != nil || !again.Equal(key) || !again.PublicKey.Equal(&key.PublicKey) {
			t.Fatalf("%v, %v", again, err)
		}
	case *rsa.PrivateKey:
		if err := key.Validate(); err != nil || len(key.Primes) != 2 || key.Primes[0].BitLen() != key.Primes[1].BitLen() {
			t.Fatalf("%d primes, %v", len(key.Primes), err)
		}
		if bits := key.N.BitLen(); bits < 1024 || bits > 8192 || key.N.Sign() < 0 || key.D.Sign() < 0 {
			t.Fatalf("modulus of %d bits", bits)
		}
	default:
		t.Fatalf("a key of type %T", k.Private)
	}
	if strings.ContainsAny(k.Comment, "\n\r\x00\x1b") {
		t.Fatalf("comment %q", k.Comment)
	}
}
