//lint:file-ignore SA1019 keys are bent here by hand, and DSA is shown to be refused.

package tpmkey_test

import (
	"bytes"
	"crypto"
	"crypto/dsa"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// bareKey returns a P-256 storage key that is in no TPM.
func bareKey(t testing.TB) *tpmkey.StorageKey {
	t.Helper()
	key, err := tpmkey.StorageKeyOf(&newECDSA(t, elliptic.P256()).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// unequalRSA returns a consistent RSA 2048 key whose primes differ in size.
func unequalRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	for {
		p, err := rand.Prime(rand.Reader, 1000)
		if err != nil {
			t.Fatal(err)
		}
		q, err := rand.Prime(rand.Reader, 1048)
		if err != nil {
			t.Fatal(err)
		}
		one := big.NewInt(1)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(big.NewInt(65537), phi)
		if d == nil {
			continue
		}
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}, D: d, Primes: []*big.Int{p, q}}
		if key.N.BitLen() == 2048 {
			return key
		}
	}
}

// exponent3 returns an RSA 2048 key with the exponent 3.
func exponent3(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	for {
		var primes [2]*big.Int
		for i := range primes {
			p, err := rand.Prime(rand.Reader, 1024)
			if err != nil {
				t.Fatal(err)
			}
			primes[i] = p
		}
		one := big.NewInt(1)
		phi := new(big.Int).Mul(new(big.Int).Sub(primes[0], one), new(big.Int).Sub(primes[1], one))
		if d := new(big.Int).ModInverse(big.NewInt(3), phi); d != nil {
			n := new(big.Int).Mul(primes[0], primes[1])
			return &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 3}, D: d, Primes: primes[:]}
		}
	}
}

// TestWrapUnsupported checks that keys that no TPM takes are refused by name.
func TestWrapUnsupported(t *testing.T) {
	t.Parallel()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	three := *newRSA(t, 2048)
	three.Primes = append(append([]*big.Int(nil), three.Primes...), big.NewInt(3))
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := rsa.GenerateKey(rand.Reader, 2056)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		private crypto.PrivateKey
		text    string
	}{
		"Ed25519":        {ed, "ed25519"},
		"DSA":            {&dsa.PrivateKey{}, "dsa"},
		"a public key":   {&newECDSA(t, elliptic.P256()).PublicKey, "PublicKey"},
		"nothing":        {nil, "nil"},
		"P-224":          {newECDSA(t, elliptic.P224()), "P-224"},
		"no curve":       {&ecdsa.PrivateKey{}, "without a curve"},
		"RSA 1024":       {short, "RSA 1024"},
		"RSA 2056":       {odd, "RSA 2056"},
		"three primes":   {&three, "3 primes"},
		"exponent 3":     {exponent3(t), "exponent 3"},
		"unequal primes": {unequalRSA(t), "primes of "},
	} {
		t.Run(name, func(t *testing.T) {
			var unsupported *tpmkey.UnsupportedError
			file, err := tpmkey.Wrap(bareKey(t), tt.private, tpmkey.WrapOptions{})
			if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), tt.text) || file != nil {
				t.Errorf("Wrap: %v, want an UnsupportedError about %q", err, tt.text)
			}
		})
	}
}

