package keyops

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// h2 is a storage key that no TPM has: the P-256 template of the key file draft
// with the generator as its point.
func h2(t testing.TB) *tpmkey.StorageKey {
	t.Helper()
	const head = "\x00\x5a\x00\x23\x00\x0b\x00\x03\x04\x72\x00\x00\x00\x06\x00\x80\x00\x43\x00\x10\x00\x03\x00\x10"
	const x = "\x6b\x17\xd1\xf2\xe1\x2c\x42\x47\xf8\xbc\xe6\xe5\x63\xa4\x40\xf2\x77\x03\x7d\x81\x2d\xeb\x33\xa0\xf4\xa1\x39\x45\xd8\x98\xc2\x96"
	const y = "\x4f\xe3\x42\xe2\xfe\x1a\x7f\x9b\x8e\xe7\xeb\x4a\x7c\x0f\x9e\x16\x2b\xce\x33\x57\x6b\x31\x5e\xce\xcb\xb6\x40\x68\x37\xbf\x51\xf5"
	key, err := tpmkey.ParseStorageKey([]byte(head + "\x00\x20" + x + "\x00\x20" + y))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestSRKForms: what srk prints is read back as the same key, in every form.
func TestSRKForms(t *testing.T) {
	t.Parallel()
	key := h2(t)
	block, err := bareStorageKey(key)
	if err != nil {
		t.Fatal(err)
	}
	printed := srkHeader(key, 0x81000005, false) + string(block)
	for name, test := range map[string]struct {
		data   string
		handle uint32
	}{
		"printed": {printed, 0x81000005},
		"CRLF":    {strings.ReplaceAll(printed, "\n", "\r\n"), 0x81000005},
		"PEM":     {string(block), 0},
		"TPM2B":   {string(key.Marshal()), 0},
	} {
		got, err := parseTarget([]byte(test.data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(got.key.Marshal(), key.Marshal()) || got.handle != test.handle {
			t.Errorf("%s: %x, %#x", name, got.key.Marshal(), got.handle)
		}
	}
}

// TestStorageFingerprint: it is the hash of the public area, all of it.
func TestStorageFingerprint(t *testing.T) {
	t.Parallel()
	key := h2(t)
	got := storageFingerprint(key)
	sum := sha256.Sum256(key.Marshal()[2:])
	if got != "SHA256:"+base64.RawStdEncoding.EncodeToString(sum[:]) {
		t.Error(got)
	}
	// The same public key with another attribute is another storage key.
	area := key.Marshal()
	area[8] &^= 0x04 // noDA, in the second octet of the attributes
	other, err := tpmkey.ParseStorageKey(area)
	if err != nil {
		t.Fatal(err)
	}
	if storageFingerprint(other) == got {
		t.Error("the attributes do not count")
	}
	if _, err := bareStorageKey(other); err == nil || !strings.Contains(err.Error(), "not enough") {
		t.Errorf("its public key alone would be taken for another: %v", err)
	}
}

// TestTargetParent: the command line wins over the file.
func TestTargetParent(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		handle uint32
		asked  string
		want   uint32
	}{
		{0, "owner", 0x40000001},
		{0x81000005, "owner", 0x81000005},
		{0x81000005, "0x81000001", 0x81000001},
		{0, "endorsement", 0x4000000b},
	} {
		if got, err := (&target{handle: test.handle}).parent(test.asked); err != nil || got != test.want {
			t.Errorf("%+v: %#x, %v", test, got, err)
		}
	}
}

// TestSRKIsTheTPMs: a key that is wrapped to what srk reads loads in that TPM.
func TestSRKIsTheTPMs(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := tpmtest.Start(t)
	sys := &term.System{TPM: server.Address()}
	addr, err := sys.Address()
	if err != nil {
		t.Fatal(err)
	}
	tpm := tpmkey.New(addr.Open)
	defer tpm.Close()
	for _, parent := range []uint32{0x40000001, 0x4000000b} {
		key, handle, err := tpm.StorageKey(ctx, parent)
		if err != nil || handle != parent {
			t.Fatalf("%#x: %#x, %v", parent, handle, err)
		}
		block, err := bareStorageKey(key)
		if err != nil {
			t.Fatal(err)
		}
		to, err := parseTarget([]byte(srkHeader(key, handle, true) + string(block)))
		if err != nil {
			t.Fatal(err)
		}
		named, err := to.parent("owner")
		if err != nil {
			t.Fatal(err)
		}
		private, err := makeInMemory(tpmkey.ECDSAP384)
		if err != nil {
			t.Fatal(err)
		}
		wrapped, err := tpmkey.Wrap(to.key, private, tpmkey.WrapOptions{Parent: named})
		if err != nil {
			t.Fatal(err)
		}
		made, err := tpm.Import(ctx, wrapped)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&op{tpm: tpm}).try(ctx, made, nil, nil); err != nil {
			t.Error(err)
		}
	}
}

// FuzzParseTarget: whatever is handed over as a storage key, what is taken for
// one can be written and read again.
func FuzzParseTarget(f *testing.F) {
	key := h2(f)
	block, err := bareStorageKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key.Marshal())
	f.Add(block)
	f.Add([]byte(srkHeader(key, 0x81000001, true) + string(block)))
	f.Add([]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGw\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		to, err := parseTarget(data)
		if err != nil {
			return
		}
		again, err := parseTarget(to.key.Marshal())
		if err != nil || storageFingerprint(again.key) != storageFingerprint(to.key) {
			t.Fatalf("read again: %v", err)
		}
		if der, err := x509.MarshalPKIXPublicKey(to.key.Public()); err == nil {
			bare := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
			if _, err := parseTarget(bare); err != nil && !errors.Is(err, tpmkey.ErrNotStorageKey) {
				t.Fatalf("as PEM: %v", fmt.Errorf("%s: %w", bare, err))
			}
		}
	})
}

func TestStorageKey(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]uint32{
		"owner": 0x40000001, "endorsement": 0x4000000b, "0x81000001": 0x81000001, "2164260865": 0x81000001,
	} {
		if got, err := parentHandle(name); err != nil || got != want {
			t.Errorf("%s: %#x, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "Owner", "null", "platform", "0", "0x80000001", "0x82000000", "-1", "0x1810000010", "81000001"} {
		if got, err := parentHandle(name); term.Report(io.Discard, "", err) != 2 {
			t.Errorf("%s: %#x, %v", name, got, err)
		}
	}
}
