package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/sha256"
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

// mustChange changes the PIN of a key and returns the key that is read back from its
// new file.
func (f *fixture) mustChange(t testing.TB, key *tpmkey.Key, old, new string) *tpmkey.Key {
	t.Helper()
	changed, err := key.ChangeAuth(testContext(t), []byte(old), []byte(new))
	if err != nil {
		t.Fatalf("ChangeAuth: %v", err)
	}
	if !bytes.Equal(changed.ParentName(), key.ParentName()) || key.ParentName() == nil {
		t.Errorf("the parent is %x, and was %x", changed.ParentName(), key.ParentName())
	}
	return f.key(t, reread(t, changed.File()))
}

// sameButPIN fails unless two key files differ only in what a change of the PIN
// changes.
func sameButPIN(t testing.TB, before, after *keyfile.TPMKey, empty bool) {
	t.Helper()
	if bytes.Equal(before.Privkey, after.Privkey) {
		t.Error("the private part is the same")
	}
	if after.EmptyAuth != empty {
		t.Errorf("emptyAuth %v", after.EmptyAuth)
	}
	want := *before
	want.EmptyAuth, want.Privkey = after.EmptyAuth, after.Privkey
	data, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := after.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, got) {
		t.Errorf("more than the PIN has changed:\n%s%s", data, got)
	}
}

// counter returns the TPM's count of wrong auth values.
func (f *fixture) counter(t testing.TB) int {
	t.Helper()
	lo, err := f.tpm.Lockout(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return lo.Counter
}

// TestChangeAuth changes the PIN of keys. The new file signs with the new PIN only,
// the old file with the old PIN only. The TPM counts one wrong PIN for each.
func TestChangeAuth(t *testing.T) {
	t.Parallel()
	for name, algorithm := range map[string]tpmkey.Algorithm{
		"P-256": tpmkey.ECDSAP256, "P-384": tpmkey.ECDSAP384, "P-521": tpmkey.ECDSAP521, "RSA 2048": tpmkey.RSA2048,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			f.lockout("10", "1000")
			key := f.create(t, algorithm, "old")
			hashes := hashesOf(key.Public())
			changed := f.mustChange(t, key, "old", "new")
			sameButPIN(t, key.File(), changed.File(), false)
			for _, h := range hashes {
				mustSign(t, changed, "new", h)
				mustSign(t, key, "old", h)
			}
			for _, wrong := range []struct {
				key *tpmkey.Key
				pin string
			}{{changed, "old"}, {key, "new"}} {
				before := f.counter(t)
				if err := signHash(wrong.key, wrong.pin, hashes[0]); !isAuthError(err) {
					t.Errorf("the PIN %q: %v", wrong.pin, err)
				}
				if n := f.counter(t) - before; n != 1 {
					t.Errorf("a wrong PIN cost %d tries", n)
				}
			}
		})
	}
}

func signHash(key *tpmkey.Key, pin string, h crypto.Hash) error {
	_, err := key.Sign(context.Background(), []byte(pin), digest(h), h)
	return err
}

func isAuthError(err error) bool {
	var wrong *tpmkey.AuthError
	return errors.As(err, &wrong)
}

// TestChangeAuthPINs tries long PINs, and PINs that libraries get wrong, as old and
// as new PIN.
func TestChangeAuthPINs(t *testing.T) {
	t.Parallel()
	f := start(t)
	key, old := f.create(t, tpmkey.ECDSAP256, "first"), "first"
	for _, pin := range []string{
		"1", "a\x00b", "\x00b", "ends in zero\x00\x00", "pässwörd", "with\nnewline",
		strings.Repeat("x", 31), strings.Repeat("x", 32), strings.Repeat("x", 33), strings.Repeat("x", 1000),
		"", "again", "\x00", "last",
	} {
		changed := f.mustChange(t, key, old, pin)
		sameButPIN(t, key.File(), changed.File(), strings.Trim(pin, "\x00") == "")
		mustSign(t, changed, pin, crypto.SHA256)
		key, old = changed, pin
	}
	if n := f.counter(t); n != 0 {
		t.Errorf("right PINs cost %d tries", n)
	}
}