// TestWrapInconsistent checks that keys whose numbers contradict each other are
// refused.
func TestWrapInconsistent(t *testing.T) {
	t.Parallel()
	ecc := func(change func(*ecdsa.PrivateKey)) crypto.PrivateKey {
		key := *newECDSA(t, elliptic.P256())
		change(&key)
		return &key
	}
	rsaKey := func(change func(*rsa.PrivateKey)) crypto.PrivateKey {
		key := *newRSA(t, 2048)
		key.Primes = append([]*big.Int(nil), key.Primes...)
		key.Precomputed = rsa.PrecomputedValues{}
		change(&key)
		return &key
	}
	plus := func(n *big.Int, i int64) *big.Int { return new(big.Int).Add(n, big.NewInt(i)) }
	for name, private := range map[string]crypto.PrivateKey{
		"another's point":   ecc(func(k *ecdsa.PrivateKey) { k.PublicKey = newECDSA(t, elliptic.P256()).PublicKey }),
		"not on the curve":  ecc(func(k *ecdsa.PrivateKey) { k.X = plus(k.X, 1) }),
		"no point":          ecc(func(k *ecdsa.PrivateKey) { k.X = nil }),
		"negative point":    ecc(func(k *ecdsa.PrivateKey) { k.Y = new(big.Int).Neg(k.Y) }),
		"point at infinity": ecc(func(k *ecdsa.PrivateKey) { k.X, k.Y = new(big.Int), new(big.Int) }),
		"no scalar":         ecc(func(k *ecdsa.PrivateKey) { k.D = nil }),
		"scalar 0":          ecc(func(k *ecdsa.PrivateKey) { k.D = new(big.Int) }),
		"scalar the order":  ecc(func(k *ecdsa.PrivateKey) { k.D = k.Params().N }),
		"scalar + order":    ecc(func(k *ecdsa.PrivateKey) { k.D = new(big.Int).Add(k.D, k.Params().N) }),
		"negative scalar":   ecc(func(k *ecdsa.PrivateKey) { k.D = new(big.Int).Neg(k.D) }),
		"huge scalar":       ecc(func(k *ecdsa.PrivateKey) { k.D = new(big.Int).Lsh(k.D, 4096) }),
		"no modulus":        rsaKey(func(k *rsa.PrivateKey) { k.N = nil }),
		"another's modulus": rsaKey(func(k *rsa.PrivateKey) { k.N = plus(k.N, 2) }),
		"no d":              rsaKey(func(k *rsa.PrivateKey) { k.D = nil }),
		"another's d":       rsaKey(func(k *rsa.PrivateKey) { k.D = plus(k.D, 2) }),
		"no primes":         rsaKey(func(k *rsa.PrivateKey) { k.Primes = nil }),
		"a prime missing":   rsaKey(func(k *rsa.PrivateKey) { k.Primes = k.Primes[:1] }),
		"a nil prime":       rsaKey(func(k *rsa.PrivateKey) { k.Primes[1] = nil }),
		"another prime":     rsaKey(func(k *rsa.PrivateKey) { k.Primes[0] = plus(k.Primes[0], 2) }),
		"prime 0":           rsaKey(func(k *rsa.PrivateKey) { k.Primes[0] = new(big.Int) }),
		"negative modulus":  rsaKey(func(k *rsa.PrivateKey) { k.N = new(big.Int).Neg(k.N) }),
		"negative primes": rsaKey(func(k *rsa.PrivateKey) {
			k.Primes[0], k.Primes[1] = new(big.Int).Neg(k.Primes[0]), new(big.Int).Neg(k.Primes[1])
		}),
		"1 and N": rsaKey(func(k *rsa.PrivateKey) { k.Primes[0], k.Primes[1] = big.NewInt(1), k.N }),
	} {
		t.Run(name, func(t *testing.T) {
			if file, err := tpmkey.Wrap(bareKey(t), private, tpmkey.WrapOptions{}); err == nil || file != nil {
				t.Error("it was wrapped")
			}
		})
	}
}

// TestWrapLeavesTheKey checks that Wrap does not change the caller's key, and that
// two results differ.
func TestWrapLeavesTheKey(t *testing.T) {
	t.Parallel()
	to := bareKey(t)
	for _, private := range []crypto.PrivateKey{newECDSA(t, elliptic.P384()), newRSA(t, 2048)} {
		before, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		pin := []byte("1234")
		a, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{Auth: pin})
		if err != nil {
			t.Fatal(err)
		}
		b, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{Auth: pin})
		if err != nil {
			t.Fatal(err)
		}
		after, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil || !bytes.Equal(before, after) || string(pin) != "1234" {
			t.Errorf("%T or the PIN was changed (%v)", private, err)
		}
		if bytes.Equal(a.Privkey, b.Privkey) || bytes.Equal(a.Secret, b.Secret) || !bytes.Equal(a.Pubkey, b.Pubkey) {
			t.Errorf("%T: wrapped twice in the same way", private)
		}
		if !samePublic(a.Public.Key, publicOf(private)) {
			t.Errorf("%T: the public key is different", private)
		}
	}
}

