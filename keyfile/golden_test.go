package keyfile

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// golden returns the content of a file that testdata/make.sh created.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// goldenDER returns the DER inside the key file name.tpm.
func goldenDER(t testing.TB, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(golden(t, name+".tpm"))
	if block == nil {
		t.Fatalf("%s.tpm is not PEM", name)
	}
	return block.Bytes
}

func goldenKey(t testing.TB, name string) *TPMKey {
	t.Helper()
	k, err := ReadFile(filepath.Join("testdata", name+".tpm"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
}

var goldens = []struct {
	name      string
	typ       Type
	emptyAuth bool
	parent    uint32
	alg       uint16
	bits      int
	scheme    uint16
}{
	// tpm2_encodeobject 5.4 writes emptyAuth inverted.
	{"tools-p256", Loadable, false, ParentOwner, algECC, 256, algECDSA},
	{"tools-p384-pin", Loadable, true, ParentOwner, algECC, 384, algECDSA},
	{"tools-rsa2048", Loadable, false, ParentOwner, algRSA, 2048, algNull},
	{"openssl-p256", Loadable, true, ParentOwner, algECC, 256, algNull},
	{"openssl-p256-pin", Loadable, false, ParentOwner, algECC, 256, algNull},
	{"openssl-p256-persistent", Loadable, true, 0x81000001, algECC, 256, algNull},
	{"openssl-p384", Loadable, true, ParentOwner, algECC, 384, algNull},
	{"openssl-rsa2048", Loadable, true, ParentOwner, algRSA, 2048, algNull},
	{"openssl-rsa2048-pin", Loadable, false, ParentOwner, algRSA, 2048, algNull},
	{"importable", Importable, true, ParentOwner, algECC, 256, algECDSA},
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for _, want := range goldens {
		t.Run(want.name, func(t *testing.T) {
			k := goldenKey(t, want.name)
			if k.Type != want.typ || k.EmptyAuth != want.emptyAuth || k.Parent != want.parent {
				t.Errorf("type %v, emptyAuth %v, parent %#x", k.Type, k.EmptyAuth, k.Parent)
			}
			p := k.Public
			if p.Type != want.alg || p.KeyBits != want.bits || p.Scheme != want.scheme || p.NameAlg != algSHA256 {
				t.Errorf("public area: %+v", p)
			}
			if !p.Attributes.Sign() || !p.Attributes.UserWithAuth() || p.Attributes.Restricted() {
				t.Errorf("attributes %#x", p.Attributes)
			}
			if (len(k.Secret) != 0) != (want.typ == Importable) {
				t.Errorf("secret of %d octets", len(k.Secret))
			}
			der, err := x509.MarshalPKIXPublicKey(p.Key)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(der, golden(t, want.name+".der")) {
				t.Error("the public key is not the one that the TPM's tools see")
			}
		})
	}
}

func TestNameIsTheTPMs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.name")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		base := strings.TrimSuffix(filepath.Base(file), ".name")
		want := strings.TrimSpace(string(golden(t, base+".name")))
		name := goldenKey(t, base).Public.Name()
		if got := hex.EncodeToString(name); got != want {
			t.Errorf("%s: name %s, the TPM says %s", base, got, want)
		}
		name[0] ^= 1
		if bytes.Equal(name, goldenKey(t, base).Public.Name()) {
			t.Error("the caller can change the name")
		}
	}
}

func TestGoldenRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		want error
		text string
	}{
		{"sealed", ErrSealed, "sealed"},
		{"tools-sealed-object", errUnsupported, "keyed hash"},
		{"tools-hmac", errUnsupported, "keyed hash"},
	}
	for _, test := range tests {
		_, err := Parse(golden(t, test.name+".tpm"))
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestGoldenRoundTrip(t *testing.T) {
	t.Parallel()
	for _, g := range goldens {
		k := goldenKey(t, g.name)
		data, err := k.Marshal()
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		again, err := Parse(data)
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		if !reflect.DeepEqual(k, again) {
			t.Errorf("%s: %+v became %+v", g.name, k, again)
		}
	}
}

// TestMarshalIsOpenSSLs checks that our files have the same octets as those of
// OpenSSL's provider, except for TRUE, which that version writes as 01.
func TestMarshalIsOpenSSLs(t *testing.T) {
	t.Parallel()
	for _, g := range goldens {
		if !strings.HasPrefix(g.name, "openssl-") {
			continue
		}
		their := goldenKey(t, g.name)
		k, err := NewLoadable(their.Pubkey, their.Privkey, their.Parent, their.EmptyAuth)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		der := goldenDER(t, g.name)
		der = bytes.Replace(der, unhex("a003010101"), unhex("a0030101ff"), 1)
		if want := encode(der); !bytes.Equal(got, want) {
			t.Errorf("%s: wrote\n%swant\n%s", g.name, got, want)
		}
		if g.emptyAuth == bytes.Contains(der, unhex("a003010100")) {
			t.Errorf("%s: emptyAuth is not explicit", g.name)
		}
	}
}
