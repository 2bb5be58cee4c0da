package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

func newECDSA(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsaKeys are generated once for all tests: RSA 4096 takes a second or more.
var rsaKeys sync.Map

func newRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	if key, ok := rsaKeys.Load(bits); ok {
		return key.(*rsa.PrivateKey)
	}
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	rsaKeys.Store(bits, key)
	return key
}

func publicOf(private crypto.PrivateKey) crypto.PublicKey {
	return private.(crypto.Signer).Public()
}

func samePublic(a, b crypto.PublicKey) bool {
	return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b)
}

// importPrivate imports a key and checks that the file has the same public key.
func (f *fixture) importPrivate(t testing.TB, private crypto.PrivateKey, o tpmkey.WrapOptions) *tpmkey.Key {
	t.Helper()
	file, err := f.tpm.ImportPrivate(testContext(t), private, o)
	if err != nil {
		t.Fatalf("ImportPrivate: %v", err)
	}
	return f.imported(t, file, private)
}

// imported checks the result of an import and returns it ready for use.
func (f *fixture) imported(t testing.TB, file *keyfile.TPMKey, private crypto.PrivateKey) *tpmkey.Key {
	t.Helper()
	data, err := file.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if file, err = keyfile.Parse(data); err != nil {
		t.Fatal(err)
	}
	if file.Type != keyfile.Loadable {
		t.Errorf("an imported key is in a file of type %v", file.Type)
	}
	key := f.key(t, file)
	if !samePublic(key.Public(), publicOf(private)) {
		t.Fatal("the imported key has a different public key")
	}
	return key
}

func hashesOf(pub crypto.PublicKey) []crypto.Hash {
	k, ok := pub.(*ecdsa.PublicKey)
	switch {
	case !ok:
		return []crypto.Hash{crypto.SHA256, crypto.SHA512}
	case k.Curve == elliptic.P384():
		return []crypto.Hash{crypto.SHA384}
	case k.Curve == elliptic.P521():
		return []crypto.Hash{crypto.SHA512}
	default:
		return []crypto.Hash{crypto.SHA256}
	}
}

func TestImportPrivate(t *testing.T) {
	t.Parallel()
	f := start(t)
	for name, private := range map[string]crypto.PrivateKey{
		"P-256":    newECDSA(t, elliptic.P256()),
		"P-384":    newECDSA(t, elliptic.P384()),
		"P-521":    newECDSA(t, elliptic.P521()),
		"RSA 2048": newRSA(t, 2048),
		"RSA 3072": newRSA(t, 3072),
	} {
		for _, pin := range []string{"", "1234"} {
			t.Run(name+"/PIN="+pin, func(t *testing.T) {
				key := f.importPrivate(t, private, tpmkey.WrapOptions{Auth: []byte(pin)})
				for _, h := range hashesOf(key.Public()) {
					mustSign(t, key, pin, h)
				}
				if key.AuthRequired() != (pin != "") || key.File().EmptyAuth != (pin == "") {
					t.Errorf("AuthRequired() = %v, EmptyAuth = %v", key.AuthRequired(), key.File().EmptyAuth)
				}
			})
		}
	}
}

// TestImportedPublicArea checks the attributes: those of a new key, except for the
// ones that a key from outside cannot have.
func TestImportedPublicArea(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, private := range []crypto.PrivateKey{newECDSA(t, elliptic.P256()), newRSA(t, 2048)} {
		for _, pin := range []string{"", "1234"} {
			file := f.importPrivate(t, private, tpmkey.WrapOptions{Auth: []byte(pin)}).File()
			want := attrUserWithAuth | attrSign
			if _, ok := private.(*rsa.PrivateKey); ok {
				want |= attrDecrypt
			}
			if pin == "" {
				want |= attrNoDA
			}
			p := file.Public
			if p.Attributes != want || p.NameAlg != uint16(tpm2.TPMAlgSHA256) || p.Scheme != uint16(tpm2.TPMAlgNull) || len(p.AuthPolicy) != 0 {
				t.Errorf("%T, PIN %q: public area %+v, want attributes %#x", private, pin, p, want)
			}
			if file.Parent != keyfile.ParentOwner || file.RSAParent {
				t.Errorf("parent %#x, rsaParent %v", file.Parent, file.RSAParent)
			}
		}
	}
}

// TestManyKeysImported imports random keys, and keys whose scalar or coordinates
// begin with zero octets, which a TPM needs in full width.
func TestManyKeysImported(t *testing.T) {
	t.Parallel()
	const random = 200
	f := start(t)
	var keys []*ecdsa.PrivateKey
	for range random {
		keys = append(keys, newECDSA(t, elliptic.P256()))
	}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		keys = append(keys, withZeros(t, c)...)
	}
	for _, key := range keys {
		imported := f.importPrivate(t, key, tpmkey.WrapOptions{})
		if p := imported.File().Pubkey; len(p) != 2+18+2*(2+(key.Params().BitSize+7)/8) {
			t.Errorf("public area of %d octets: coordinates are not in full width", len(p))
		}
		mustSign(t, imported, "", hashesOf(&key.PublicKey)[0])
	}
}