// TestChangeAuthOfAllKinds tries keys of other tools and keys under other parents.
func TestChangeAuthOfAllKinds(t *testing.T) {
	t.Parallel()
	f := start(t)
	primary := f.primaryContext(t)
	noDA := f.foreign(t, primary, keyfile.ParentOwner, "-G", "ecc", "-p", "old", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign")
	decrypt := f.foreign(t, primary, keyfile.ParentOwner, "-G", "rsa2048", "-p", "old", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|decrypt")
	rsassa := f.foreign(t, primary, keyfile.ParentOwner, "-G", "rsa2048:rsassa-sha512:null", "-p", "old", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")
	sha384 := f.foreign(t, primary, keyfile.ParentOwner, "-G", "ecc", "-g", "sha384", "-p", "old", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")
	persistent := filepath.Join(t.TempDir(), "persistent")
	f.persist(t, "-G", "rsa2048", "-a", storageAttributes, "-u", unique(t))
	f.Tool("tpm2_readpublic", "-Q", "-c", "0x81000001", "-o", persistent)
	under := f.foreign(t, "0x81000001", 0x81000001, "-G", "ecc", "-p", "old")
	described := f.foreign(t, primary, 0x80000001, "-G", "ecc", "-p", "old")
	described.Description = "the key of the old one"
	zeros := f.goTPM(t)
	for name, file := range map[string]*keyfile.TPMKey{
		"noDA": noDA, "RSA, decrypts only": decrypt, "RSA, SHA-512 only": rsassa, "nameAlg SHA-384": sha384,
		"persistent parent": under, "described": described, "parent of go-tpm": zeros,
		"imported":     f.importPrivate(t, newECDSA(t, elliptic.P384()), tpmkey.WrapOptions{Auth: []byte("old")}).File(),
		"imported RSA": f.importPrivate(t, newRSA(t, 2048), tpmkey.WrapOptions{Auth: []byte("old")}).File(),
		"endorsement":  f.createUnder(t, keyfile.ParentEndorsement, "old"),
	} {
		t.Run(name, func(t *testing.T) {
			old := "old"
			if file == zeros {
				old = ""
			}
			file.EmptyAuth = old == ""
			before := reread(t, file)
			h := hashesOf(file.Public.Key)[0]
			if file == rsassa {
				h = crypto.SHA512
			}
			key := f.key(t, before)
			for _, pin := range []string{"new", strings.Repeat("x", 40), strings.Repeat("long", 20), ""} {
				changed := f.mustChange(t, key, old, pin)
				sameButPIN(t, before, changed.File(), pin == "")
				mustSign(t, changed, pin, h)
				key, old, before = changed, pin, changed.File()
			}
		})
	}
	if n := f.counter(t); n != 0 {
		t.Errorf("right PINs cost %d tries", n)
	}
}

// unique returns the unique field of Windows' storage key: 256 zeros.
func unique(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "unique")
	writeFile(t, path, append([]byte{0, 1}, make([]byte, 256)...))
	return path
}

func (f *fixture) createUnder(t *testing.T, parent uint32, pin string) *keyfile.TPMKey {
	t.Helper()
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Parent: parent, Auth: []byte(pin)})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// TestChangeAuthByPolicy changes the PIN of keys that are used by policy. The old
// auth value alone authorizes the change (adminWithPolicy is clear); the policy still
// authorizes the use.
func TestChangeAuthByPolicy(t *testing.T) {
	t.Parallel()
	t.Run("PCRs", func(t *testing.T) {
		t.Parallel()
		f := start(t)
		key := f.createBound(t, "old", 7)
		changed := f.mustChange(t, key, "old", "new")
		sameButPIN(t, key.File(), changed.File(), false)
		mustSign(t, changed, "new", crypto.SHA256)
		if err := signError(t, changed, "old"); !isAuthError(err) {
			t.Errorf("the old PIN: %v", err)
		}
		before := f.counter(t)
		if _, err := key.ChangeAuth(testContext(t), []byte("wrong"), []byte("new")); !isAuthError(err) || f.counter(t) != before+1 {
			t.Errorf("a wrong PIN: %v, %d tries", err, f.counter(t)-before)
		}
		// The new file could not sign.
		f.extend(t, "7")
		var state *tpmkey.PCRError
		if _, err := f.key(t, changed.File()).ChangeAuth(testContext(t), []byte("new"), []byte("other")); !errors.As(err, &state) {
			t.Errorf("PCRs have changed: %v", err)
		}
	})
	t.Run("signed", func(t *testing.T) {
		t.Parallel()
		f := start(t)
		s := f.signer(t)
		file := f.createSigned(t, s, "old")
		file.AuthPolicy = []keyfile.AuthPolicy{f.approve(t, s, "now", "7")}
		changed := f.mustChange(t, f.key(t, reread(t, file)), "old", "new")
		sameButPIN(t, file, changed.File(), false)
		mustSign(t, changed, "new", crypto.SHA256)
	})
}

// TestChangeAuthRefused checks that ChangeAuth refuses a key with the reason, before
// it sends anything.
func TestChangeAuthRefused(t *testing.T) {
	t.Parallel()
	f := start(t)
	admin := f.foreign(t, f.primaryContext(t), keyfile.ParentOwner, "-G", "ecc", "-p", "old", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|adminwithpolicy|sign")
	unknown := *f.create(t, tpmkey.ECDSAP256, "old").File()
	unknown.Unknown = []int{6, 9}
	for why, file := range map[string]*keyfile.TPMKey{
		"has to be imported first":                                f.wrapFor(t, newECDSA(t, elliptic.P256()), "old"),
		"requires a policy of its own for this (adminWithPolicy)": admin,
		"by a policy that asks for no PIN":                        f.createBound(t, "", 7).File(),
		"does not know (6, 9)":                                    &unknown,
	} {
		key := f.key(t, file)
		var err error
		sent := f.commands(func() { _, err = key.ChangeAuth(testContext(t), []byte("old"), []byte("new")) })
		var unsupported *tpmkey.UnsupportedError
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), why) || len(sent) != 0 {
			t.Errorf("%v, by %v, want %q", err, sent, why)
		}
	}
	// The TPM itself accepts no auth value for it (TPM_RC_AUTH_TYPE).
	f.tools(t, func() {
		dir := t.TempDir()
		pub, priv, context := filepath.Join(dir, "pub"), filepath.Join(dir, "priv"), filepath.Join(dir, "context")
		writeFile(t, pub, admin.Pubkey)
		writeFile(t, priv, admin.Privkey)
		parent := f.primaryContext(t)
		f.Tool("tpm2_load", "-Q", "-C", parent, "-u", pub, "-r", priv, "-c", context)
		f.Tool("tpm2_flushcontext", "-t")
		out := string(f.Tool("sh", "-c", "tpm2_changeauth -c "+context+" -C "+parent+" -p old -r /dev/null new 2>&1; tpm2_flushcontext -t"))
		if !strings.Contains(out, "0x124") {
			t.Errorf("tpm2_changeauth says %s", out)
		}
	})
}

// TestChangeAuthWrongPIN checks that a wrong PIN costs one try, and that a locked TPM
// accepts none.
func TestChangeAuthWrongPIN(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("2", "1000")
	key := f.create(t, tpmkey.ECDSAP256, "right")
	change := func(old string) error {
		changed, err := key.ChangeAuth(testContext(t), []byte(old), []byte("new"))
		if (changed == nil) != (err != nil) {
			t.Fatalf("%v and %v", changed, err)
		}
		return err
	}
	if err := change("right"); err != nil {
		t.Fatal(err)
	}
	for n, old := range []string{"wrong", ""} {
		var wrong *tpmkey.AuthError
		if err := change(old); !errors.As(err, &wrong) || wrong.Left != 1-n {
			t.Errorf("%q: %v", old, err)
		}
		if got := f.counter(t); got != n+1 {
			t.Errorf("%d wrong PINs cost %d tries", n+1, got)
		}
	}
	var locked *tpmkey.LockoutError
	if err := change("right"); !errors.As(err, &locked) {
		t.Errorf("locked: %v", err)
	}
}

// TestChangeAuthIsNotOnTheWire looks for both PINs, and for the digests that replace
// long ones, in everything that is sent. It also checks the commands.
func TestChangeAuthIsNotOnTheWire(t *testing.T) {
	t.Parallel()
	f := start(t)
	long, longer := strings.Repeat("correct horse ", 4), strings.Repeat("battery staple ", 4)
	for _, pins := range [][2]string{{"a PIN of mine", "another of mine"}, {long, longer}, {"a PIN of mine", ""}, {"", "another of mine"}} {
		key := f.create(t, tpmkey.ECDSAP256, pins[0])
		f.Close(t)
		f.tpm = f.newTPM(t)
		key = f.key(t, key.File())
		sent := f.commands(func() {
			mustSign(t, f.mustChange(t, key, pins[0], pins[1]), pins[1], crypto.SHA256)
			if _, err := key.ChangeAuth(testContext(t), []byte("wrong one"), []byte(pins[1])); err == nil && !key.File().EmptyAuth {
				t.Error("a wrong PIN changed it")
			}
		})
		if count(sent, "ObjectChangeAuth") < 2 {
			t.Fatalf("commands: %v", sent)
		}
		for _, pin := range append(pins[:], "wrong one") {
			sum := sha256.Sum256([]byte(pin))
			if pin != "" && f.Sent([]byte(pin)) || f.Sent(sum[:]) {
				t.Errorf("%q was sent in clear", pin)
			}
		}
	}
}

// TestChangeAuthSteps checks the commands of one change, and that the new PIN is
// encrypted: the same change gives different octets on the wire.
func TestChangeAuthSteps(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "old")
	got := f.steadyCommands(func() {
		if _, err := key.ChangeAuth(testContext(t), []byte("old"), []byte("new")); err != nil {
			t.Fatal(err)
		}
	})
	want := []string{
		"ContextLoad", "ContextLoad", "ObjectChangeAuth", "FlushContext", "FlushContext",
		"ContextLoad", "Load", "FlushContext", "ContextSave", "Sign", "FlushContext",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestChangeAuthPinned checks that the session is salted to the remembered storage
// key only.
func TestChangeAuthPinned(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "old")
	mustSign(t, key, "old", crypto.SHA256)
	f.Close(t)
	bad := f.interposed(t, false)
	change := func(pin []byte) error {
		f.Forget()
		victim, err := bad.Key(key.File())
		if err != nil {
			t.Fatal(err)
		}
		victim.Pin(pin, false)
		_, err = victim.ChangeAuth(testContext(t), []byte("old"), []byte("new"))
		return err
	}
	if err := change(nil); !slices.Contains(f.Commands(), "StartAuthSession") {
		t.Fatalf("the interposer is not at work: %v, %v", err, f.Commands())
	}
	var parent *tpmkey.ParentChangedError
	if err := change(key.ParentName()); !errors.As(err, &parent) || slices.Contains(f.Commands(), "StartAuthSession") {
		t.Errorf("pinned: %v, %v", err, f.Commands())
	}
}

// TestChangeAuthBroken breaks each command of a change in each way, and lets the TPM
// refuse it. There must be no new file, the old one must still work, no try may be
// lost, and nothing may stay in the TPM.
func TestChangeAuthBroken(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.create(t, tpmkey.ECDSAP256, "old").File()
	// The first use of the TPM's lockout counter costs one more command (TPM_RC_RETRY).
	mustSign(t, f.key(t, file), "old", crypto.SHA256)
	fresh := func() *tpmkey.Key {
		f.Close(t)
		f.tpm = f.newTPM(t)
		return f.key(t, file)
	}
	key := fresh()
	steps := f.commands(func() {
		if _, err := key.ChangeAuth(testContext(t), []byte("old"), []byte("new")); err != nil {
			t.Fatal(err)
		}
	})
	for n, step := range steps {
		for how, effect := range map[string]tpmtest.Effect{
			"dropped before": tpmtest.DropBefore(), "dropped after": tpmtest.DropAfter(), "cut": tpmtest.Short(14),
			"refused": tpmtest.Code(uint32(tpm2.TPMRCFailure)),
			"garbage": tpmtest.Change(func(a []byte) []byte {
				for i := 10; i < len(a); i++ {
					a[i] ^= 0x55
				}
				return a
			}),
		} {
			if step == "FlushContext" && how == "refused" {
				continue // it would be left there
			}
			key := fresh()
			f.Inject(tpmtest.Fault{Skip: n, Effect: effect})
			changed, err := key.ChangeAuth(testContext(t), []byte("old"), []byte("new"))
			if f.Disarm() != 0 {
				t.Fatalf("%d (%s) %s: was not reached", n, step, how)
			}
			if isAuthError(err) || (err == nil) != (changed != nil) {
				t.Errorf("%d (%s) %s: %v", n, step, how, err)
			}
			if err == nil {
				mustSign(t, f.key(t, changed.File()), "new", crypto.SHA256)
			}
			mustSign(t, f.key(t, file), "old", crypto.SHA256)
		}
	}
	if n := f.counter(t); n != 0 {
		t.Errorf("%d tries were lost", n)
	}
}

// TestChangeAuthUnchanged has a TPM that reports success and returns the old private part.
// ChangeAuth must notice, and must not report a wrong PIN.
func TestChangeAuthUnchanged(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "old")
	lies := 0
	f.Inject(tpmtest.Fault{Command: "Sign", Effect: func(_ context.Context, _ tpmtest.Conn, _ []byte) ([]byte, error) {
		lies++
		return tpmtest.NewAnswer(uint32(tpm2.TPMRCAuthFail) | 0x980), nil
	}})
	changed, err := key.ChangeAuth(testContext(t), []byte("old"), []byte("new"))
	if changed != nil || err == nil || isAuthError(err) || lies != 1 {
		t.Errorf("%v, %v", changed, err)
	}
}

// TestChangeAuthEnds cancels the context of a change.
func TestChangeAuthEnds(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "old")
	mustSign(t, key, "old", crypto.SHA256)
	ctx, cancel := context.WithCancel(testContext(t))
	f.Inject(tpmtest.Fault{Command: "ContextLoad", Effect: func(ctx context.Context, c tpmtest.Conn, command []byte) ([]byte, error) {
		cancel()
		return c.Send(ctx, command)
	}})
	sent := f.commands(func() {
		if _, err := key.ChangeAuth(ctx, []byte("old"), []byte("new")); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	if slices.Contains(sent, "ObjectChangeAuth") {
		t.Errorf("%v", sent)
	}
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
