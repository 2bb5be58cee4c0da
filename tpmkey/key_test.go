package tpmkey_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// primaryContext creates the draft's storage key with tpm2-tools.
func (f *fixture) primaryContext(t *testing.T) string {
	t.Helper()
	context := filepath.Join(t.TempDir(), "primary")
	f.Tool("tpm2_createprimary", "-Q", "-C", "o", "-c", context, "-G", "ecc", "-a", storageAttributes)
	f.Tool("tpm2_flushcontext", "-t")
	return context
}

// TestKeysThatCanNeverSign checks that such keys are refused before the TPM is asked.
func TestKeysThatCanNeverSign(t *testing.T) {
	t.Parallel()
	f := start(t)
	primary := f.primaryContext(t)
	const fixed = "fixedtpm|fixedparent|sensitivedataorigin|"
	tests := map[string]struct {
		args []string
		why  string
	}{
		"restricted":        {[]string{"-G", "ecc:ecdsa:null", "-a", fixed + "userwithauth|restricted|sign"}, "restricted"},
		"ECC decrypt only":  {[]string{"-G", "ecc", "-a", fixed + "userwithauth|decrypt"}, "sign attribute"},
		"by policy only":    {[]string{"-G", "ecc", "-a", fixed + "sign"}, "policy"},
		"wrong hash":        {[]string{"-G", "ecc:ecdsa-sha384", "-a", fixed + "userwithauth|sign"}, "hash"},
		"another scheme":    {[]string{"-G", "ecc:ecschnorr-sha256", "-a", fixed + "userwithauth|sign"}, "scheme"},
		"RSA for OAEP only": {[]string{"-G", "rsa2048:oaep", "-a", fixed + "userwithauth|decrypt"}, "scheme"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			file := f.foreign(t, primary, keyfile.ParentOwner, tt.args...)
			_, err := f.tpm.Key(file)
			var unsupported *tpmkey.UnsupportedError
			if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("Key: %v, want an UnsupportedError about %q", err, tt.why)
			}
		})
	}
}

// TestOwnSchemes signs with keys that prescribe the scheme that SSH uses.
func TestOwnSchemes(t *testing.T) {
	t.Parallel()
	f := start(t)
	primary := f.primaryContext(t)
	attributes := "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
	ecc := f.key(t, f.foreign(t, primary, keyfile.ParentOwner, "-G", "ecc:ecdsa-sha256", "-a", attributes))
	mustSign(t, ecc, "", crypto.SHA256)
	rsa := f.key(t, f.foreign(t, primary, keyfile.ParentOwner, "-G", "rsa2048:rsassa-sha256", "-a", attributes))
	mustSign(t, rsa, "", crypto.SHA256)
	var unsupported *tpmkey.UnsupportedError
	if _, err := rsa.Sign(testContext(t), nil, digest(crypto.SHA512), crypto.SHA512); !errors.As(err, &unsupported) {
		t.Errorf("SHA-512 by a key that prescribes SHA-256: %v", err)
	}
}

// TestImportable signs with a key that was wrapped for this TPM elsewhere. It must be
// imported once.
func TestImportable(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.key(t, f.importable(t, "1234"))
	got := f.commands(func() { mustSign(t, key, "1234", crypto.SHA256) })
	if count(got, "Import") != 1 {
		t.Errorf("commands %v, want one Import", got)
	}
	f.SWTPM.Reset() // ends the saved context; the import is remembered
	got = f.commands(func() { mustSign(t, key, "1234", crypto.SHA256) })
	if count(got, "Import") != 0 || count(got, "Load") != 1 {
		t.Errorf("commands after a reset %v, want a Load and no Import", got)
	}
}

func (f *fixture) importable(t *testing.T, pin string) *keyfile.TPMKey {
	t.Helper()
	parentPub := filepath.Join(t.TempDir(), "parent")
	f.Tool("tpm2_readpublic", "-Q", "-c", f.primaryContext(t), "-o", parentPub)
	f.Tool("tpm2_flushcontext", "-t")
	parent, err := tpm2.Unmarshal[tpm2.TPM2BPublic](read(t, parentPub))
	if err != nil {
		t.Fatal(err)
	}
	contents, err := parent.Contents()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}
	sensitive := tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgECC,
		AuthValue:     tpm2.TPM2BAuth{Buffer: []byte(pin)},
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: scalar}),
	}
	kem, err := tpm2.ImportEncapsulationKey(contents)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		t.Fatal(err)
	}
	duplicate, secret, err := tpm2.CreateDuplicate(rand.Reader, kem, name.Buffer, tpm2.Marshal(sensitive))
	if err != nil {
		t.Fatal(err)
	}
	file, err := keyfile.NewLoadable(tpm2.Marshal(tpm2.New2B(public)), tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: duplicate}), keyfile.ParentOwner, pin == "")
	if err != nil {
		t.Fatal(err)
	}
	file.Type, file.Secret = keyfile.Importable, tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: secret})
	return file
}

// TestDamagedPrivatePart damages the private part. The TPM must notice, and nothing
// may stay in it.
func TestDamagedPrivatePart(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.create(t, tpmkey.ECDSAP256, "").File()
	for _, i := range []int{2, 10, 40, len(file.Privkey) - 1} {
		private := bytes.Clone(file.Privkey)
		private[i] ^= 0x40
		bad, err := keyfile.NewLoadable(file.Pubkey, private, file.Parent, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.key(t, bad).Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256); err == nil {
			t.Errorf("octet %d of the private part was changed, and it signed", i)
		}
	}
}

func TestDigestsRefused(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	f.Forget()
	for name, tt := range map[string]struct {
		digest []byte
		hash   crypto.Hash
	}{
		"SHA-1":           {make([]byte, 20), crypto.SHA1},
		"too short":       {make([]byte, 31), crypto.SHA256},
		"another's size":  {make([]byte, 32), crypto.SHA512},
		"not hashed":      {[]byte(message), crypto.Hash(0)},
		"empty":           {nil, crypto.SHA256},
		"unavailable one": {make([]byte, 64), crypto.BLAKE2b_512},
	} {
		if _, err := key.Sign(testContext(t), nil, tt.digest, tt.hash); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if got := f.Commands(); !slices.Equal(got, nil) && len(got) > 0 {
		t.Errorf("the TPM was asked: %v", got)
	}
}
