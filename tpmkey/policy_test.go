package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
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

// createBound creates a key that is bound to PCRs, and returns it as read back from
// its file.
func (f *fixture) createBound(t testing.TB, pin string, pcrs ...int) *tpmkey.Key {
	t.Helper()
	file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: []byte(pin), PCRs: pcrs})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return f.key(t, reread(t, file))
}

func reread(t testing.TB, file *keyfile.TPMKey) *keyfile.TPMKey {
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

// tools closes the TPM, calls fn, which uses it with tpm2-tools, and opens it again.
func (f *fixture) tools(t testing.TB, fn func()) {
	t.Helper()
	f.Close(t)
	fn()
	f.tpm = f.newTPM(t)
}

// extend changes a PCR.
func (f *fixture) extend(t testing.TB, pcr string) {
	t.Helper()
	f.tools(t, func() { f.Tool("tpm2_pcrextend", pcr+":sha256="+strings.Repeat("5a", 32)) })
}

func TestBoundToPCRs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		pin  string
		pcrs []int
	}{
		"one PCR":          {"", []int{7}},
		"a PIN and a PCR":  {"1234", []int{7}},
		"a PIN and two":    {"1234", []int{11, 7}},
		"more than 8 PCRs": {"", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 23}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			key := f.createBound(t, tt.pin, tt.pcrs...)
			if got := key.AuthRequired(); got != (tt.pin != "") {
				t.Errorf("AuthRequired() = %v", got)
			}
			for range 3 {
				mustSign(t, key, tt.pin, crypto.SHA256)
			}
			f.extend(t, "10") // not in the policy, except in the last case
			if !slices.Contains(tt.pcrs, 10) {
				mustSign(t, f.key(t, key.File()), tt.pin, crypto.SHA256)
				f.extend(t, "7")
			}
			_, err := f.key(t, key.File()).Sign(testContext(t), []byte(tt.pin), digest(crypto.SHA256), crypto.SHA256)
			var changed *tpmkey.PCRError
			sorted := slices.Sorted(slices.Values(tt.pcrs))
			if !errors.As(err, &changed) || changed.Bank != "sha256" || !slices.Equal(changed.PCRs, sorted) {
				t.Fatalf("Sign after a PCR changed: %v, want a PCRError of %v", err, sorted)
			}
			want := "PCR 7 (sha256) has changed since the key was made"
			if len(tt.pcrs) > 1 {
				want = "one or more of the PCRs "
			}
			if !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error %q, want %q", err, want)
			}
			// After a restart the PCRs have their old values, and the key works.
			f.tools(t, func() { f.Restart() })
			mustSign(t, f.key(t, key.File()), tt.pin, crypto.SHA256)
		})
	}
}

func TestBoundRSA(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, pin := range []string{"", "1234"} {
		file, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.RSA2048, Auth: []byte(pin), PCRs: []int{7}})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA512} {
			mustSign(t, f.key(t, file), pin, h)
		}
	}
}

// TestBoundKeyFile checks that the file is octet for octet what create_tpm2_key
// writes, and that the attributes leave no way around the policy.
func TestBoundKeyFile(t *testing.T) {
	t.Parallel()
	f := start(t)
	for pin, codes := range map[string][]uint32{"": {keyfile.PolicyPCR}, "1234": {uint32(tpm2.TPMCCPolicyAuthValue), keyfile.PolicyPCR}} {
		file := f.createBound(t, pin, 7).File()
		var got []uint32
		for _, p := range file.Policy {
			got = append(got, p.CommandCode)
		}
		if !slices.Equal(got, codes) {
			t.Errorf("PIN %q: policy %#x, want %#x", pin, got, codes)
		}
		zeros := sha256.Sum256(make([]byte, 32))
		want := append([]byte{0, 0, 0, 1, 0, 0x0b, 3, 0x80, 0, 0}, zeros[:]...)
		if last := file.Policy[len(file.Policy)-1].CommandPolicy; !bytes.Equal(last, want) {
			t.Errorf("PIN %q: PolicyPCR %x, want %x", pin, last, want)
		}
		a := file.Public.Attributes
		if a.UserWithAuth() || a&attrFixedTPM == 0 || a&attrFixedParent == 0 || !a.Sign() {
			t.Errorf("PIN %q: attributes %#x", pin, a)
		}
		if a.NoDA() != (pin == "") || file.EmptyAuth != (pin == "") || file.UsesAuth() != (pin != "") {
			t.Errorf("PIN %q: attributes %#x, emptyAuth %v", pin, a, file.EmptyAuth)
		}
	}
}

