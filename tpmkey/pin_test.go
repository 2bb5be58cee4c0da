package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// signError signs and returns the error. It fails if there is none.
func signError(t *testing.T, key *tpmkey.Key, pin string) error {
	t.Helper()
	_, err := key.Sign(testContext(t), []byte(pin), digest(crypto.SHA256), crypto.SHA256)
	if err == nil {
		t.Fatal("a signature was made")
	}
	return err
}

// pinned returns the key of a file, with the storage key that is remembered.
func (f *fixture) pinned(t *testing.T, file *keyfile.TPMKey, parent []byte, changed bool) *tpmkey.Key {
	t.Helper()
	key := f.key(t, file)
	key.Pin(parent, changed)
	return key
}

func TestParentOfKey(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	if p := key.Parent(); p.Name != nil || p.At != "" || key.ParentName() != nil {
		t.Errorf("a key that was never loaded has the parent %v", p)
	}
	if err := key.Load(testContext(t)); err != nil {
		t.Fatal(err)
	}
	first := key.Parent()
	if first.At != "owner" || len(first.Name) != 34 || !bytes.Equal(first.Name, key.ParentName()) {
		t.Fatalf("parent %+v", first)
	}
	// The same storage key in a different place has the same Name.
	f.Close(t)
	f.persist(t, "-G", "ecc", "-a", storageAttributes)
	f.tpm = f.newTPM(t)
	again := f.pinned(t, key.File(), first.Name, false)
	mustSign(t, again, "1234", crypto.SHA256)
	if p := again.Parent(); p.At != "0x81000001" || !bytes.Equal(p.Name, first.Name) {
		t.Errorf("parent %+v, want the Name of %+v at 0x81000001", p, first)
	}
}

// TestPlaceOfNewKey checks that the place of a key under the owner's primary is the
// owner, even if the primary is persistent as well.
func TestPlaceOfNewKey(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.persist(t, "-G", "ecc", "-a", storageAttributes)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	if at := key.Parent().At; at != "owner" {
		t.Errorf("at %s", at)
	}
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: 0x81000001})
	if err != nil {
		t.Fatal(err)
	}
	named := f.key(t, file)
	mustSign(t, named, "", crypto.SHA256)
	if at := named.Parent().At; at != "0x81000001" {
		t.Errorf("at %s", at)
	}
}

// TestPinnedToPrimary checks that a key whose storage key is remembered, and was
// created already, loads under it without a search.
func TestPinnedToPrimary(t *testing.T) {
	t.Parallel()
	f := start(t)
	parent, handle, err := f.tpm.ParentAt(testContext(t), 0)
	if err != nil || handle != keyfile.ParentOwner || parent.At != "owner" {
		t.Fatalf("%+v, %#x, %v", parent, handle, err)
	}
	made := f.create(t, tpmkey.ECDSAP256, "")
	got := f.commands(func() {
		key := f.pinned(t, made.File(), parent.Name, false)
		mustSign(t, key, "", crypto.SHA256)
		if key.Parent().At != "owner" {
			t.Errorf("parent %+v", key.Parent())
		}
	})
	for _, command := range []string{"ReadPublic", "CreatePrimary"} {
		if slices.Contains(got, command) {
			t.Errorf("%s was sent: %v", command, got)
		}
	}
}

// TestPlacesOfParents checks that each template has its own place.
func TestPlacesOfParents(t *testing.T) {
	t.Parallel()
	f := start(t)
	zeros := f.key(t, f.goTPM(t))
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: keyfile.ParentEndorsement})
	if err != nil {
		t.Fatal(err)
	}
	primary := filepath.Join(t.TempDir(), "primary")
	f.Close(t)
	f.Tool("tpm2_createprimary", "-Q", "-C", "o", "-c", primary, "-G", "rsa2048", "-a", storageAttributes)
	f.Tool("tpm2_flushcontext", "-t")
	rsa := f.foreign(t, primary, keyfile.ParentOwner, "-G", "ecc")
	rsa.RSAParent = true
	f.tpm = f.newTPM(t)
	for key, want := range map[*tpmkey.Key]string{
		f.key(t, zeros.File()): "owner-zeros", f.key(t, file): "endorsement", f.key(t, rsa): "owner-rsa",
	} {
		if err := key.Load(testContext(t)); err != nil || key.Parent().At != want {
			t.Errorf("%+v, %v, want it at %s", key.Parent(), err, want)
		}
	}
}

