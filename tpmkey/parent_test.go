package tpmkey_test

import (
	"context"
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// The attributes of the TCG's storage keys, as tpm2-tools spells them.
const storageAttributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"

// persist creates a storage key by tpm2_createprimary with args and keeps it at
// 0x81000001.
func (f *fixture) persist(t *testing.T, args ...string) {
	t.Helper()
	context := filepath.Join(t.TempDir(), "srk")
	f.Tool("tpm2_createprimary", append([]string{"-Q", "-C", "o", "-c", context}, args...)...)
	f.Tool("tpm2_flushcontext", "-t")
	f.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", context, "0x81000001")
	f.Tool("tpm2_flushcontext", "-t")
}

// foreign creates a P-256 signing key with tpm2-tools under a parent context. It
// returns it as a key file that names the given parent.
func (f *fixture) foreign(t *testing.T, parentContext string, parent uint32, args ...string) *keyfile.TPMKey {
	t.Helper()
	dir := t.TempDir()
	pub, priv := filepath.Join(dir, "pub"), filepath.Join(dir, "priv")
	args = append([]string{"-Q", "-C", parentContext, "-u", pub, "-r", priv}, args...)
	f.Tool("tpm2_create", args...)
	f.Tool("tpm2_flushcontext", "-t")
	return loadable(t, read(t, pub), read(t, priv), parent)
}

// loadable returns a key file with any parent, even one that is accepted only when
// read.
func loadable(t *testing.T, pub, priv []byte, parent uint32) *keyfile.TPMKey {
	t.Helper()
	file, err := keyfile.NewLoadable(pub, priv, keyfile.ParentOwner, true)
	if err != nil {
		t.Fatal(err)
	}
	file.Parent = parent
	return file
}

// goTPM creates a key under go-tpm's own storage key template, as its users do.
func (f *fixture) goTPM(t *testing.T) *keyfile.TPMKey {
	t.Helper()
	conn, err := f.Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tpm := sender{testContext(t), conn}
	primary, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	template := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
	key, err := tpm2.Create{
		ParentHandle: tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name},
		InPublic:     tpm2.New2B(template),
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: primary.ObjectHandle}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	return loadable(t, tpm2.Marshal(key.OutPublic), tpm2.Marshal(key.OutPrivate), keyfile.ParentOwner)
}

// sender is a connection in the form that go-tpm takes.
type sender struct {
	ctx  context.Context
	conn tpmtest.Conn
}

func (s sender) Send(command []byte) ([]byte, error) { return s.conn.Send(s.ctx, command) }

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestOwnerParentIsFoundPersistent checks that a file under 0x40000001 loads under
// the persistent storage key, and that no primary is created for it.
func TestOwnerParentIsFoundPersistent(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	if err := f.tpm.Close(); err != nil {
		t.Fatal(err)
	}
	f.persist(t, "-G", "ecc", "-a", storageAttributes)
	// With an owner password no primary can be created.
	f.Tool("tpm2_changeauth", "-c", "owner", "secret")
	f.tpm = f.newTPM(t)
	key = f.key(t, key.File())
	got := f.commands(func() { mustSign(t, key, "", crypto.SHA256) })
	want := []string{"ReadPublic", "ReadPublic", "Load", "ContextSave", "Sign", "FlushContext"}
	if !slices.Equal(got, want) {
		t.Errorf("commands %v, want %v", got, want)
	}
	// The session for a PIN is salted to that parent.
	pin := f.create(t, tpmkey.ECDSAP256, "1234")
	mustSign(t, pin, "1234", crypto.SHA256)
	if p := pin.File().Parent; p != 0x81000001 {
		t.Errorf("a key made on a TPM with an owner password names the parent %#x", p)
	}
}

func TestOwnerPasswordWithoutStorageKey(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.Tool("tpm2_changeauth", "-c", "owner", "secret")
	_, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256})
	if !errors.Is(err, tpmkey.ErrOwnerAuth) {
		t.Errorf("Create: %v, want ErrOwnerAuth", err)
	}
}