// TestBoundNotWithoutPolicy checks that the auth value alone, as any tool could give
// it, does not sign.
func TestBoundNotWithoutPolicy(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.createBound(t, "", 7).File()
	dir := t.TempDir()
	in := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	f.tools(t, func() {
		f.persist(t, "-G", "ecc", "-a", storageAttributes)
		pub, priv := in("pub", file.Pubkey), in("priv", file.Privkey)
		f.Tool("tpm2_load", "-Q", "-C", "0x81000001", "-u", pub, "-r", priv, "-c", filepath.Join(dir, "key"))
		conn, err := f.Open(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		handles, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 1}.Execute(sender{testContext(t), conn})
		if err != nil {
			t.Fatal(err)
		}
		list, err := handles.CapabilityData.Data.Handles()
		if err != nil || len(list.Handle) != 1 {
			t.Fatalf("%v %v", list, err)
		}
		sum := sha256.Sum256([]byte(message))
		_, err = tpm2.Sign{
			KeyHandle: tpm2.AuthHandle{Handle: list.Handle[0], Name: tpm2.TPM2BName{Buffer: file.Public.Name()}, Auth: tpm2.PasswordAuth(nil)},
			Digest:    tpm2.TPM2BDigest{Buffer: sum[:]},
			InScheme: tpm2.TPMTSigScheme{
				Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
			},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(sender{testContext(t), conn})
		if !errors.Is(err, tpm2.TPMRCAuthUnavailable) {
			t.Errorf("Sign by auth value: %v, want TPM_RC_AUTH_UNAVAILABLE", err)
		}
		if _, err := (tpm2.FlushContext{FlushHandle: list.Handle[0]}).Execute(sender{testContext(t), conn}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWrongPINInPolicy(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("3", "1000")
	key := f.createBound(t, "right", 7)
	for _, want := range []int{2, 1} {
		_, err := key.Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256)
		var wrong *tpmkey.AuthError
		if !errors.As(err, &wrong) || wrong.Left != want {
			t.Fatalf("Sign with a wrong PIN: %v, want an AuthError with %d tries left", err, want)
		}
	}
	mustSign(t, key, "right", crypto.SHA256)
	_, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
	var wrong *tpmkey.AuthError
	if !errors.As(err, &wrong) || wrong.Left != 0 {
		t.Fatalf("Sign without the PIN: %v", err)
	}
	_, err = key.Sign(testContext(t), []byte("right"), digest(crypto.SHA256), crypto.SHA256)
	var locked *tpmkey.LockoutError
	if !errors.As(err, &locked) {
		t.Fatalf("Sign while locked: %v", err)
	}
	mustSign(t, f.createBound(t, "", 7), "", crypto.SHA256)
}

// TestPINInPolicyIsNotOnTheWire looks for PINs, some with zeros in them, in
// everything that is sent.
func TestPINInPolicyIsNotOnTheWire(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, pin := range []string{"a PIN of mine", "with\x00zero", strings.Repeat("long ", 20)} {
		f.Forget()
		key := f.createBound(t, pin, 7)
		mustSign(t, key, pin, crypto.SHA256)
		sum := sha256.Sum256([]byte(pin))
		if f.Sent([]byte(pin)) || f.Sent(sum[:]) {
			t.Errorf("the PIN %q was on the wire", pin)
		}
		if !slices.Contains(f.Commands(), "PolicyAuthValue") {
			t.Fatalf("commands: %v", f.Commands())
		}
	}
}

// TestPCRErrorCostsNoTry checks that the TPM compares the PCRs before the PIN.
func TestPCRErrorCostsNoTry(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.createBound(t, "right", 7).File()
	f.extend(t, "7")
	_, err := f.key(t, file).Sign(testContext(t), []byte("wrong"), digest(crypto.SHA256), crypto.SHA256)
	var changed *tpmkey.PCRError
	if !errors.As(err, &changed) {
		t.Errorf("Sign: %v, want a PCRError", err)
	}
	f.tools(t, func() {
		if out := string(f.Tool("tpm2_getcap", "properties-variable")); !strings.Contains(out, "TPM2_PT_LOCKOUT_COUNTER: 0x0") {
			t.Errorf("it cost a try:\n%s", out)
		}
	})
}

// TestCommandsPerPolicySignature checks the numbers in docs/measurements.md. The
// commands in look are for TPMs without a resource manager.
func TestCommandsPerPolicySignature(t *testing.T) {
	t.Parallel()
	look := []string{"ReadClock", "GetCapability"}
	for name, tt := range map[string]struct {
		pin  string
		want []string
	}{
		"PCR":         {"", []string{"StartAuthSession", "PolicyPCR", "Sign", "FlushContext"}},
		"PCR and PIN": {"1234", []string{"ContextLoad", "StartAuthSession", "FlushContext", "PolicyAuthValue", "PolicyPCR", "Sign", "FlushContext"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			key := f.createBound(t, tt.pin, 7)
			got := f.steadyCommands(func() { mustSign(t, key, tt.pin, crypto.SHA256) })
			if want := slices.Concat([]string{"ContextLoad"}, look, tt.want); !slices.Equal(got, want) {
				t.Errorf("commands of one signature: %v, want %v", got, want)
			}
		})
	}
}

// TestPCRChangesMeanwhile extends a PCR between the policy and the signature. The
// policy must run again, and the signature must succeed.
func TestPCRChangesMeanwhile(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, pin := range []string{"", "1234"} {
		key := f.createBound(t, pin, 7)
		mustSign(t, key, pin, crypto.SHA256)
		f.Inject(tpmtest.Fault{Command: "Sign", Times: 2, Effect: func(ctx context.Context, c tpmtest.Conn, command []byte) ([]byte, error) {
			_, err := tpm2.PCRExtend{
				PCRHandle: tpm2.AuthHandle{Handle: 10, Auth: tpm2.PasswordAuth(nil)},
				Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
					{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)},
				}},
			}.Execute(sender{ctx, c})
			if err != nil {
				return nil, err
			}
			return c.Send(ctx, command)
		}})
		got := f.commands(func() { mustSign(t, key, pin, crypto.SHA256) })
		if n := count(got, "PolicyPCR"); n != 3 {
			t.Errorf("PolicyPCR ran %d times, want 3", n)
		}
		if n := f.Disarm(); n != 0 {
			t.Errorf("%d faults did not happen", n)
		}
	}
}

func TestCreateBoundRefused(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, pcrs := range [][]int{{24}, {-1}, {7, 100}} {
		if _, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, PCRs: pcrs}); err == nil {
			t.Errorf("PCRs %v: a key was made", pcrs)
		}
	}
}