// TestClearedTPM checks the error after the seed of the hierarchy has changed: the
// key is lost for good, whether or not the file has changed.
func TestClearedTPM(t *testing.T) {
	t.Parallel()
	for name, gone := range map[string]func(*fixture){
		"cleared":  func(f *fixture) { f.Tool("tpm2_clear") },
		"replaced": func(f *fixture) { f.Replace() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			key := f.create(t, tpmkey.ECDSAP256, "1234")
			mustSign(t, key, "1234", crypto.SHA256)
			want := key.ParentName()
			f.Close(t)
			gone(f)
			f.tpm = f.newTPM(t)
			for _, changed := range []bool{false, true} {
				f.Forget()
				err := signError(t, f.pinned(t, key.File(), want, changed), "1234")
				var parent *tpmkey.ParentChangedError
				if !errors.As(err, &parent) || !errors.Is(err, tpmkey.ErrWrongTPM) || errors.Is(err, tpmkey.ErrDamaged) {
					t.Fatalf("file changed %v: %v", changed, err)
				}
				if !bytes.Equal(parent.Want, want) || bytes.Equal(parent.Have.Name, want) || parent.Have.At != "owner" {
					t.Errorf("%+v", parent)
				}
				if slices.Contains(f.Commands(), "StartAuthSession") {
					t.Errorf("a session was started: %v", f.Commands())
				}
				if loaded := slices.Contains(f.Commands(), "Load"); loaded != changed {
					t.Errorf("file changed %v: loaded %v", changed, loaded)
				}
			}
			// If nothing is remembered, it is no ParentChangedError.
			err := signError(t, f.key(t, key.File()), "1234")
			var parent *tpmkey.ParentChangedError
			if !errors.Is(err, tpmkey.ErrWrongTPM) || errors.As(err, &parent) {
				t.Errorf("nothing remembered: %v", err)
			}
		})
	}
}

// TestClearedWhileInUse checks that a key without a pin keeps the storage key under
// which it was first loaded.
func TestClearedWhileInUse(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	mustSign(t, key, "1234", crypto.SHA256)
	f.Close(t)
	f.tpm = f.newTPM(t)
	key = f.key(t, key.File())
	mustSign(t, key, "1234", crypto.SHA256)
	f.Replace()
	// The connection is still open; the first try finds it broken.
	err := signError(t, key, "1234")
	var parent *tpmkey.ParentChangedError
	if !errors.As(err, &parent) {
		err = signError(t, key, "1234")
	}
	if !errors.As(err, &parent) {
		t.Errorf("%v", err)
	}
}

// TestPersistentParentReplaced checks that a key that names a handle is refused if a
// different storage key is there.
func TestPersistentParentReplaced(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.persist(t, "-G", "ecc")
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: 0x81000001, Auth: []byte("1234")})
	if err != nil {
		t.Fatal(err)
	}
	key := f.key(t, file)
	mustSign(t, key, "1234", crypto.SHA256)
	f.Close(t)
	f.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "0x81000001")
	f.persist(t, "-G", "ecc", "-a", storageAttributes)
	f.tpm = f.newTPM(t)
	err = signError(t, f.pinned(t, file, key.ParentName(), false), "1234")
	var parent *tpmkey.ParentChangedError
	if !errors.As(err, &parent) || parent.Have.At != "0x81000001" || !strings.Contains(err.Error(), "a different storage key is at 0x81000001: it was replaced") {
		t.Errorf("%v, %+v", err, parent)
	}
}