// withZeros returns keys that begin with a zero octet: one in X, one in Y, and three
// in the scalar (one octet and many).
func withZeros(t *testing.T, c elliptic.Curve) (keys []*ecdsa.PrivateKey) {
	t.Helper()
	width := (c.Params().BitSize + 7) / 8
	zero := func(octets []byte) bool { return octets[0] == 0 && octets[1]&0x80 == 0 }
	for x, y, i := false, false, 0; (!x || !y) && i < 1<<16; i++ {
		key := newECDSA(t, c)
		point, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if !x && zero(point[1:]) {
			x, keys = true, append(keys, key)
		} else if !y && zero(point[1+width:]) {
			y, keys = true, append(keys, key)
		}
	}
	for _, zeros := range []int{1, 2, width - 1} {
		scalar := bytes.Repeat([]byte{0x5A}, width)
		clear(scalar[:zeros])
		key, err := ecdsa.ParseRawPrivateKey(c, scalar)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	if len(keys) != 5 {
		t.Fatalf("%d keys with leading zeros on %s", len(keys), c.Params().Name)
	}
	return keys
}

// TestImportedPINs tries the auth values that libraries get wrong. The TPM takes them
// here as they are wrapped.
func TestImportedPINs(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("100", "1000")
	long := func(zero func(digest [32]byte) bool) string {
		for i := 0; ; i++ {
			pin := strings.Repeat("long PIN ", 5) + strings.Repeat("!", i)
			if zero(sha256.Sum256([]byte(pin))) {
				return pin
			}
		}
	}
	for _, pin := range []string{
		"1", "a\x00b", "\x00b", "ends in zero\x00\x00", "pässwörd",
		strings.Repeat("x", 31), strings.Repeat("x", 32), strings.Repeat("x", 33), strings.Repeat("x", 1000),
		long(func(d [32]byte) bool { return bytes.IndexByte(d[:31], 0) >= 0 }),
		long(func(d [32]byte) bool { return d[31] == 0 }),
	} {
		key := f.importPrivate(t, newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{Auth: []byte(pin)})
		mustSign(t, key, pin, crypto.SHA256)
	}
	f.Close(t)
	if out := string(f.Tool("tpm2_getcap", "properties-variable")); !strings.Contains(out, "TPM2_PT_LOCKOUT_COUNTER: 0x0") {
		t.Errorf("right PINs cost tries:\n%s", out)
	}
}

// TestWrongPINOfImportedKey checks that a wrong PIN costs a try, and that a key
// without a PIN is exempt from the lockout that follows.
func TestWrongPINOfImportedKey(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("2", "1000")
	key := f.importPrivate(t, newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{Auth: []byte("right")})
	free := f.importPrivate(t, newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{})
	for _, want := range []int{1, 0} {
		_, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256)
		var wrong *tpmkey.AuthError
		if !errors.As(err, &wrong) || wrong.Left != want {
			t.Fatalf("Sign with a wrong PIN: %v, want an AuthError with %d tries left", err, want)
		}
	}
	var locked *tpmkey.LockoutError
	if _, err := key.Sign(testContext(t), []byte("right"), digest(crypto.SHA256), crypto.SHA256); !errors.As(err, &locked) {
		t.Errorf("Sign while locked: %v, want a LockoutError", err)
	}
	mustSign(t, free, "", crypto.SHA256)
}

// TestImportIsNotOnTheWire looks for the private key and the PIN in everything that
// is sent to the TPM, and checks the commands of an import.
func TestImportIsNotOnTheWire(t *testing.T) {
	t.Parallel()
	f := start(t)
	ecc, rsaKey := newECDSA(t, elliptic.P256()), newRSA(t, 2048)
	scalar, err := ecc.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("correct horse ", 4)
	sum := sha256.Sum256([]byte(long))
	for _, pin := range []string{"a PIN of mine", long} {
		got := f.commands(func() {
			for _, private := range []crypto.PrivateKey{ecc, rsaKey} {
				f.importPrivate(t, private, tpmkey.WrapOptions{Auth: []byte(pin)})
			}
		})
		if count(got, "Import") != 2 || count(got, "Load") != 2 {
			t.Fatalf("commands: %v", got)
		}
		for what, octets := range map[string][]byte{
			"the PIN": []byte(pin), "its digest": sum[:], "the scalar": scalar, "a half of it": scalar[16:],
			"p": rsaKey.Primes[0].Bytes(), "q": rsaKey.Primes[1].Bytes(), "d": rsaKey.D.Bytes(),
		} {
			if f.Sent(octets) {
				t.Errorf("%s was sent in clear", what)
			}
		}
		// The modulus is no secret, so the recorder must have seen it.
		if !f.Sent(rsaKey.N.Bytes()) {
			t.Error("the recorder did not see the public key either")
		}
	}
	f.waitIdle(t)
	// One turn, without a session and without needless commands.
	want := []string{"TestParms", "ReadClock", "GetCapability", "CreatePrimary", "ContextSave", "Import", "Load", "FlushContext", "FlushContext"}
	f.tpm = f.newTPM(t)
	if got := f.commands(func() { f.importPrivate(t, ecc, tpmkey.WrapOptions{Auth: []byte(long)}) }); !slices.Equal(got, want) {
		t.Errorf("commands of an import: %v, want %v", got, want)
	}
}