// TestForeignParents loads keys of tools that write a wrong parent, and of tools that
// use an RSA storage key correctly.
func TestForeignParents(t *testing.T) {
	t.Parallel()
	primary := func(f *fixture, t *testing.T, args ...string) string {
		context := filepath.Join(t.TempDir(), "primary")
		f.Tool("tpm2_createprimary", append([]string{"-Q", "-C", "o", "-c", context}, args...)...)
		f.Tool("tpm2_flushcontext", "-t")
		return context
	}
	tests := map[string]func(*fixture, *testing.T) *keyfile.TPMKey{
		"go-tpm's template": func(f *fixture, t *testing.T) *keyfile.TPMKey {
			return f.goTPM(t)
		},
		"rsaParent": func(f *fixture, t *testing.T) *keyfile.TPMKey {
			file := f.foreign(t, primary(f, t, "-G", "rsa2048", "-a", storageAttributes), keyfile.ParentOwner, "-G", "ecc")
			file.RSAParent = true
			return file
		},
		"RSA at 0x81000001, file says owner": func(f *fixture, t *testing.T) *keyfile.TPMKey {
			f.persist(t, "-G", "rsa2048")
			return f.foreign(t, "0x81000001", keyfile.ParentOwner, "-G", "ecc")
		},
		"explicit persistent RSA": func(f *fixture, t *testing.T) *keyfile.TPMKey {
			f.persist(t, "-G", "rsa2048")
			return f.foreign(t, "0x81000001", 0x81000001, "-G", "ecc")
		},
		"parent 0": func(f *fixture, t *testing.T) *keyfile.TPMKey {
			return f.foreign(t, primary(f, t, "-G", "ecc", "-a", storageAttributes), 0, "-G", "ecc")
		},
		"transient parent": func(f *fixture, t *testing.T) *keyfile.TPMKey {
			return f.foreign(t, primary(f, t, "-G", "ecc", "-a", storageAttributes), 0x80000000, "-G", "ecc")
		},
	}
	for name, make := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			key := f.key(t, make(f, t))
			mustSign(t, key, "", crypto.SHA256)
			if got := f.commands(func() { mustSign(t, key, "", crypto.SHA256) }); len(got) != 3 {
				t.Errorf("the second signature took %v", got)
			}
		})
	}
}

// TestNoRSAKeyIsMadeOnAGuess checks that for a key that does not load anywhere no RSA
// primary is created, which may take a chip a minute.
func TestNoRSAKeyIsMadeOnAGuess(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	f.Close(t)
	f.Replace()
	f.tpm = f.newTPM(t)
	key = f.key(t, key.File())
	f.Forget()
	_, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
	if !errors.Is(err, tpmkey.ErrWrongTPM) {
		t.Fatalf("Sign with another TPM: %v, want ErrWrongTPM", err)
	}
	made := 0
	for _, raw := range f.Raw() {
		// The public area of an RSA primary has TPM_ALG_RSA, SHA-256.
		if strings.Contains(string(raw), "\x00\x01\x00\x0b\x00\x03\x04\x72") {
			made++
		}
	}
	if made != 0 {
		t.Errorf("%d RSA primaries were made on a guess", made)
	}
}

func TestPersistentParentIsUsedAsItIs(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.persist(t, "-G", "ecc") // tpm2-tools' own template, not the draft's
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: 0x81000001})
	if err != nil {
		t.Fatal(err)
	}
	if file.Parent != 0x81000001 {
		t.Errorf("parent %#x", file.Parent)
	}
	mustSign(t, f.key(t, file), "", crypto.SHA256)

	f.Close(t)
	f.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "0x81000001")
	f.tpm = f.newTPM(t)
	_, err = f.key(t, file).Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
	if !errors.Is(err, tpmkey.ErrNoParent) || !strings.Contains(err.Error(), "0x81000001") {
		t.Errorf("Sign without the storage key: %v, want ErrNoParent and its handle", err)
	}
}

func TestParentThatIsNoStorageKey(t *testing.T) {
	t.Parallel()
	f := start(t)
	context := filepath.Join(t.TempDir(), "signing")
	f.Tool("tpm2_createprimary", "-Q", "-C", "o", "-c", context, "-G", "ecc",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")
	f.Tool("tpm2_flushcontext", "-t")
	f.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", context, "0x81000001")
	f.Tool("tpm2_flushcontext", "-t")
	var unsupported *tpmkey.UnsupportedError
	_, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: 0x81000001})
	if !errors.As(err, &unsupported) {
		t.Errorf("Create under a signing key: %v, want an UnsupportedError", err)
	}
	// Keys of the owner hierarchy still work.
	mustSign(t, f.create(t, tpmkey.ECDSAP256, ""), "", crypto.SHA256)
}

func TestParentsRefused(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, parent := range []uint32{keyfile.ParentNull, 0x80000000, 0x40000010 + 0x1000000, 1} {
		var unsupported *tpmkey.UnsupportedError
		_, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: parent})
		if !errors.As(err, &unsupported) {
			t.Errorf("parent %#x: %v, want an UnsupportedError", parent, err)
		}
	}
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: keyfile.ParentEndorsement})
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, f.key(t, file), "", crypto.SHA256)
}