// TestDamagedFile damages a file while the remembered storage key is there: the error
// must blame the file and not the TPM.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	file := *key.File()
	file.Privkey = bytes.Clone(file.Privkey)
	file.Privkey[len(file.Privkey)-1] ^= 1
	err := signError(t, f.pinned(t, &file, key.ParentName(), true), "")
	if !errors.Is(err, tpmkey.ErrDamaged) || errors.Is(err, tpmkey.ErrWrongTPM) || !errors.Is(err, tpm2.TPMRCIntegrity) {
		t.Errorf("damaged: %v", err)
	}
	if strings.Contains(err.Error(), "another TPM") {
		t.Errorf("damaged: %v", err)
	}
	// Change the attributes, and leave the private part.
	other := *key.File()
	other.Pubkey = bytes.Clone(other.Pubkey)
	other.Pubkey[8] ^= 0x04 // noDA
	read, err := keyfile.ParsePublic(other.Pubkey)
	if err != nil || read.Attributes == other.Public.Attributes {
		t.Fatalf("%+v, %v", read, err)
	}
	other.Public = read
	err = signError(t, f.pinned(t, &other, key.ParentName(), false), "")
	if !errors.Is(err, tpmkey.ErrDamaged) || errors.Is(err, tpmkey.ErrWrongTPM) {
		t.Errorf("damaged public part: %v", err)
	}
	if err := signError(t, f.key(t, &file), ""); !errors.Is(err, tpmkey.ErrWrongTPM) {
		t.Errorf("nothing remembered: %v", err)
	}
}

// TestWrappedAgain checks that a file with a new private part may be under a different
// storage key, and keeps that one from then on.
func TestWrappedAgain(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	again := f.pinned(t, key.File(), bytes.Repeat([]byte{1}, 34), true)
	mustSign(t, again, "1234", crypto.SHA256)
	if again.ParentName() == nil {
		t.Error("no parent")
	}
	f.Close(t)
	f.tpm = f.newTPM(t)
	var parent *tpmkey.ParentChangedError
	strict := f.pinned(t, key.File(), bytes.Repeat([]byte{1}, 34), false)
	if err := signError(t, strict, "1234"); !errors.As(err, &parent) {
		t.Errorf("not changed: %v", err)
	}
}

// TestPinnedBudget checks that remembering costs no command.
func TestPinnedBudget(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	mustSign(t, key, "1234", crypto.SHA256)
	pinned := f.pinned(t, key.File(), key.ParentName(), false)
	mustSign(t, pinned, "1234", crypto.SHA256)
	if got := f.steadyCommands(func() { mustSign(t, pinned, "1234", crypto.SHA256) }); len(got) != 3 {
		t.Errorf("%v", got)
	}
}

// interposer sits on the bus. It replaces the public area of a storage key in
// responses by that of its own key, and the Name as well unless keepName is set.
type interposer struct {
	tpmtest.Conn
	own      *tpm2.TPM2BPublic
	keepName bool
}

func (i *interposer) Send(ctx context.Context, command []byte) ([]byte, error) {
	response, err := i.Conn.Send(ctx, command)
	if err != nil || tpmtest.ReturnCode(response) != 0 {
		return response, err
	}
	switch tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) {
	case tpm2.TPMCCCreatePrimary:
		return i.exchange(response, 10+4+4), nil // header, handle, size of the parameters
	case tpm2.TPMCCReadPublic:
		return i.exchange(response, 10), nil
	}
	return response, nil
}

// exchange replaces the TPM2B_PUBLIC at offset, and the Name in the rest.
func (i *interposer) exchange(response []byte, offset int) []byte {
	size := 2 + int(binary.BigEndian.Uint16(response[offset:]))
	rest := bytes.Clone(response[offset+size:])
	old, err := keyfile.ParsePublic(response[offset : offset+size])
	if err != nil {
		return response
	}
	own := tpm2.Marshal(*i.own)
	public, err := keyfile.ParsePublic(own)
	if err != nil || len(own) != size {
		return response
	}
	if !i.keepName {
		rest = bytes.ReplaceAll(rest, old.Name(), public.Name())
	}
	return slices.Concat(response[:offset], own, rest)
}