// TestWrapRSA4096 checks that Wrap accepts RSA 4096, although not every TPM takes it.
func TestWrapRSA4096(t *testing.T) {
	t.Parallel()
	file, err := tpmkey.Wrap(bareKey(t), newRSA(t, 4096), tpmkey.WrapOptions{Parent: 0x81000001})
	if err != nil {
		t.Fatal(err)
	}
	if file = throughFile(t, file); file.Public.KeyBits != 4096 || file.Parent != 0x81000001 {
		t.Errorf("%+v", file)
	}
}

func TestStorageKeyOfThisTPM(t *testing.T) {
	t.Parallel()
	f := start(t)
	key, parent, err := f.tpm.StorageKey(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close(t)
	dir := t.TempDir()
	f.Tool("tpm2_createprimary", "-Q", "-C", "o", "-c", filepath.Join(dir, "p"), "-G", "ecc", "-a", storageAttributes)
	f.Tool("tpm2_readpublic", "-Q", "-c", "0x80000000", "-o", filepath.Join(dir, "tpm2b"), "-n", filepath.Join(dir, "name"))
	f.Tool("tpm2_readpublic", "-Q", "-c", "0x80000000", "-o", filepath.Join(dir, "pem"), "-f", "pem")
	f.Tool("tpm2_flushcontext", "-t")
	if !bytes.Equal(key.Marshal(), read(t, filepath.Join(dir, "tpm2b"))) || !bytes.Equal(key.Name(), read(t, filepath.Join(dir, "name"))) {
		t.Error("not the key that tpm2-tools shows")
	}
	if parent != keyfile.ParentOwner || key.RSA() {
		t.Errorf("parent %#x, RSA %v", parent, key.RSA())
	}
	block, _ := pem.Decode(read(t, filepath.Join(dir, "pem")))
	if block == nil {
		t.Fatal("no PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := tpmkey.StorageKeyOf(pub)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bare.Marshal(), key.Marshal()) || !samePublic(bare.Public(), key.Public()) {
		t.Error("the key of the PEM file is different")
	}
}

func TestStorageKeyOf(t *testing.T) {
	t.Parallel()
	rsaKey, err := tpmkey.StorageKeyOf(&newRSA(t, 2048).PublicKey)
	if err != nil || !rsaKey.RSA() {
		t.Fatalf("RSA 2048: %v", err)
	}
	// Its other fields must be those of the template.
	if want := "\x00\x01\x00\x0b\x00\x03\x04\x72\x00\x00\x00\x06\x00\x80\x00\x43\x00\x10\x08\x00\x00\x00\x00\x00\x01\x00"; !strings.HasPrefix(string(rsaKey.Marshal()[2:]), want) {
		t.Errorf("public area %x", rsaKey.Marshal())
	}
	again, err := tpmkey.ParseStorageKey(rsaKey.Marshal())
	if err != nil || !bytes.Equal(again.Name(), rsaKey.Name()) {
		t.Errorf("read again: %v", err)
	}
	file, err := tpmkey.Wrap(rsaKey, newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{})
	if err != nil || !file.RSAParent || file.Parent != keyfile.ParentOwner {
		t.Errorf("wrapped to RSA: %+v, %v", file, err)
	}
	offCurve := *newECDSA(t, elliptic.P256())
	offCurve.X = new(big.Int).Add(offCurve.X, big.NewInt(1))
	for name, pub := range map[string]crypto.PublicKey{
		"P-384":            &newECDSA(t, elliptic.P384()).PublicKey,
		"not on the curve": &offCurve.PublicKey,
		"empty":            &ecdsa.PublicKey{Curve: elliptic.P256()},
		"RSA 3072":         &newRSA(t, 3072).PublicKey,
		"exponent 3":       &rsa.PublicKey{N: newRSA(t, 2048).N, E: 3},
		"empty RSA":        &rsa.PublicKey{},
		"even modulus":     &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537},
		"Ed25519":          ed25519.PublicKey{},
		"nothing":          nil,
	} {
		if key, err := tpmkey.StorageKeyOf(pub); !errors.Is(err, tpmkey.ErrNotStorageKey) || key != nil {
			t.Errorf("%s: %v, want ErrNotStorageKey", name, err)
		}
	}
}

// storagePublic returns H-2 with a point, for tests that change it.
func storagePublic(t testing.TB) tpm2.TPMTPublic {
	t.Helper()
	outer, err := tpm2.Unmarshal[tpm2.TPM2BPublic](bareKey(t).Marshal())
	if err != nil {
		t.Fatal(err)
	}
	public, err := outer.Contents()
	if err != nil {
		t.Fatal(err)
	}
	return *public
}

// withSymmetric returns H-2 with a different symmetric algorithm.
func withSymmetric(t testing.TB, alg tpm2.TPMAlgID, bits tpm2.TPMKeyBits, mode tpm2.TPMAlgID) tpm2.TPMTPublic {
	p := storagePublic(t)
	sym := tpm2.TPMTSymDefObject{Algorithm: alg}
	if alg != tpm2.TPMAlgNull {
		sym.KeyBits, sym.Mode = tpm2.NewTPMUSymKeyBits(alg, bits), tpm2.NewTPMUSymMode(alg, mode)
	}
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: sym, CurveID: tpm2.TPMECCNistP256})
	return p
}