// TestCreateBoundBankOff has a TPM whose SHA-256 bank is disabled.
func TestCreateBoundBankOff(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.createBound(t, "", 7).File()
	f.tools(t, func() {
		f.Tool("tpm2_pcrallocate", "-Q", "sha1:all+sha256:none")
		f.Restart()
	})
	_, err := f.tpm.Create(testContext(t), tpmkey.Template{Algorithm: tpmkey.ECDSAP256, PCRs: []int{7}})
	var unsupported *tpmkey.UnsupportedError
	if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "PCR 7 of the bank sha256") {
		t.Errorf("Create: %v", err)
	}
	_, err = f.key(t, file).Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
	if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "turned off") {
		t.Errorf("Sign: %v", err)
	}
}

// pcrPolicy returns the policy digest of the current PCR values, computed by
// tpm2-tools.
func (f *fixture) pcrPolicy(t testing.TB, selection string) []byte {
	t.Helper()
	dir := t.TempDir()
	session, out := filepath.Join(dir, "session"), filepath.Join(dir, "policy")
	f.Tool("tpm2_startauthsession", "-Q", "-S", session)
	f.Tool("tpm2_policypcr", "-Q", "-S", session, "-l", selection, "-L", out)
	f.Tool("tpm2_flushcontext", session)
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pcrValue reads a PCR with tpm2-tools.
func (f *fixture) pcrValue(t testing.TB, selection string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "pcr")
	f.Tool("tpm2_pcrread", "-Q", selection, "-o", out)
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// signer signs policies. It is a software key whose public part the TPM knows.
type signer struct {
	key  *ecdsa.PrivateKey
	area []byte // TPM2B_PUBLIC
	name string // the file that tpm2-tools wrote it to
	ref  []byte // policyRef
}

func (f *fixture) signer(t testing.TB) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pemFile, context := filepath.Join(dir, "pem"), filepath.Join(dir, "context")
	s := &signer{key: key, name: filepath.Join(dir, "name")}
	if err := os.WriteFile(pemFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	f.Tool("tpm2_loadexternal", "-Q", "-C", "o", "-G", "ecc", "-u", pemFile, "-c", context, "-n", s.name)
	f.Tool("tpm2_readpublic", "-Q", "-c", context, "-o", filepath.Join(dir, "area"))
	f.Tool("tpm2_flushcontext", "-t")
	if s.area, err = os.ReadFile(filepath.Join(dir, "area")); err != nil {
		t.Fatal(err)
	}
	return s
}

// authorization returns a PolicyAuthorize in the file's form, with the signature over
// a policy digest, or without one for nil.
func (s *signer) authorization(t testing.TB, approved []byte) keyfile.Policy {
	t.Helper()
	b := append(bytes.Clone(s.area), 0, byte(len(s.ref)))
	b = append(b, s.ref...)
	if approved == nil {
		return keyfile.Policy{CommandCode: uint32(tpm2.TPMCCPolicyAuthorize), CommandPolicy: append(b, 0, 0x10)}
	}
	sum := sha256.Sum256(append(bytes.Clone(approved), s.ref...))
	der, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		t.Fatal(err)
	}
	b = append(b, 0, 0x18, 0, 0x0b)
	for _, n := range []*big.Int{sig.R, sig.S} {
		b = append(binary.BigEndian.AppendUint16(b, 32), n.FillBytes(make([]byte, 32))...)
	}
	return keyfile.Policy{CommandCode: uint32(tpm2.TPMCCPolicyAuthorize), CommandPolicy: b}
}