// interposed returns a TPM behind an interposer with a storage key of its own.
func (f *fixture) interposed(t *testing.T, keepName bool) *tpmkey.TPM {
	t.Helper()
	secret, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := secret.PublicKey().Bytes() // 04, X, Y
	public := tpm2.ECCSRKTemplate
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	area := tpm2.New2B(public)
	tpm := tpmkey.New(func(ctx context.Context) (tpmkey.Conn, error) {
		conn, err := f.Open(ctx)
		if err != nil {
			return nil, err
		}
		return &interposer{conn, &area, keepName}, nil
	})
	t.Cleanup(func() { tpm.Close() })
	return tpm
}

// TestInterposer checks that a storage key other than the remembered one is refused
// before a session is started with it, wherever it is offered.
func TestInterposer(t *testing.T) {
	t.Parallel()
	for name, persistent := range map[string]bool{"transient": false, "persistent": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			key := f.create(t, tpmkey.ECDSAP256, "1234")
			mustSign(t, key, "1234", crypto.SHA256)
			want := key.ParentName()
			f.Close(t)
			if persistent {
				f.persist(t, "-G", "ecc", "-a", storageAttributes)
			}
			bad := f.interposed(t, false)
			sign := func(pin []byte) error {
				t.Helper()
				f.Forget()
				victim, err := bad.Key(key.File())
				if err != nil {
					t.Fatal(err)
				}
				victim.Pin(pin, false)
				_, err = victim.Sign(testContext(t), []byte("1234"), digest(crypto.SHA256), crypto.SHA256)
				return err
			}
			// Without a pin the interposer learns the session's salt. This
			// shows that it works.
			if err := sign(nil); err == nil || !slices.Contains(f.Commands(), "StartAuthSession") {
				t.Fatalf("without a pin: %v, %v", err, f.Commands())
			}
			var parent *tpmkey.ParentChangedError
			if err := sign(want); !errors.As(err, &parent) || !bytes.Equal(parent.Want, want) {
				t.Errorf("pinned: %v", err)
			}
			if slices.Contains(f.Commands(), "StartAuthSession") {
				t.Errorf("pinned: a session was started: %v", f.Commands())
			}
		})
	}
}

// TestInterposerWithTheRightName checks that the Name in a response is not trusted.
func TestInterposerWithTheRightName(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	f.Close(t)
	victim, err := f.interposed(t, true).Key(key.File())
	if err != nil {
		t.Fatal(err)
	}
	f.Forget()
	if err := signError(t, victim, "1234"); !strings.Contains(err.Error(), "not that of its public area") {
		t.Errorf("%v", err)
	}
	if slices.Contains(f.Commands(), "StartAuthSession") {
		t.Errorf("a session was started: %v", f.Commands())
	}
}

// TestCreatePinned checks that the PIN of a new key is not sent to a different
// storage key.
func TestCreatePinned(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	template := tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: []byte("1234"), ParentName: key.ParentName()}
	if _, err := f.tpm.Create(testContext(t), template); err != nil {
		t.Fatal(err)
	}
	f.Close(t)
	f.Forget()
	var parent *tpmkey.ParentChangedError
	if _, err := f.interposed(t, false).Create(testContext(t), template); !errors.As(err, &parent) {
		t.Errorf("%v", err)
	}
	if got := f.Commands(); slices.Contains(got, "StartAuthSession") || slices.Contains(got, "Create") {
		t.Errorf("%v", got)
	}
}

// TestSessionsAreNotShared checks that a session that is salted to one storage key is
// not used for keys under another.
func TestSessionsAreNotShared(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: keyfile.ParentEndorsement, Auth: []byte("1234")})
	if err != nil {
		t.Fatal(err)
	}
	other := f.key(t, file)
	mustSign(t, other, "1234", crypto.SHA256)
	for range 2 {
		for _, k := range []*tpmkey.Key{key, other} {
			got := f.commands(func() { mustSign(t, k, "1234", crypto.SHA256) })
			if !slices.Contains(got, "StartAuthSession") {
				t.Errorf("%s: %v", k.Parent().At, got)
			}
		}
	}
}