// camellia returns H-2 with Camellia, which go-tpm does not know, in place of AES.
func camellia(t testing.TB) []byte {
	tpm2b := bareKey(t).Marshal()
	binary.BigEndian.PutUint16(tpm2b[12:], uint16(tpm2.TPMAlgCamellia))
	return tpm2b
}

func TestParseStorageKeyRefuses(t *testing.T) {
	t.Parallel()
	with := func(change func(*tpm2.TPMTPublic)) []byte {
		p := storagePublic(t)
		change(&p)
		return tpm2.Marshal(tpm2.New2B(p))
	}
	of := func(p tpm2.TPMTPublic) []byte { return tpm2.Marshal(tpm2.New2B(p)) }
	whole := bareKey(t).Marshal()
	ssh, err := os.ReadFile("import_test.go")
	if err != nil {
		t.Fatal(err)
	}
	shortRSA := tpm2.TPMTPublic{}
	{
		outer, err := tpm2.Unmarshal[tpm2.TPM2BPublic](bareRSA(t, 1024))
		if err != nil {
			t.Fatal(err)
		}
		p, err := outer.Contents()
		if err != nil {
			t.Fatal(err)
		}
		shortRSA = *p
	}
	for name, tt := range map[string]struct {
		tpm2b []byte
		text  string
	}{
		"nothing":         {nil, "too short"},
		"a text":          {ssh[:100], "size"},
		"cut":             {whole[:len(whole)-1], "size"},
		"doubled":         {append(bytes.Clone(whole), whole...), "size"},
		"without size":    {whole[2:], "size"},
		"a signing key":   {with(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt, p.ObjectAttributes.SignEncrypt = false, true }), "signatures"},
		"does both":       {with(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = true }), "signatures"},
		"not restricted":  {with(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false }), "restricted"},
		"no symmetric":    {of(withSymmetric(t, tpm2.TPMAlgNull, 0, 0)), "no symmetric"},
		"Camellia":        {camellia(t), "not AES"},
		"CTR":             {of(withSymmetric(t, tpm2.TPMAlgAES, 128, tpm2.TPMAlgCTR)), "mode"},
		"AES of 64 bits":  {of(withSymmetric(t, tpm2.TPMAlgAES, 64, tpm2.TPMAlgCFB)), "64 bits"},
		"SHA-3":           {with(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA3256 }), "hash"},
		"RSA 1024":        {of(shortRSA), "too short"},
		"the empty point": {with(func(p *tpm2.TPMTPublic) { p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}) }), "template"},
	} {
		key, err := tpmkey.ParseStorageKey(tt.tpm2b)
		if !errors.Is(err, tpmkey.ErrNotStorageKey) || key != nil || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "key file") {
			t.Errorf("%s: %v, want ErrNotStorageKey about %q", name, err, tt.text)
		}
	}
}

