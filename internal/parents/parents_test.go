package parents

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

const chip = "device:/dev/tpmrm0"

func name(b byte) []byte { return append([]byte{0, 0x0b}, bytes.Repeat([]byte{b}, 32)...) }

func key(b byte) Key {
	digest := base64.RawStdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32))
	return Key{"SHA256:" + digest, fmt.Sprintf("%016x", b)}
}

func at(b byte, place string) Parent { return Parent{Name: name(b), At: place, TPM: chip} }

// find describes the result of Of.
func find(m *Memory, k Key, tpm string) string {
	p, changed := m.Of(k, tpm)
	if p == nil {
		return "nothing"
	}
	return fmt.Sprintf("%x %s %s %s..%s gone %q changed %v", p.Name[2], p.At, p.TPM, p.First, p.Last, p.Gone, changed)
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func TestKeyOf(t *testing.T) {
	t.Parallel()
	public, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	a, b := KeyOf(public, &keyfile.TPMKey{Privkey: []byte{1}}), KeyOf(public, &keyfile.TPMKey{Privkey: []byte{2}})
	if a == b || a.Fingerprint != b.Fingerprint || a.Fingerprint != ssh.FingerprintSHA256(public) {
		t.Errorf("%v, %v", a, b)
	}
}

func TestSeenAndMissed(t *testing.T) {
	t.Parallel()
	m := new(Memory)
	expect(t, "empty", find(m, key(1), chip), "nothing")
	if !m.Seen(at(1, "owner"), key(1), "2026-11-01") {
		t.Error("the first time is no news")
	}
	if m.Seen(at(1, "owner"), key(1), "2026-11-01") {
		t.Error("the second time on the same day is news")
	}
	if !m.Seen(at(1, "owner"), key(2), "2026-11-02") || !m.Seen(at(1, "owner"), Key{}, "2026-11-03") {
		t.Error("a new key or a new day is no news")
	}
	expect(t, "seen", find(m, key(1), chip), `1 owner device:/dev/tpmrm0 2026-11-01..2026-11-03 gone "" changed false`)
	if !m.Missed(name(1), chip, "2026-11-09") || m.Missed(name(1), chip, "2026-11-10") {
		t.Error("Missed does not report news exactly once")
	}
	if m.Missed(name(1), "software", "2026-11-10") || m.Missed(name(7), chip, "2026-11-10") {
		t.Error("an unknown storage key is news")
	}
	expect(t, "missed", find(m, key(2), chip), `1 owner device:/dev/tpmrm0 2026-11-01..2026-11-03 gone "2026-11-09" changed false`)
	m.Seen(at(1, "owner"), key(1), "2026-11-11")
	expect(t, "back", find(m, key(1), chip), `1 owner device:/dev/tpmrm0 2026-11-01..2026-11-11 gone "" changed false`)
	changed := Key{key(1).Fingerprint, key(9).Private}
	expect(t, "changed file", find(m, changed, chip), `1 owner device:/dev/tpmrm0 2026-11-01..2026-11-11 gone "" changed true`)
}

// TestReplaced checks that a new storage key in a hierarchy ends the old one,
// and that one at a persistent handle does not: the old one may have moved.
func TestReplaced(t *testing.T) {
	t.Parallel()
	m := new(Memory)
	m.Seen(at(1, "owner"), key(1), "2026-11-01")
	m.Seen(at(2, "0x81000001"), key(2), "2026-11-02")
	m.Seen(Parent{Name: name(3), At: "owner", TPM: "software"}, key(3), "2026-11-03")
	for _, k := range []Key{key(1), key(2), key(3)} {
		if p, _ := m.Of(k, chip); p.Gone != "" {
			t.Errorf("%v gone", p)
		}
	}
	m.Seen(at(4, "owner"), Key{}, "2026-11-04")
	m.Seen(at(5, "0x81000001"), Key{}, "2026-11-04")
	expect(t, "owner", find(m, key(1), chip), `1 owner device:/dev/tpmrm0 2026-11-01..2026-11-01 gone "2026-11-04" changed false`)
	expect(t, "handle", find(m, key(2), chip), `2 0x81000001 device:/dev/tpmrm0 2026-11-02..2026-11-02 gone "" changed false`)
	expect(t, "other TPM", find(m, key(3), chip), `3 owner software 2026-11-03..2026-11-03 gone "" changed false`)
	if p := m.Latest("owner", chip); p == nil || p.Name[2] != 4 {
		t.Errorf("latest %v", p)
	}
	if p := m.Latest("endorsement", chip); p != nil {
		t.Errorf("latest %v", p)
	}
	// The first one is back, so the other is gone.
	m.Seen(at(1, "owner"), key(1), "2026-11-04")
	if p := m.Latest("owner", chip); p.Name[2] != 1 || p.Gone != "" || m.parents[len(m.parents)-1] != p {
		t.Errorf("latest %v", p)
	}
}

// TestKeyMoves checks that a key is under one storage key at a time.
func TestKeyMoves(t *testing.T) {
	t.Parallel()
	m := new(Memory)
	m.Seen(at(1, "owner"), key(1), "2026-11-01")
	if m.Seen(at(1, "0x81000001"), key(1), "2026-11-01"); len(m.parents) != 2 || len(m.parents[0].Keys) != 1 {
		t.Error("the key moved although its storage key is the same")
	}
	moved := Key{key(1).Fingerprint, key(2).Private}
	m.Seen(at(3, "endorsement"), moved, "2026-11-02")
	expect(t, "moved", find(m, moved, chip), `3 endorsement device:/dev/tpmrm0 2026-11-02..2026-11-02 gone "" changed false`)
	n := 0
	for _, p := range m.Parents() {
		n += len(p.Keys)
	}
	if n != 1 {
		t.Errorf("the memory contains the key %d times", n)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	m := new(Memory)
	m.Seen(at(1, "owner"), key(1), "2026-11-01")
	m.Seen(at(1, "owner"), key(2), "2026-11-01")
	m.Seen(Parent{Name: name(2), At: "0x81000001", TPM: "swtpm:path=/tmp/with a blank/100%\n"}, key(3), "2026-11-02")
	m.Missed(name(1), chip, "2026-11-03")
	text := m.marshal()
	if got := parse(text); !reflect.DeepEqual(got, m) {
		t.Errorf("%s\nwas read as %v", text, got)
	}
	if n := bytes.Count(text, []byte("\n")); n != strings.Count(heading, "\n")+2 {
		t.Errorf("%d lines:\n%s", n, text)
	}
}

// TestGarbage checks that an invalid line is skipped, and nothing else.
func TestGarbage(t *testing.T) {
	t.Parallel()
	m := new(Memory)
	m.Seen(at(1, "owner"), key(1), "2026-11-01")
	good := strings.TrimPrefix(string(m.marshal()), heading)
	words := strings.Fields(good)
	with := func(i int, word string) string {
		w := append([]string(nil), words...)
		w[i] = word
		return strings.Join(w, " ")
	}
	for _, bad := range []string{
		"", "#", "x", "\x00\xff", good[:20], with(0, "xyz"), with(0, "00"), with(0, strings.Repeat("00", 67)), with(1, "Owner"),
		with(1, strings.Repeat("a", 33)), with(2, "%zz"), with(3, "2026-1-1"), with(4, "yesterday"), with(5, "gone"),
		with(6, "SHA256:"), with(6, "SHA256:=0000000000000000"), with(6, words[6]+"0"), with(6, words[6][1:]), with(6, "MD5:aa=0000000000000000"), good,
	} {
		got := parse([]byte(bad + "\n" + good + bad))
		if len(got.parents) != 1 || !reflect.DeepEqual(got, m) {
			t.Errorf("%q: %v", bad, got.parents)
		}
	}
}

// TestBounds checks that the oldest storage keys are forgotten first.
func TestBounds(t *testing.T) {
	t.Parallel()
	m := new(Memory)
	for i := range 300 {
		p := &Parent{Name: name(byte(i)), At: "owner", TPM: fmt.Sprint("swtpm:path=", i), First: "2026-11-01", Last: "2026-11-01"}
		p.Keys = slices.Repeat([]Key{key(byte(i))}, 80)
		m.parents = append(m.parents, p)
	}
	m.Seen(at(255, "owner"), key(1), "2026-11-02")
	text := m.marshal()
	got := parse(text)
	if n := len(got.parents); len(text) > maxFile || n < 100 || n >= 300 || got.Latest("owner", chip) == nil {
		t.Errorf("%d bytes, %d storage keys", len(text), n)
	}
}

// TestMerge adds the memory of an earlier version to a newer one.
func TestMerge(t *testing.T) {
	t.Parallel()
	m, old := new(Memory), new(Memory)
	m.Seen(at(1, "owner"), key(1), "2026-11-05")
	m.Seen(at(2, "owner"), key(2), "2026-11-06")
	old.Seen(at(1, "owner"), key(1), "2026-11-01")
	old.Seen(at(1, "owner"), key(3), "2026-11-01")
	old.Seen(at(3, "owner"), key(2), "2026-11-02")
	old.Seen(at(3, "owner"), key(4), "2026-11-02")
	old.Seen(at(4, "endorsement"), key(5), "2026-11-09")
	text := old.marshal()
	for range 2 { // the second time changes nothing
		m.merge(parse(text))
		expect(t, "known", find(m, key(1), chip), `1 owner device:/dev/tpmrm0 2026-11-01..2026-11-05 gone "2026-11-06" changed false`)
		expect(t, "known elsewhere", find(m, key(2), chip), `2 owner device:/dev/tpmrm0 2026-11-06..2026-11-06 gone "" changed false`)
		expect(t, "new", find(m, key(3), chip), `1 owner device:/dev/tpmrm0 2026-11-01..2026-11-05 gone "2026-11-06" changed false`)
		expect(t, "new with its storage key", find(m, key(4), chip), `3 owner device:/dev/tpmrm0 2026-11-02..2026-11-02 gone "" changed false`)
		expect(t, "new and more recent", find(m, key(5), chip), `4 endorsement device:/dev/tpmrm0 2026-11-09..2026-11-09 gone "" changed false`)
		if p := m.Latest("owner", chip); p.Name[2] != 2 || len(m.parents) != 4 {
			t.Errorf("of %d storage keys the latest is %v", len(m.parents), p)
		}
	}
}

func FuzzParse(f *testing.F) {
	m := new(Memory)
	m.Seen(at(1, "owner"), key(1), "2026-11-01")
	m.Seen(Parent{Name: name(2), At: "0x81000001", TPM: "swtpm:path=/tmp/a b"}, key(2), "2026-11-01")
	m.Missed(name(1), chip, "2026-11-02")
	f.Add(m.marshal())
	f.Add([]byte("000b owner %20 2026-11-01 2026-11-01 - SHA256:=\n"))
	f.Add([]byte("\xff\x00\r\n\n000b"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := parse(text)
		again := m.marshal()
		if got := parse(again); !reflect.DeepEqual(got, m) {
			t.Fatalf("%q is written as %q, which is read differently", text, again)
		}
		m.Seen(at(1, "owner"), key(1), "2026-11-01")
		if p, changed := m.Of(key(1), chip); p == nil || changed || p.Gone != "" {
			t.Fatalf("a key that was seen is not remembered: %v", p)
		}
	})
}