// approve signs the current state of a PCR, and returns the signed policy for the
// file.
func (f *fixture) approve(t testing.TB, s *signer, name, pcr string) keyfile.AuthPolicy {
	t.Helper()
	value := sha256.Sum256(f.pcrValue(t, "sha256:"+pcr))
	n, _ := new(big.Int).SetString(pcr, 10)
	bound := keyfile.PCRSelection{Hash: 0x000b, PCRs: []int{int(n.Int64())}}.Policy(value[:])
	return keyfile.AuthPolicy{Name: name, Policy: []keyfile.Policy{
		bound, s.authorization(t, f.pcrPolicy(t, "sha256:"+pcr)),
	}}
}

// createSigned creates a key with tpm2-tools that is used by what the signer
// approves. With a pin, PolicyAuthValue follows.
func (f *fixture) createSigned(t testing.TB, s *signer, pin string) *keyfile.TPMKey {
	t.Helper()
	dir := t.TempDir()
	session, policy, parent := filepath.Join(dir, "session"), filepath.Join(dir, "policy"), filepath.Join(dir, "parent")
	approved := filepath.Join(dir, "approved")
	if err := os.WriteFile(approved, f.pcrPolicy(t, "sha256:7"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.Tool("tpm2_startauthsession", "-Q", "-S", session)
	args := []string{"-Q", "-S", session, "-i", approved, "-n", s.name, "-L", policy}
	if len(s.ref) > 0 {
		args = append(args, "-q", hex.EncodeToString(s.ref))
	}
	f.Tool("tpm2_policyauthorize", args...)
	if pin != "" {
		f.Tool("tpm2_policyauthvalue", "-Q", "-S", session, "-L", policy)
	}
	f.Tool("tpm2_flushcontext", session)
	f.Tool("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-a", storageAttributes, "-c", parent)
	f.Tool("tpm2_flushcontext", "-t")
	pub, priv := filepath.Join(dir, "pub"), filepath.Join(dir, "priv")
	create := []string{"-Q", "-C", parent, "-u", pub, "-r", priv, "-G", "ecc", "-a", "fixedtpm|fixedparent|sensitivedataorigin|sign", "-L", policy}
	if pin != "" {
		create = append(create, "-p", pin)
	}
	f.Tool("tpm2_create", create...)
	f.Tool("tpm2_flushcontext", "-t")
	pubkey, err := os.ReadFile(pub)
	if err != nil {
		t.Fatal(err)
	}
	privkey, err := os.ReadFile(priv)
	if err != nil {
		t.Fatal(err)
	}
	file, err := keyfile.NewLoadable(pubkey, privkey, keyfile.ParentOwner, pin == "")
	if err != nil {
		t.Fatal(err)
	}
	file.Policy = []keyfile.Policy{s.authorization(t, nil)}
	if pin != "" {
		file.Policy = append(file.Policy, keyfile.Policy{CommandCode: uint32(tpm2.TPMCCPolicyAuthValue)})
	}
	return file
}

// TestSignedPolicies uses a key in the states that its signer approves, one of them
// approved after the key was created.
func TestSignedPolicies(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		pin string
		ref []byte
	}{"plain": {}, "with a PIN": {pin: "1234"}, "with a policyRef": {ref: []byte("for ssh")}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			f.Close(t)
			s := f.signer(t)
			s.ref = tt.ref
			file := f.createSigned(t, s, tt.pin)
			f.tpm = f.newTPM(t)

			var unsupported *tpmkey.UnsupportedError
			if _, err := f.tpm.Key(file); !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "PolicyAuthorize") {
				t.Errorf("a key that nothing is approved for: %v", err)
			}
			f.tools(t, func() { file.AuthPolicy = append(file.AuthPolicy, f.approve(t, s, "old", "7")) })
			file = reread(t, file)
			key := f.key(t, file)
			if key.AuthRequired() != (tt.pin != "") {
				t.Errorf("AuthRequired() = %v", key.AuthRequired())
			}
			want := 11 // as docs/measurements.md has it
			if tt.pin != "" {
				want = 14
			}
			if got := f.steadyCommands(func() { mustSign(t, key, tt.pin, crypto.SHA256) }); len(got) != want {
				t.Errorf("%d commands of one signature, want %d: %v", len(got), want, got)
			}

			f.extend(t, "7")
			_, err := f.key(t, file).Sign(testContext(t), []byte(tt.pin), digest(crypto.SHA256), crypto.SHA256)
			var changed *tpmkey.PCRError
			if !errors.As(err, &changed) || !changed.Signed || changed.Policy != "old" {
				t.Fatalf("in a state that is not approved: %v", err)
			}

			f.tools(t, func() { file.AuthPolicy = append(file.AuthPolicy, f.approve(t, s, "new", "7")) })
			file = reread(t, file)
			mustSign(t, f.key(t, file), tt.pin, crypto.SHA256)
			f.tools(t, func() { f.Restart() }) // the first state again
			mustSign(t, f.key(t, file), tt.pin, crypto.SHA256)
		})
	}
}