// bareRSA returns H-1 with a different size.
func bareRSA(t testing.TB, bits int) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	p := tpm2.RSASRKTemplate
	parms, err := p.Parameters.RSADetail()
	if err != nil {
		t.Fatal(err)
	}
	other := *parms
	other.KeyBits = tpm2.TPMKeyBits(bits)
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &other)
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	return tpm2.Marshal(tpm2.New2B(p))
}

// TestStorageKeyWithoutAName wraps to storage keys that a key file cannot name by
// their hierarchy.
func TestStorageKeyWithoutAName(t *testing.T) {
	t.Parallel()
	private := newECDSA(t, elliptic.P256())
	for name, tpm2b := range map[string][]byte{
		"AES-256":  tpm2.Marshal(tpm2.New2B(withSymmetric(t, tpm2.TPMAlgAES, 256, tpm2.TPMAlgCFB))),
		"RSA 3072": bareRSA(t, 3072),
	} {
		to, err := tpmkey.ParseStorageKey(tpm2b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var unsupported *tpmkey.UnsupportedError
		if _, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{}); !errors.As(err, &unsupported) {
			t.Errorf("%s as the owner's: %v, want an UnsupportedError", name, err)
		}
		if file, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{Parent: 0x81000001}); err != nil || file.RSAParent {
			t.Errorf("%s by its handle: %v", name, err)
		}
	}
}

// FuzzParseStorageKey checks that everything that is accepted can be wrapped to and
// stays the same key.
func FuzzParseStorageKey(f *testing.F) {
	private := newECDSA(f, elliptic.P256())
	f.Add(bareKey(f).Marshal())
	f.Add(bareRSA(f, 2048))
	f.Add(bareRSA(f, 1024))
	f.Add(tpm2.Marshal(tpm2.New2B(withSymmetric(f, tpm2.TPMAlgAES, 256, tpm2.TPMAlgCFB))))
	f.Add(camellia(f))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----"))
	f.Fuzz(func(t *testing.T, tpm2b []byte) {
		key, err := tpmkey.ParseStorageKey(tpm2b)
		if err != nil {
			if !errors.Is(err, tpmkey.ErrNotStorageKey) {
				t.Fatal(err)
			}
			return
		}
		parsed, err := keyfile.ParsePublic(tpm2b)
		if err != nil || !bytes.Equal(key.Marshal(), tpm2b) || !bytes.Equal(key.Name(), parsed.Name()) || !samePublic(key.Public(), parsed.Key) {
			t.Fatalf("taken for something else: %v", err)
		}
		file, err := tpmkey.Wrap(key, private, tpmkey.WrapOptions{Auth: []byte("1234"), Parent: 0x81000001})
		if err != nil {
			t.Fatalf("it was taken, and cannot be wrapped to: %v", err)
		}
		throughFile(t, file)
	})
}

// FuzzWrap wraps arbitrary numbers, as parsers of private keys may return them. The
// result must be an error or a file with the same public key.
func FuzzWrap(f *testing.F) {
	to := bareKey(f)
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P521()} {
		key := newECDSA(f, c)
		f.Add(uint8(0), key.X.Bytes(), key.Y.Bytes(), key.D.Bytes(), []byte{})
	}
	key := newRSA(f, 2048)
	f.Add(uint8(3), key.N.Bytes(), key.D.Bytes(), key.Primes[0].Bytes(), key.Primes[1].Bytes())
	f.Fuzz(func(t *testing.T, kind uint8, a, b, c, d []byte) {
		if len(a)+len(b)+len(c)+len(d) > 4096 {
			return // a parser's limits
		}
		n := func(octets []byte) *big.Int { return new(big.Int).SetBytes(octets) }
		var private crypto.PrivateKey
		if kind%4 == 3 {
			private = &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n(a), E: 65537}, D: n(b), Primes: []*big.Int{n(c), n(d)}}
		} else {
			curve := []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}[kind%4]
			private = &ecdsa.PrivateKey{PublicKey: ecdsa.PublicKey{Curve: curve, X: n(a), Y: n(b)}, D: n(c)}
		}
		file, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{})
		if err != nil {
			return
		}
		if !samePublic(throughFile(t, file).Public.Key, publicOf(private)) {
			t.Fatal("the public key is different")
		}
	})
}