// wrapFor wraps a key for this TPM's owner hierarchy. It uses the TPM only to get its
// storage key.
func (f *fixture) wrapFor(t testing.TB, private crypto.PrivateKey, pin string) *keyfile.TPMKey {
	t.Helper()
	to, parent, err := f.tpm.StorageKey(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{Auth: []byte(pin), Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	return throughFile(t, file)
}

// throughFile writes a key file and reads it back.
func throughFile(t testing.TB, file *keyfile.TPMKey) *keyfile.TPMKey {
	t.Helper()
	data, err := file.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if file, err = keyfile.Parse(data); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestWrapAndImport(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, private := range []crypto.PrivateKey{newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P521()), newRSA(t, 2048)} {
		for _, pin := range []string{"", "1234"} {
			wrapped := f.wrapFor(t, private, pin)
			if wrapped.Type != keyfile.Importable || wrapped.Parent != keyfile.ParentOwner || wrapped.RSAParent || wrapped.EmptyAuth != (pin == "") {
				t.Errorf("wrapped: %+v", wrapped)
			}
			wrapped.Description = "the old laptop's"
			file, err := f.tpm.Import(testContext(t), wrapped)
			if err != nil {
				t.Fatal(err)
			}
			if file.Description != wrapped.Description || !bytes.Equal(file.Public.Name(), wrapped.Public.Name()) {
				t.Errorf("the import changed the description or the Name: %+v", file)
			}
			key := f.imported(t, file, private)
			mustSign(t, key, pin, hashesOf(key.Public())[0])
			// The agent can also load importable files as they are.
			mustSign(t, f.key(t, wrapped), pin, hashesOf(key.Public())[0])
		}
	}
}

// TestToolsImport checks that tpm2-tools import our wrapped keys and sign with them.
func TestToolsImport(t *testing.T) {
	t.Parallel()
	f := start(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(at(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("message", []byte(message))
	primary := f.primaryContext(t)
	for _, private := range []crypto.PrivateKey{newECDSA(t, elliptic.P256()), newRSA(t, 2048)} {
		for _, pin := range []string{"", "1234"} {
			f.tpm = f.newTPM(t)
			wrapped := f.wrapFor(t, private, pin)
			f.Close(t)
			put("pub", wrapped.Pubkey)
			put("duplicate", wrapped.Privkey)
			put("seed", wrapped.Secret)
			f.Tool("tpm2_import", "-Q", "-C", primary, "-u", at("pub"), "-i", at("duplicate"), "-s", at("seed"), "-r", at("priv"))
			f.Tool("tpm2_flushcontext", "-t")
			f.Tool("tpm2_load", "-Q", "-C", primary, "-u", at("pub"), "-r", at("priv"), "-c", at("key"), "-n", at("name"))
			f.Tool("tpm2_flushcontext", "-t")
			f.Tool("tpm2_sign", "-Q", "-c", at("key"), "-p", pin, "-g", "sha256", "-f", "plain", "-o", at("signature"), at("message"))
			f.Tool("tpm2_flushcontext", "-t")
			if !verifies(publicOf(private), crypto.SHA256, read(t, at("signature"))) {
				t.Errorf("%T, PIN %q: the signature of tpm2_sign does not verify", private, pin)
			}
			if !bytes.Equal(read(t, at("name")), wrapped.Public.Name()) {
				t.Errorf("%T: tpm2_load shows a different Name", private)
			}
			// The result of tpm2_import works in a key file.
			f.tpm = f.newTPM(t)
			mustSign(t, f.key(t, loadable(t, wrapped.Pubkey, read(t, at("priv")), keyfile.ParentOwner)), pin, crypto.SHA256)
			f.Close(t)
		}
	}
}

// TestImportOfDuplicates imports what TPM2_Duplicate exported from another TPM, by
// tpm2-tools, for a storage key of this one.
func TestImportOfDuplicates(t *testing.T) {
	t.Parallel()
	f := start(t)
	to, _, err := f.tpm.StorageKey(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close(t)
	old := start(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("new.pub"), to.Marshal(), 0o600); err != nil {
		t.Fatal(err)
	}
	primary := old.primaryContext(t)
	old.Tool("tpm2_startauthsession", "-S", at("session"))
	old.Tool("tpm2_policycommandcode", "-Q", "-S", at("session"), "-L", at("policy"), "TPM2_CC_Duplicate")
	old.Tool("tpm2_flushcontext", at("session"))
	old.Tool("tpm2_create", "-Q", "-C", primary, "-G", "ecc", "-u", at("pub"), "-r", at("priv"), "-c", at("key"), "-L", at("policy"),
		"-a", "sensitivedataorigin|userwithauth|sign", "-p", "1234")
	old.Tool("tpm2_flushcontext", "-t")
	old.Tool("tpm2_loadexternal", "-Q", "-C", "n", "-u", at("new.pub"), "-c", at("new"))
	old.Tool("tpm2_flushcontext", "-t")
	old.Tool("tpm2_startauthsession", "--policy-session", "-S", at("session"))
	old.Tool("tpm2_policycommandcode", "-Q", "-S", at("session"), "TPM2_CC_Duplicate")
	old.Tool("tpm2_duplicate", "-Q", "-C", at("new"), "-c", at("key"), "-G", "null", "-p", "session:"+at("session"), "-r", at("duplicate"), "-s", at("seed"))
	old.Tool("tpm2_flushcontext", at("session"))
	old.Tool("tpm2_flushcontext", "-t")

	public, err := keyfile.ParsePublic(read(t, at("pub")))
	if err != nil {
		t.Fatal(err)
	}
	f.tpm = f.newTPM(t)
	file, err := f.tpm.Import(testContext(t), &keyfile.TPMKey{
		Type: keyfile.Importable, Parent: keyfile.ParentOwner, Public: public,
		Pubkey: read(t, at("pub")), Privkey: read(t, at("duplicate")), Secret: read(t, at("seed")),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !samePublic(file.Public.Key, public.Key) {
		t.Error("the public key is different")
	}
	mustSign(t, f.key(t, throughFile(t, file)), "1234", crypto.SHA256)
}

// TestImportInAnotherTPM imports a key that was wrapped for a different TPM. The
// error must say so, whatever storage keys the TPM has.
func TestImportInAnotherTPM(t *testing.T) {
	t.Parallel()
	f := start(t)
	wrapped := f.wrapFor(t, newECDSA(t, elliptic.P256()), "1234")
	f.Close(t)
	rsaSRK := start(t)
	rsaSRK.persist(t, "-G", "rsa2048", "-a", storageAttributes)
	to, parent, err := rsaSRK.tpm.StorageKey(testContext(t), 0x81000001)
	if err != nil {
		t.Fatal(err)
	}
	rsaWrapped, err := tpmkey.Wrap(to, newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	rsaSRK.Close(t)
	for name, args := range map[string][]string{
		"nothing persistent": nil,
		"P-256 persistent":   {"-G", "ecc", "-a", storageAttributes},
		"RSA persistent":     {"-G", "rsa2048", "-a", storageAttributes},
	} {
		t.Run(name, func(t *testing.T) {
			other := start(t)
			if args != nil {
				other.persist(t, args...)
			}
			if file, err := other.tpm.Import(testContext(t), wrapped); !errors.Is(err, tpmkey.ErrWrongTPM) || file != nil || !strings.Contains(err.Error(), "wrapped for another") {
				t.Errorf("Import: %v, want ErrWrongTPM", err)
			}
			_, err := other.key(t, wrapped).Sign(testContext(t), []byte("1234"), digest(crypto.SHA256), crypto.SHA256)
			if !errors.Is(err, tpmkey.ErrWrongTPM) {
				t.Errorf("Sign: %v, want ErrWrongTPM", err)
			}
			want := tpmkey.ErrWrongTPM
			if args == nil {
				want = tpmkey.ErrNoParent
			}
			if _, err := other.tpm.Import(testContext(t), rsaWrapped); !errors.Is(err, want) {
				t.Errorf("Import of what is for an RSA storage key: %v, want %v", err, want)
			}
		})
	}
}

// TestImportParents imports keys under all kinds of parents.
func TestImportParents(t *testing.T) {
	t.Parallel()
	private := newECDSA(t, elliptic.P256())
	const srk = 0x81000001
	for name, tt := range map[string]struct {
		persist []string // what is at 0x81000001
		ask     uint32   // where the key is to go
		owner   string   // the owner hierarchy's password
		parent  uint32   // what the file names
	}{
		"owner":                        {nil, 0, "", keyfile.ParentOwner},
		"owner, by name":               {nil, keyfile.ParentOwner, "", keyfile.ParentOwner},
		"endorsement":                  {nil, keyfile.ParentEndorsement, "", keyfile.ParentEndorsement},
		"owner, which is persistent":   {[]string{"-G", "ecc", "-a", storageAttributes}, 0, "", keyfile.ParentOwner},
		"owner with a password":        {[]string{"-G", "ecc", "-a", storageAttributes}, 0, "secret", srk},
		"another at the SRK's place":   {[]string{"-G", "ecc"}, 0, "", keyfile.ParentOwner},
		"the other there":              {[]string{"-G", "ecc"}, srk, "", srk},
		"RSA at the SRK's place":       {[]string{"-G", "rsa2048", "-a", storageAttributes}, 0, "", keyfile.ParentOwner},
		"the RSA key there":            {[]string{"-G", "rsa2048", "-a", storageAttributes}, srk, "", srk},
		"an RSA key with a lockout":    {[]string{"-G", "rsa2048"}, srk, "", srk},
		"RSA, owner with a password":   {[]string{"-G", "rsa2048"}, 0, "secret", srk},
		"P-384, SHA-384, AES-256":      {[]string{"-G", "ecc384:aes256cfb", "-g", "sha384"}, srk, "", srk},
		"P-256 persistent, by handle":  {[]string{"-G", "ecc", "-a", storageAttributes}, srk, "", srk},
		"RSA 2048, SHA-384 as nameAlg": {[]string{"-G", "rsa2048", "-g", "sha384"}, srk, "", srk},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			if tt.persist != nil {
				f.persist(t, tt.persist...)
			}
			if tt.owner != "" {
				f.Tool("tpm2_changeauth", "-c", "owner", tt.owner)
			}
			key := f.importPrivate(t, private, tpmkey.WrapOptions{Auth: []byte("1234"), Parent: tt.ask})
			if p := key.File().Parent; p != tt.parent {
				t.Errorf("the file's parent is %#x, want %#x", p, tt.parent)
			}
			mustSign(t, key, "1234", crypto.SHA256)

			to, parent, err := f.tpm.StorageKey(testContext(t), tt.ask)
			if err != nil || parent != tt.parent {
				t.Fatalf("StorageKey: parent %#x, %v; want %#x", parent, err, tt.parent)
			}
			wrapped, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{Auth: []byte("1234"), Parent: parent})
			if err != nil {
				t.Fatal(err)
			}
			file, err := f.tpm.Import(testContext(t), throughFile(t, wrapped))
			if err != nil {
				t.Fatal(err)
			}
			if file.Parent != tt.parent || file.RSAParent {
				t.Errorf("after Import the parent is %#x, rsaParent %v; want %#x", file.Parent, file.RSAParent, tt.parent)
			}
			mustSign(t, f.imported(t, file, private), "1234", crypto.SHA256)
		})
	}
}

// TestImportRSAParent imports a key that was wrapped for the RSA primary of the owner
// hierarchy, which is created for it or is at 0x81000001.
func TestImportRSAParent(t *testing.T) {
	t.Parallel()
	f := start(t)
	private := newECDSA(t, elliptic.P256())
	pub := filepath.Join(t.TempDir(), "pub")
	f.Tool("tpm2_createprimary", "-Q", "-C", "o", "-c", filepath.Join(t.TempDir(), "p"), "-G", "rsa2048", "-a", storageAttributes)
	f.Tool("tpm2_readpublic", "-Q", "-c", "0x80000000", "-o", pub)
	f.Tool("tpm2_flushcontext", "-t")
	to, err := tpmkey.ParseStorageKey(read(t, pub))
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wrapped = throughFile(t, wrapped)
	if !wrapped.RSAParent {
		t.Error("the file does not say that its parent is RSA")
	}
	file, err := f.tpm.Import(testContext(t), wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if !file.RSAParent || file.Parent != keyfile.ParentOwner {
		t.Errorf("parent %#x, rsaParent %v", file.Parent, file.RSAParent)
	}
	mustSign(t, f.imported(t, file, private), "", crypto.SHA256)
	f.Close(t)

	f.persist(t, "-G", "rsa2048", "-a", storageAttributes)
	f.tpm = f.newTPM(t)
	var there *keyfile.TPMKey
	got := f.commands(func() { there, err = f.tpm.Import(testContext(t), wrapped) })
	if err != nil || slices.Contains(got, "CreatePrimary") {
		t.Fatalf("Import with the RSA key in its place: %v, by %v", err, got)
	}
	if there.RSAParent || there.Parent != 0x81000001 {
		t.Errorf("parent %#x, rsaParent %v; want the handle, which every tool understands", there.Parent, there.RSAParent)
	}
	mustSign(t, f.imported(t, there, private), "", crypto.SHA256)
}

// primaries creates primary keys of the owner with go-tpm, from the templates that
// next returns until it returns nil. If keep returns true, that key is kept at
// 0x81000001, and primaries ends.
func (f *fixture) primaries(t *testing.T, next func(i int) *tpm2.TPMTPublic, keep func(tpm2b []byte) bool) {
	t.Helper()
	conn, err := f.Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tpm := sender{testContext(t), conn}
	for i, kept := 0, false; !kept; i++ {
		template := next(i)
		if template == nil {
			return
		}
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(*template)}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		if kept = keep(tpm2.Marshal(rsp.OutPublic)); kept {
			object := tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}
			if _, err := (tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: object, PersistentHandle: 0x81000001}).Execute(tpm); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImportUnderPointWithZeros imports under a storage key whose coordinate begins
// with a zero octet, which is part of what the seed is derived from.
func TestImportUnderPointWithZeros(t *testing.T) {
	t.Parallel()
	f := start(t)
	found := false
	f.primaries(t, func(i int) *tpm2.TPMTPublic {
		if i == 1<<14 {
			return nil
		}
		template := tpm2.ECCSRKTemplate
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: []byte{byte(i >> 8), byte(i)}},
			Y: tpm2.TPM2BECCParameter{Buffer: []byte{1}},
		})
		return &template
	}, func(tpm2b []byte) bool {
		parsed, err := keyfile.ParsePublic(tpm2b)
		if err != nil {
			t.Fatal(err)
		}
		octets, err := parsed.Key.(*ecdsa.PublicKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		found = octets[1] == 0
		return found
	})
	if !found {
		t.Fatal("no such key")
	}
	key := f.importPrivate(t, newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{Auth: []byte("1234"), Parent: 0x81000001})
	mustSign(t, key, "1234", crypto.SHA256)
}

// TestImportUnderGoTPMsTemplate imports a key that was wrapped to the primary of
// go-tpm's template, whose public key looks like that of the owner's primary. If it
// is persistent, the new file must name the handle.
func TestImportUnderGoTPMsTemplate(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		keep   bool
		parent uint32
	}{"transient": {false, keyfile.ParentOwner}, "persistent": {true, 0x81000001}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			var public []byte
			f.primaries(t, func(i int) *tpm2.TPMTPublic {
				if i > 0 {
					return nil
				}
				return &tpm2.ECCSRKTemplate
			}, func(tpm2b []byte) bool {
				public = tpm2b
				return tt.keep
			})
			to, err := tpmkey.ParseStorageKey(public)
			if err != nil {
				t.Fatal(err)
			}
			private := newECDSA(t, elliptic.P256())
			wrapped, err := tpmkey.Wrap(to, private, tpmkey.WrapOptions{Auth: []byte("1234")})
			if err != nil {
				t.Fatal(err)
			}
			file, err := f.tpm.Import(testContext(t), throughFile(t, wrapped))
			if err != nil {
				t.Fatal(err)
			}
			if file.Parent != tt.parent {
				t.Errorf("the file's parent is %#x, want %#x", file.Parent, tt.parent)
			}
			mustSign(t, f.imported(t, file, private), "1234", crypto.SHA256)
		})
	}
}

// TestImportWithoutTheAlgorithm has a TPM without the curve. The error must say what
// the TPM has, and no key may be sent to it.
func TestImportWithoutTheAlgorithm(t *testing.T) {
	t.Parallel()
	f := start(t)
	wrapped := f.wrapFor(t, newECDSA(t, elliptic.P521()), "")
	for name, try := range map[string]func() error{
		"ImportPrivate": func() error {
			_, err := f.tpm.ImportPrivate(testContext(t), newECDSA(t, elliptic.P521()), tpmkey.WrapOptions{})
			return err
		},
		"Import": func() error {
			_, err := f.tpm.Import(testContext(t), wrapped)
			return err
		},
	} {
		f.Inject(tpmtest.Fault{Command: "TestParms", Effect: tpmtest.Code(uint32(tpm2.TPMRCCurve) | 0x1C0)})
		var err error
		got := f.commands(func() { err = try() })
		var unsupported *tpmkey.UnsupportedError
		if !errors.As(err, &unsupported) || unsupported.What != "ECDSA P-521" || !slices.Contains(unsupported.Supported, "ECDSA P-256") {
			t.Errorf("%s: %v, want an UnsupportedError that says what there is", name, err)
		}
		if slices.Contains(got, "Import") {
			t.Errorf("%s: commands %v", name, got)
		}
	}
}

// TestImportRefused checks what is refused before anything is sent to the TPM.
func TestImportRefused(t *testing.T) {
	t.Parallel()
	f := start(t)
	loadable := f.create(t, tpmkey.ECDSAP256, "").File()
	null := *f.wrapFor(t, newECDSA(t, elliptic.P256()), "")
	null.Parent = keyfile.ParentNull
	var unsupported *tpmkey.UnsupportedError
	got := f.commands(func() {
		for name, file := range map[string]*keyfile.TPMKey{"a loadable key": loadable, "parent in the null hierarchy": &null} {
			if _, err := f.tpm.Import(testContext(t), file); !errors.As(err, &unsupported) {
				t.Errorf("Import of %s: %v, want an UnsupportedError", name, err)
			}
		}
		for _, parent := range []uint32{keyfile.ParentNull, 0x80000000, 1} {
			if _, err := f.tpm.ImportPrivate(testContext(t), newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{Parent: parent}); !errors.As(err, &unsupported) {
				t.Errorf("parent %#x: %v, want an UnsupportedError", parent, err)
			}
			if _, _, err := f.tpm.StorageKey(testContext(t), parent); !errors.As(err, &unsupported) {
				t.Errorf("StorageKey %#x: %v, want an UnsupportedError", parent, err)
			}
		}
		inconsistent := newECDSA(t, elliptic.P256())
		inconsistent.PublicKey = newECDSA(t, elliptic.P256()).PublicKey
		if _, err := f.tpm.ImportPrivate(testContext(t), inconsistent, tpmkey.WrapOptions{}); err == nil {
			t.Error("an inconsistent key was imported")
		}
	})
	if len(got) != 0 {
		t.Errorf("the TPM was asked: %v", got)
	}
	if _, err := f.tpm.ImportPrivate(testContext(t), newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{Parent: 0x81000001}); !errors.Is(err, tpmkey.ErrNoParent) {
		t.Errorf("under an empty handle: %v, want ErrNoParent", err)
	}
}

// TestDamagedImport damages each part of an importable file. The TPM must notice.
func TestDamagedImport(t *testing.T) {
	t.Parallel()
	f := start(t)
	whole := f.wrapFor(t, newECDSA(t, elliptic.P256()), "1234")
	for name, part := range map[string]func(*keyfile.TPMKey) *[]byte{
		"duplicate": func(k *keyfile.TPMKey) *[]byte { return &k.Privkey },
		"seed":      func(k *keyfile.TPMKey) *[]byte { return &k.Secret },
	} {
		for _, at := range []int{2, 5, 40, -1} {
			damaged := *whole
			octets := bytes.Clone(*part(&damaged))
			octets[(at+len(octets))%len(octets)] ^= 0x40
			*part(&damaged) = octets
			if file, err := f.tpm.Import(testContext(t), &damaged); err == nil || file != nil {
				t.Errorf("octet %d of the %s was changed, and it was imported", at, name)
			} else if !strings.Contains(err.Error(), "TPM2_Import") {
				t.Errorf("octet %d of the %s: %v does not say what failed", at, name, err)
			}
		}
	}
	if _, err := f.tpm.Import(testContext(t), whole); err != nil {
		t.Error(err)
	}
}

// TestImportEndsWithTheClient cancels the context during an import, which must end
// between two commands.
func TestImportEndsWithTheClient(t *testing.T) {
	t.Parallel()
	private := newECDSA(t, elliptic.P256())
	for _, command := range []string{"TestParms", "CreatePrimary", "ContextSave", "Import"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			ctx, hangUp := context.WithCancel(testContext(t))
			f.Inject(tpmtest.Fault{Command: command, Effect: func(ctx context.Context, c tpmtest.Conn, cmd []byte) ([]byte, error) {
				hangUp()
				return c.Send(ctx, cmd)
			}})
			got := f.commands(func() {
				if file, err := f.tpm.ImportPrivate(ctx, private, tpmkey.WrapOptions{}); !errors.Is(err, context.Canceled) || file != nil {
					t.Errorf("ImportPrivate: %v, want context.Canceled", err)
				}
			})
			if slices.Contains(got, "Load") {
				t.Errorf("the key was loaded after the caller had gone: %v", got)
			}
			f.Disarm()
			f.importPrivate(t, private, tpmkey.WrapOptions{})
		})
	}
}