// TestSignedPolicyFalsified checks that a signature that is not the signer's is
// refused, and that the next policy is tried anyway.
func TestSignedPolicyFalsified(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.Close(t)
	s := f.signer(t)
	file := f.createSigned(t, s, "")
	good := f.approve(t, s, "good", "7")
	f.tpm = f.newTPM(t)
	bad := keyfile.AuthPolicy{Name: "bad", Policy: slices.Clone(good.Policy)}
	bad.Policy[1] = s.authorization(t, make([]byte, 32)) // of another policy
	file.AuthPolicy = []keyfile.AuthPolicy{bad}
	_, err := f.key(t, file).Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
	if !errors.Is(err, tpm2.TPMRCSignature) || !strings.Contains(err.Error(), `"bad"`) {
		t.Errorf("Sign by a signature over something else: %v", err)
	}
	absent := keyfile.PCRSelection{Hash: 0x27, PCRs: []int{7}}.Policy(make([]byte, 32)) // SHA3-256
	off := keyfile.AuthPolicy{Name: "off", Policy: []keyfile.Policy{absent, good.Policy[1]}}
	file.AuthPolicy = []keyfile.AuthPolicy{bad, off, good}
	mustSign(t, f.key(t, file), "", crypto.SHA256)
}

// TestPolicyRefused checks that a policy that cannot be run is refused by name before
// the key is offered.
func TestPolicyRefused(t *testing.T) {
	t.Parallel()
	f := start(t)
	bound := f.createBound(t, "", 7).File()
	pcr := bound.Policy[0]
	f.Close(t)
	s, other := f.signer(t), f.signer(t)
	signed := f.createSigned(t, s, "")
	approved := f.approve(t, s, "a", "7")
	f.tpm = f.newTPM(t)
	unsigned := keyfile.AuthPolicy{Policy: []keyfile.Policy{pcr}}
	stranger := keyfile.AuthPolicy{Policy: []keyfile.Policy{pcr, other.authorization(t, make([]byte, 32))}}
	empty := keyfile.AuthPolicy{Policy: []keyfile.Policy{pcr, s.authorization(t, nil)}}
	secret := keyfile.AuthPolicy{Policy: []keyfile.Policy{{CommandCode: 0x151}, approved.Policy[1]}}
	for name, tt := range map[string]struct {
		file   *keyfile.TPMKey
		policy []keyfile.Policy
		auth   []keyfile.AuthPolicy
		want   string
	}{
		"none":         {bound, nil, nil, "has none"},
		"PolicySecret": {bound, []keyfile.Policy{{CommandCode: 0x151}}, nil, "PolicySecret"},
		"locality":     {bound, []keyfile.Policy{pcr, {CommandCode: 0x16f, CommandPolicy: []byte{1}}}, nil, "PolicyLocality"},
		"counter":      {bound, []keyfile.Policy{{CommandCode: 0x16d}}, nil, "PolicyCounterTimer"},
		"unknown":      {bound, []keyfile.Policy{{CommandCode: 0x1ff}}, nil, "command 0x1ff"},
		"another":      {bound, []keyfile.Policy{pcr, {CommandCode: uint32(tpm2.TPMCCPolicyAuthValue)}}, nil, "do not give its policy digest"},
		"damaged":      {bound, []keyfile.Policy{{CommandCode: keyfile.PolicyPCR, CommandPolicy: pcr.CommandPolicy[:20]}}, nil, "PolicyPCR"},
		"signed later": {bound, []keyfile.Policy{pcr, s.authorization(t, nil)}, nil, "PolicyAuthorize, which is not supported there"},
		"unsigned":     {signed, signed.Policy, []keyfile.AuthPolicy{unsigned}, "does not end with its signature"},
		"by another":   {signed, signed.Policy, []keyfile.AuthPolicy{stranger}, "signed by a different key than the policy names"},
		"no signature": {signed, signed.Policy, []keyfile.AuthPolicy{empty}, "the signature is missing"},
		"in signed":    {signed, signed.Policy, []keyfile.AuthPolicy{secret}, "PolicySecret"},
	} {
		file := *tt.file
		file.Policy, file.AuthPolicy = tt.policy, tt.auth
		if _, err := f.tpm.Key(&file); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	signed.AuthPolicy = []keyfile.AuthPolicy{secret, unsigned, approved}
	mustSign(t, f.key(t, signed), "", crypto.SHA256)
}

// TestOtherHashes uses keys with a different nameAlg: their policy sessions have that
// hash, and their PINs may be longer.
func TestOtherHashes(t *testing.T) {
	t.Parallel()
	for name, hash := range map[string]crypto.Hash{"sha384": crypto.SHA384, "sha512": crypto.SHA512} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t)
			f.Close(t)
			dir := t.TempDir()
			session, policy, parent := filepath.Join(dir, "session"), filepath.Join(dir, "policy"), filepath.Join(dir, "parent")
			f.Tool("tpm2_startauthsession", "-Q", "-S", session, "-g", name)
			f.Tool("tpm2_policyauthvalue", "-Q", "-S", session, "-L", policy)
			f.Tool("tpm2_policypcr", "-Q", "-S", session, "-l", "sha1:1+sha256:7,11", "-L", policy)
			f.Tool("tpm2_flushcontext", session)
			f.Tool("tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-a", storageAttributes, "-c", parent)
			f.Tool("tpm2_flushcontext", "-t")
			pin := strings.Repeat("p", 40)
			file := f.foreign(t, parent, keyfile.ParentOwner, "-G", "ecc", "-g", name, "-L", policy, "-p", pin,
				"-a", "fixedtpm|fixedparent|sensitivedataorigin|sign")
			h := hash.New()
			h.Write(make([]byte, 20+32+32)) // three PCRs of zeros
			pcrs := h.Sum([]byte{0, 0, 0, 2, 0, 4, 3, 2, 0, 0, 0, 0x0b, 3, 0x80, 8, 0})
			file.EmptyAuth = false
			file.Policy = []keyfile.Policy{{CommandCode: uint32(tpm2.TPMCCPolicyAuthValue)}, {CommandCode: keyfile.PolicyPCR, CommandPolicy: pcrs}}
			f.tpm = f.newTPM(t)
			mustSign(t, f.key(t, reread(t, file)), pin, crypto.SHA256)
			f.extend(t, "11")
			_, err := f.key(t, file).Sign(testContext(t), []byte(pin), digest(crypto.SHA256), crypto.SHA256)
			var changed *tpmkey.PCRError
			if !errors.As(err, &changed) || changed.Bank != "sha1, sha256" || !slices.Equal(changed.PCRs, []int{1, 7, 11}) {
				t.Errorf("Sign after a PCR changed: %v", err)
			}
		})
	}
}