// TestImportBroken breaks each command of an import in each way. That import may
// fail; the next one must be correct. Nothing may stay in the TPM, which has no
// resource manager.
func TestImportBroken(t *testing.T) {
	t.Parallel()
	private := newECDSA(t, elliptic.P256())
	f := start(t)
	wrapped := f.wrapFor(t, private, "1234")
	effects := map[string]func() tpmtest.Effect{
		"dropped before": tpmtest.DropBefore,
		"dropped after":  tpmtest.DropAfter,
		"refused":        func() tpmtest.Effect { return tpmtest.Code(uint32(tpm2.TPMRCFailure)) },
		"not now":        func() tpmtest.Effect { return tpmtest.Code(uint32(tpm2.TPMRCRetry)) },
		"short answer":   func() tpmtest.Effect { return tpmtest.Short(14) },
		"garbage": func() tpmtest.Effect {
			return tpmtest.Change(func(a []byte) []byte {
				for i := 10; i < len(a); i++ {
					a[i] = 0xFF
				}
				return a
			})
		},
	}
	for _, command := range []string{"TestParms", "ReadClock", "GetCapability", "CreatePrimary", "ContextSave", "Import", "Load", "FlushContext"} {
		for name, effect := range effects {
			if command == "FlushContext" && name == "refused" {
				continue // a TPM that refuses that keeps what it has
			}
			for kind, try := range map[string]func() (*keyfile.TPMKey, error){
				"Import": func() (*keyfile.TPMKey, error) { return f.tpm.Import(testContext(t), wrapped) },
				"ImportPrivate": func() (*keyfile.TPMKey, error) {
					return f.tpm.ImportPrivate(testContext(t), private, tpmkey.WrapOptions{Auth: []byte("1234")})
				},
			} {
				t.Run(kind+"/"+command+" "+name, func(t *testing.T) {
					f.Close(t)
					f.tpm = f.newTPM(t)
					f.Inject(tpmtest.Fault{Command: command, Effect: effect()})
					file, err := try()
					if n := f.Disarm(); n != 0 {
						t.Fatalf("%s was not sent", command)
					}
					switch {
					case err == nil && (name == "dropped before" || name == "dropped after" || name == "refused"):
						t.Error("nothing was noticed")
					case err == nil:
						mustSign(t, f.imported(t, file, private), "1234", crypto.SHA256)
					case !strings.Contains(err.Error(), "TPM2_"+command):
						t.Errorf("%v does not say which command failed", err)
					}
					if file, err = try(); err != nil {
						t.Fatalf("the next time: %v", err)
					}
					mustSign(t, f.imported(t, file, private), "1234", crypto.SHA256)
					f.waitIdleNow(t)
				})
			}
		}
	}
}

// waitIdleNow closes the TPM and checks that nothing is left in it.
func (f *fixture) waitIdleNow(t *testing.T) {
	t.Helper()
	f.Close(t)
	if left, err := f.Leftovers(); err != nil || len(left) > 0 {
		t.Fatalf("left in the TPM: %v %v", left, err)
	}
	f.tpm = f.newTPM(t)
}

// TestDifferentObjectLoaded has a TPM that loads a different object than it was sent. The
// Name must reveal it.
func TestDifferentObjectLoaded(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.Inject(tpmtest.Fault{Command: "Load", Effect: tpmtest.Change(func(answer []byte) []byte {
		answer[len(answer)-10] ^= 1 // in the Name; the last octets are the empty authorization
		return answer
	})})
	if file, err := f.tpm.ImportPrivate(testContext(t), newECDSA(t, elliptic.P256()), tpmkey.WrapOptions{}); err == nil || file != nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("ImportPrivate: %v, want an error about another key", err)
	}
	if n := f.Disarm(); n != 0 {
		t.Fatal("Load was not sent")
	}
}

// TestImportUnderWhatIsRemembered checks that a key is encrypted only to the storage
// key that the caller remembers.
func TestImportUnderWhatIsRemembered(t *testing.T) {
	t.Parallel()
	f := start(t)
	private := newECDSA(t, elliptic.P256())
	to, _, err := f.tpm.StorageKey(testContext(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	o := tpmkey.WrapOptions{ParentName: to.Name()}
	key := f.importPrivate(t, private, o)
	mustSign(t, key, "", crypto.SHA256)
	if !bytes.Equal(key.ParentName(), to.Name()) {
		t.Errorf("the storage key's Name is %x, and the key is under %x", to.Name(), key.ParentName())
	}
	if _, err := tpmkey.Wrap(to, private, o); err != nil {
		t.Error(err)
	}
	f.Close(t)
	f.Replace()
	f.tpm = f.newTPM(t)
	var changed *tpmkey.ParentChangedError
	got := f.commands(func() {
		if _, err := f.tpm.ImportPrivate(testContext(t), private, o); !errors.As(err, &changed) || !bytes.Equal(changed.Want, to.Name()) || changed.Have.At != "owner" {
			t.Errorf("ImportPrivate into another TPM: %v, want a ParentChangedError", err)
		}
	})
	if slices.Contains(got, "Import") {
		t.Errorf("commands: %v", got)
	}
	if _, err := tpmkey.Wrap(bareKey(t), private, o); !errors.As(err, &changed) {
		t.Errorf("Wrap to another storage key: %v, want a ParentChangedError", err)
	}
}