// TestBoundKeyInTools signs with tpm2-tools and a key that was created here, by its
// policy.
func TestBoundKeyInTools(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.createBound(t, "1234", 7).File()
	f.Close(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, data := range map[string][]byte{"pub": file.Pubkey, "priv": file.Privkey, "message": []byte(message)} {
		if err := os.WriteFile(path(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.persist(t, "-G", "ecc", "-a", storageAttributes)
	f.Tool("tpm2_load", "-Q", "-C", "0x81000001", "-u", path("pub"), "-r", path("priv"), "-c", path("key"))
	f.Tool("tpm2_flushcontext", "-t")
	f.Tool("tpm2_startauthsession", "-Q", "--policy-session", "-S", path("session"))
	f.Tool("tpm2_policyauthvalue", "-Q", "-S", path("session"))
	f.Tool("tpm2_policypcr", "-Q", "-S", path("session"), "-l", "sha256:7")
	f.Tool("tpm2_sign", "-Q", "-c", path("key"), "-g", "sha256", "-f", "plain", "-p", "session:"+path("session")+"+1234", "-o", path("sig"), path("message"))
	f.Tool("tpm2_flushcontext", path("session"))
	f.Tool("tpm2_flushcontext", "-t")
	if !verifies(file.Public.Key, crypto.SHA256, read(t, path("sig"))) {
		t.Error("the signature of tpm2_sign does not verify")
	}
}

// TestDraftForm reads a PolicyPCR in the draft's order, which other programs may
// write.
func TestDraftForm(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.createBound(t, "", 7).File()
	bare := file.Policy[0].CommandPolicy
	selection, sum := bare[:len(bare)-32], bare[len(bare)-32:]
	file.Policy[0].CommandPolicy = slices.Concat([]byte{0, 32}, sum, selection)
	mustSign(t, f.key(t, reread(t, file)), "", crypto.SHA256)
}

// TestPolicyNotNeeded checks that with userWithAuth the auth value is enough, whatever
// policy the file has.
func TestPolicyNotNeeded(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.create(t, tpmkey.ECDSAP256, "1234").File()
	file.Policy = []keyfile.Policy{{CommandCode: 0x151}}
	mustSign(t, f.key(t, file), "1234", crypto.SHA256)
}

func TestCheckPCRs(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.createBound(t, "", 7, 11).File()
	pcrs, err := file.Policy[0].PCRs(32)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.tpm.CheckPCRs(testContext(t), file.Public.NameAlg, pcrs); err != nil {
		t.Error(err)
	}
	f.extend(t, "11")
	var changed *tpmkey.PCRError
	if err := f.tpm.CheckPCRs(testContext(t), file.Public.NameAlg, pcrs); !errors.As(err, &changed) {
		t.Errorf("CheckPCRs: %v, want a PCRError", err)
	}
}

// TestPolicyBroken breaks each command of signatures by policy in each way. The next
// signature must be correct, and nothing may stay in the TPM.
func TestPolicyBroken(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.Close(t)
	s := f.signer(t)
	file := f.createSigned(t, s, "1234")
	file.AuthPolicy = []keyfile.AuthPolicy{f.approve(t, s, "a", "7")}
	f.tpm = f.newTPM(t)
	f.tools(t, func() { f.lockout("1000", "1000") })
	key := f.key(t, file)
	mustSign(t, key, "1234", crypto.SHA256)
	commands := slices.Compact(slices.Sorted(slices.Values(f.steadyCommands(func() { mustSign(t, key, "1234", crypto.SHA256) }))))
	if len(commands) < 11 {
		t.Fatalf("commands of one signature: %v", commands)
	}
	for name, effect := range map[string]tpmtest.Effect{
		"before": tpmtest.DropBefore(), "after": tpmtest.DropAfter(), "short": tpmtest.Short(7), "cut": tpmtest.Short(14),
	} {
		for _, command := range commands {
			mustSign(t, key, "1234", crypto.SHA256)
			t.Run(command+" "+name, func(t *testing.T) {
				f.Inject(tpmtest.Fault{Command: command, Effect: effect})
				sig, err := key.Sign(testContext(t), []byte("1234"), digest(crypto.SHA256), crypto.SHA256)
				if err == nil && !verifies(key.Public(), crypto.SHA256, sig) {
					t.Fatal("a wrong signature got out")
				}
				if n := f.Disarm(); n != 0 {
					t.Fatalf("%s was not sent", command)
				}
				mustSign(t, key, "1234", crypto.SHA256)
				f.Close(t)
				if left, err := f.Leftovers(); err != nil || len(left) > 0 {
					t.Errorf("left in the TPM: %v %v", left, err)
				}
			})
			f.tpm = f.newTPM(t)
			key = f.key(t, file)
		}
	}
}

// TestPolicyRetried checks that each command is retried after "not now".
func TestPolicyRetried(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.createBound(t, "1234", 7)
	mustSign(t, key, "1234", crypto.SHA256)
	for _, command := range []string{"StartAuthSession", "PolicyAuthValue", "PolicyPCR", "Sign"} {
		f.Inject(tpmtest.Fault{Command: command, Times: 2, Effect: tpmtest.Code(uint32(tpm2.TPMRCRetry))})
		mustSign(t, key, "1234", crypto.SHA256)
		if n := f.Disarm(); n != 0 {
			t.Errorf("%s: %d faults did not happen", command, n)
		}
	}
}
