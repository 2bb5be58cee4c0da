package keyfile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// unhex decodes hexadecimal digits and blanks.
func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// tlv returns one element of DER. It does not use the library under test.
func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	n := len(content)
	switch {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	}
	return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
}

// file is a key file in parts, each a whole element. Empty parts are left out.
type file struct {
	oid, optional, parent, pubkey, privkey, rest []byte
}

// plain returns a correct file of a P-256 key without PIN.
func plain(t testing.TB) file {
	k := goldenKey(t, "openssl-p256")
	return file{
		oid:      unhex("06 06 67 81 05 0a 01 03"),
		optional: unhex("a0 03 01 01 ff"),
		parent:   unhex("02 04 40 00 00 01"),
		pubkey:   tlv(0x04, k.Pubkey),
		privkey:  tlv(0x04, k.Privkey),
	}
}

func (f file) der() []byte {
	return tlv(0x30, f.oid, f.optional, f.parent, f.pubkey, f.privkey, f.rest)
}

func (f file) parse() (*TPMKey, error) { return Parse(encode(f.der())) }

// mustParse returns the key after a round trip, which must keep it.
func (f file) mustParse(t *testing.T) *TPMKey {
	t.Helper()
	k, err := f.parse()
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Unknown) != 0 {
		return k
	}
	data, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	want := *k
	want.Parent = writtenParent(k.Parent)
	if !reflect.DeepEqual(&want, again) {
		t.Fatalf("%+v became %+v", k, again)
	}
	return k
}

// writtenParent returns the parent as Marshal writes it.
func writtenParent(parent uint32) uint32 {
	if parent == 0 || parent&handleTypeMask == handleTransient {
		return ParentOwner
	}
	return parent
}

// wantError checks that err wraps want, and contains the texts.
func wantError(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
}

func TestErrorKinds(t *testing.T) {
	t.Parallel()
	for _, err := range []error{ErrNoKey, ErrSealed, ErrLegacy} {
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%v does not wrap ErrFormat", err)
		}
	}
	if errors.Is(errUnsupported, ErrFormat) || errors.Is(ErrNotRegular, ErrFormat) {
		t.Error("an error that is not about damage wraps ErrFormat")
	}
	if errors.Is(ErrNoKey, ErrSealed) || errors.Is(ErrSealed, ErrLegacy) {
		t.Error("kinds of error are mixed up")
	}
}

func TestEmptyAuth(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{
		"":               false,
		"a0 03 01 01 00": false,
		"a0 03 01 01 01": true,
		"a0 03 01 01 ff": true,
		"a0 03 01 01 80": true,
	}
	for optional, want := range tests {
		f := plain(t)
		f.optional = unhex(optional)
		if got := f.mustParse(t).EmptyAuth; got != want {
			t.Errorf("%q: emptyAuth %v", optional, got)
		}
	}
	for _, optional := range []string{"a0 02 01 00", "a0 04 01 02 00 00", "a0 00", "a0 03 02 01 00", "a0 06 01 01 ff 01 01 ff", "80 01 ff"} {
		f := plain(t)
		f.optional = unhex(optional)
		_, err := f.parse()
		wantError(t, err, ErrFormat, "emptyAuth at octet ")
	}
}

func TestMarshalWritesTrueAsDER(t *testing.T) {
	t.Parallel()
	f := plain(t)
	want := encode(f.der())
	f.optional = unhex("a0 03 01 01 01")
	got, err := f.mustParse(t).Marshal()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v\n%s", err, got)
	}
	for _, line := range strings.Split(string(got), "\n") {
		if len(line) > 64 {
			t.Errorf("a line of %d columns", len(line))
		}
	}
}

func TestParent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		der           string
		want, written uint32
	}{
		{"02 04 40 00 00 01", ParentOwner, ParentOwner},
		{"02 04 40 00 00 07", ParentNull, ParentNull},
		{"02 04 40 00 00 0b", ParentEndorsement, ParentEndorsement},
		{"02 04 40 00 00 0c", ParentPlatform, ParentPlatform},
		{"02 05 00 81 00 00 01", 0x81000001, 0x81000001},
		{"02 04 81 00 00 01", 0x81000001, 0x81000001}, // as a negative number
		{"02 05 00 81 ff ff ff", 0x81ffffff, 0x81ffffff},
		{"02 01 00", 0, ParentOwner},
		{"02 04 80 00 00 00", 0x80000000, ParentOwner},
		{"02 05 00 80 ff ff ff", 0x80ffffff, ParentOwner},
	}
	for _, test := range tests {
		f := plain(t)
		f.parent = unhex(test.der)
		k := f.mustParse(t)
		if k.Parent != test.want {
			t.Errorf("%s: parent %#x", test.der, k.Parent)
		}
		data, _ := k.Marshal()
		again, err := Parse(data)
		if err != nil || again.Parent != test.written {
			t.Errorf("%s: written as %#x, %v", test.der, again.Parent, err)
		}
	}
}

func TestParentRefused(t *testing.T) {
	t.Parallel()
	for _, der := range []string{
		"", "02 00", "02 01 01", "02 05 01 40 00 00 01", "02 05 ff 7f ff ff ff",
		"02 09 00 81 00 00 01 00 00 00 00", "02 05 00 40 00 00 01", "02 04 40 00 00 0a",
		"02 04 40 00 00 00", "02 04 01 00 00 00", "02 05 00 82 00 00 00", "02 01 ff", "0a 01 00",
		"22 04 40 00 00 01",
	} {
		f := plain(t)
		f.parent = unhex(der)
		_, err := f.parse()
		wantError(t, err, ErrFormat, "parent at octet ")
	}
}

func TestObjectIdentifiers(t *testing.T) {
	t.Parallel()
	f := plain(t)
	f.oid = unhex("06 05 67 81 05 0a 02")
	if k := f.mustParse(t); k.Type != Loadable {
		t.Errorf("the early identifier gives %v", k.Type)
	}
	f.oid = unhex("06 06 67 81 05 0a 01 05")
	_, err := f.parse()
	wantError(t, err, ErrSealed)
	for _, oid := range []string{
		"06 06 67 81 05 0a 01 06", "06 06 67 81 05 0a 01 00", "06 05 67 81 05 0a 01", "06 05 67 81 05 0a 03",
		"06 00", "", "06 07 67 81 05 0a 01 03 00", "06 06 2a 81 05 0a 01 03", "02 01 03",
	} {
		f.oid = unhex(oid)
		_, err := f.parse()
		wantError(t, err, ErrFormat, "type at octet ")
	}
}

// TestOldLayout parses the fields of a TSS2 KEY BLOB, in a block with its name and
// with the new one.
func TestOldLayout(t *testing.T) {
	t.Parallel()
	f := plain(t)
	pubkey := tlv(0xa2, f.pubkey)
	for _, parent := range []string{"", "a1 06 02 04 40 00 00 01"} {
		old := tlv(0x30, unhex("06 05 67 81 05 0a 02"), f.optional, unhex(parent), pubkey, f.privkey)
		_, err := Parse(encode(old))
		wantError(t, err, ErrLegacy, "TSS2 KEY BLOB")
		_, err = Parse(pem.EncodeToMemory(&pem.Block{Type: "TSS2 KEY BLOB", Bytes: old}))
		wantError(t, err, ErrLegacy, "TSS2 KEY BLOB")
	}
	_, err := Parse(pem.EncodeToMemory(&pem.Block{Type: "TSS KEY BLOB", Bytes: []byte{1}}))
	wantError(t, err, ErrLegacy, "TPM 1.2")
	f.oid = unhex("06 05 67 81 05 0a 02")
	f.optional = append(f.optional, tlv(0xa1, tlv(0x30, onePolicy))...)
	if k := f.mustParse(t); len(k.Policy) != 1 {
		t.Errorf("a policy under the early identifier: %+v", k.Policy)
	}
}

var onePolicy = tlv(0x30, unhex("a0 04 02 02 01 6b"), unhex("a1 02 04 00"))

func TestPolicies(t *testing.T) {
	t.Parallel()
	second := tlv(0x30, unhex("a0 07 02 05 00 a0 00 01 6f"), unhex("a1 03 04 01 05"))
	policies := tlv(0x30, onePolicy, second)
	auth := tlv(0x30,
		tlv(0x30, tlv(0xa0, tlv(0x0c, []byte("first"))), tlv(0xa1, policies)),
		tlv(0x30, tlv(0xa1, tlv(0x30, onePolicy))))
	f := plain(t)
	f.optional = bytes.Join([][]byte{f.optional, tlv(0xa1, policies), tlv(0xa3, auth)}, nil)
	k := f.mustParse(t)
	want := []Policy{{0x16b, []byte{}}, {0xa000016f, []byte{5}}}
	if !reflect.DeepEqual(k.Policy, want) {
		t.Errorf("policy %+v", k.Policy)
	}
	if wantAuth := []AuthPolicy{{"first", want}, {"", want[:1]}}; !reflect.DeepEqual(k.AuthPolicy, wantAuth) {
		t.Errorf("authPolicy %+v", k.AuthPolicy)
	}
}

func TestPoliciesRefused(t *testing.T) {
	t.Parallel()
	for _, optional := range [][]byte{
		tlv(0xa1),
		tlv(0xa1, onePolicy), // without SEQUENCE OF
		tlv(0xa1, tlv(0x30, unhex("30 00"))),
		tlv(0xa1, tlv(0x30, tlv(0x30, unhex("a0 03 02 01 ff a1 02 04 00")))),
		tlv(0xa1, tlv(0x30, tlv(0x30, unhex("a0 07 02 05 01 00 00 00 00 a1 02 04 00")))),
		tlv(0xa1, tlv(0x30, tlv(0x30, unhex("a0 04 02 02 01 6b")))),
		tlv(0xa1, tlv(0x30, tlv(0x30, unhex("a0 07 02 02 01 6b 02 01 00 a1 02 04 00")))),
		tlv(0xa1, tlv(0x30, tlv(0x30, unhex("a0 04 02 02 01 6b a1 02 04 00 05 00")))),
		tlv(0xa3, tlv(0x30, tlv(0x30))),
		tlv(0xa3, tlv(0x30, tlv(0x30, unhex("a0 00"), tlv(0xa1, tlv(0x30, onePolicy))))),
		tlv(0xa3, tlv(0x30, tlv(0x30, tlv(0xa1, tlv(0x30, onePolicy)), unhex("05 00")))),
	} {
		f := plain(t)
		f.optional = optional
		_, err := f.parse()
		wantError(t, err, ErrFormat, "olicy", "at octet ")
	}
}

// TestLongPolicies checks that a file cannot make the TPM run an unlimited number of
// commands.
func TestLongPolicies(t *testing.T) {
	t.Parallel()
	long := func(n int) []byte { return tlv(0x30, bytes.Repeat(onePolicy, n)) }
	f := plain(t)
	f.optional = bytes.Join([][]byte{tlv(0xa1, long(maxPolicy)), tlv(0xa3, tlv(0x30, tlv(0x30, tlv(0xa1, long(maxPolicy)))))}, nil)
	k := f.mustParse(t)
	if len(k.Policy) != maxPolicy || len(k.AuthPolicy[0].Policy) != maxPolicy {
		t.Errorf("%d and %d commands", len(k.Policy), len(k.AuthPolicy[0].Policy))
	}
	for _, optional := range [][]byte{
		tlv(0xa1, long(maxPolicy+1)),
		tlv(0xa3, tlv(0x30, tlv(0x30, tlv(0xa1, long(maxPolicy+1))))),
	} {
		f.optional = optional
		_, err := f.parse()
		wantError(t, err, ErrFormat, "more than 32 commands")
	}
	more := *k
	more.Policy = append(k.Policy[:maxPolicy:maxPolicy], Policy{CommandCode: policyAuthValue})
	_, err := more.Marshal()
	wantError(t, err, ErrFormat, "more than 32 commands")
	more = *k
	more.AuthPolicy = []AuthPolicy{{Policy: append(k.Policy[:maxPolicy:maxPolicy], Policy{CommandCode: policyAuthValue})}}
	_, err = more.Marshal()
	wantError(t, err, ErrFormat, "more than 32 commands")
}

func TestDescription(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ raw, shown string }{
		{"me@host", "me@host"},
		{"Schlüssel 鍵", "Schlüssel 鍵"},
		{"\x1b[31mred\x07", "[31mred"},
		{"user\u202egnp.exe", "usergnp.exe"},
		{"\u2066a\u2069\u200f\u200b\ufeff", "a"},
		{"two\nlines\tand\u2028more", "two lines and more"},
		{"latin-1 \xfc", "latin-1 \ufffd"},
		{"a\x00b\u009bc", "abc"},
		{strings.Repeat("x", maxDescription), strings.Repeat("x", maxDescription)},
	} {
		f := plain(t)
		f.optional = tlv(0xa4, tlv(0x0c, []byte(test.raw)))
		k := f.mustParse(t)
		if k.Description != test.raw {
			t.Errorf("description %q, want %q", k.Description, test.raw)
		}
		if got := k.DisplayDescription(); got != test.shown {
			t.Errorf("%q is shown as %q, want %q", test.raw, got, test.shown)
		}
	}
	f := plain(t)
	f.optional = tlv(0xa4, tlv(0x0c, make([]byte, maxDescription+1)))
	_, err := f.parse()
	wantError(t, err, ErrFormat, "description at octet ", "1024")
	f.optional = tlv(0xa4, tlv(0x04, []byte("octets")))
	_, err = f.parse()
	wantError(t, err, ErrFormat, "description at octet ")
}

func TestRSAParent(t *testing.T) {
	t.Parallel()
	for octet, want := range map[byte]bool{0: false, 1: true, 0xff: true} {
		f := plain(t)
		f.optional = append(f.optional, tlv(0xa5, tlv(0x01, []byte{octet}))...)
		if k := f.mustParse(t); k.RSAParent != want {
			t.Errorf("%#x gives %v", octet, k.RSAParent)
		}
	}
}

func TestUnknownFields(t *testing.T) {
	t.Parallel()
	f := plain(t)
	f.optional = bytes.Join([][]byte{f.optional, unhex("a5 03 01 01 00"), tlv(0xa6, tlv(0x04, []byte("parent's name"))), unhex("87 00"), tlv(0xbe, nil)}, nil)
	k := f.mustParse(t)
	if !reflect.DeepEqual(k.Unknown, []int{6, 7, 30}) {
		t.Errorf("unknown %d", k.Unknown)
	}
	if _, err := k.Marshal(); err == nil || !strings.Contains(err.Error(), "[6 7 30]") {
		t.Errorf("Marshal: %v", err)
	}
}

func TestFieldOrder(t *testing.T) {
	t.Parallel()
	for _, optional := range []string{
		"a0 03 01 01 ff a0 03 01 01 ff", // twice
		"a5 03 01 01 00 a0 03 01 01 ff", // descending
		"a7 00 a6 00",
		"bf 1f 00",    // a tag of two octets
		"a6 82 10 00", // longer than the file
	} {
		f := plain(t)
		f.optional = unhex(optional)
		_, err := f.parse()
		wantError(t, err, ErrFormat, "at octet ")
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	secret := tlv(0xa2, tlv(0x04, unhex("00 03 01 02 03")))
	f := plain(t)
	f.oid = unhex("06 06 67 81 05 0a 01 04")
	_, err := f.parse()
	wantError(t, err, ErrFormat, "secret at octet ", "missing")
	f.optional = append(f.optional, secret...)
	k := f.mustParse(t)
	if k.Type != Importable || !bytes.Equal(k.Secret, unhex("0003010203")) {
		t.Errorf("%v with secret %x", k.Type, k.Secret)
	}
	f.oid = plain(t).oid
	_, err = f.parse()
	wantError(t, err, ErrFormat, "secret at octet ", "loadable")
	for _, bad := range [][]byte{nil, {0}, {0, 0}, {0, 2, 1}, {0, 1, 1, 1}} {
		f.oid = unhex("06 06 67 81 05 0a 01 04")
		f.optional = tlv(0xa2, tlv(0x04, bad))
		_, err = f.parse()
		wantError(t, err, ErrFormat, "secret at octet ")
	}
}

func TestBufferSizes(t *testing.T) {
	t.Parallel()
	sized := func(n int) []byte {
		return append(binary.BigEndian.AppendUint16(nil, uint16(n)), make([]byte, n)...)
	}
	f := plain(t)
	f.privkey = tlv(0x04, sized(2048))
	f.mustParse(t)
	for _, bad := range [][]byte{sized(2049), sized(0), {}, {0}, {0, 2, 1}, {0, 1, 1, 1}} {
		f := plain(t)
		f.privkey = tlv(0x04, bad)
		_, err := f.parse()
		wantError(t, err, ErrFormat, "privkey at octet ")
		f = plain(t)
		f.pubkey = tlv(0x04, bad)
		_, err = f.parse()
		wantError(t, err, ErrFormat, "pubkey at octet ")
	}
}

func TestNothingAfterTheKey(t *testing.T) {
	t.Parallel()
	f := plain(t)
	f.rest = unhex("05 00")
	_, err := f.parse()
	wantError(t, err, ErrFormat, "2 octets too many")
	_, err = Parse(encode(append(plain(t).der(), 0)))
	wantError(t, err, ErrFormat, "1 octets too many")
}

func TestErrorSaysWhere(t *testing.T) {
	t.Parallel()
	f := plain(t)
	der := f.der()
	at := bytes.Index(der, f.privkey)
	f.privkey = []byte{0x05, 0}
	_, err := f.parse()
	// The content is shorter now, and so is the header of the SEQUENCE.
	wantError(t, err, ErrFormat, fmt.Sprintf("privkey at octet %d", at-1))
}

func TestPEM(t *testing.T) {
	t.Parallel()
	block := string(encode(plain(t).der()))
	lines := strings.SplitAfter(block, "\n")
	for name, data := range map[string]string{
		"plain":          block,
		"text around":    "a key\n\n" + block + "see above\n",
		"CRLF":           strings.ReplaceAll(block, "\n", "\r\n"),
		"no newline":     strings.TrimSuffix(block, "\n"),
		"blanks":         strings.ReplaceAll(block, "\n", " \t\n"),
		"other block":    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + block,
		"one long line":  lines[0] + strings.ReplaceAll(strings.Join(lines[1:len(lines)-2], ""), "\n", "") + "\n" + lines[len(lines)-2],
		"legacy follows": block + "-----BEGIN TSS2 KEY BLOB-----\n",
	} {
		k, err := Parse([]byte(data))
		if err != nil || !bytes.Equal(k.Pubkey, goldenKey(t, "openssl-p256").Pubkey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPEMRefused(t *testing.T) {
	t.Parallel()
	block := string(encode(plain(t).der()))
	begin := pemBegin + "\n"
	for _, test := range []struct {
		name, data string
		want       error
		text       string
	}{
		{"empty", "", ErrNoKey, ""},
		{"text", "ssh-ed25519 AAAA", ErrNoKey, ""},
		{"other PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ErrNoKey, ""},
		{"two", block + block, ErrFormat, "second"},
		{"nested", begin + block, ErrFormat, "line 2"},
		{"no end", strings.TrimSuffix(block, pemEnd+"\n"), ErrFormat, "line 1: no END"},
		{"other end", begin + "AAAA\n-----END CERTIFICATE-----\n", ErrFormat, "line 1"},
		{"header", "x\n" + begin + "Proc-Type: 4,ENCRYPTED\n\nAAAA\n" + pemEnd, ErrFormat, "line 3: a header"},
		{"not base64", begin + "A?AA\n" + pemEnd, ErrFormat, "base64"},
		{"too few digits", begin + "AAA\n" + pemEnd, ErrFormat, "base64"},
		{"nothing inside", begin + pemEnd, ErrFormat, "key at octet 0"},
		{"too long", block + strings.Repeat("x", maxFile), ErrFormat, "65536"},
		{"DER", string(plain(t).der()), ErrNoKey, ""},
	} {
		_, err := Parse([]byte(test.data))
		t.Run(test.name, func(t *testing.T) { wantError(t, err, test.want, test.text) })
		if test.want == ErrFormat && errors.Is(err, ErrNoKey) {
			t.Errorf("%s: a damaged key file passes for something else", test.name)
		}
	}
}

func TestNewLoadable(t *testing.T) {
	t.Parallel()
	g := goldenKey(t, "openssl-p256-pin")
	for _, parent := range []uint32{ParentOwner, ParentEndorsement, ParentPlatform, 0x81000001} {
		k, err := NewLoadable(g.Pubkey, g.Privkey, parent, false)
		if err != nil || k.Parent != parent || k.Public == nil || k.Type != Loadable {
			t.Errorf("%#x: %+v, %v", parent, k, err)
		}
	}
	for _, parent := range []uint32{0, ParentNull, 0x80000000, 0x40000000, 1} {
		_, err := NewLoadable(g.Pubkey, g.Privkey, parent, false)
		wantError(t, err, ErrFormat, "parent")
	}
	_, err := NewLoadable(g.Pubkey[:10], g.Privkey, ParentOwner, false)
	wantError(t, err, ErrFormat, "pubkey")
	_, err = NewLoadable(g.Pubkey, g.Privkey[2:], ParentOwner, false)
	wantError(t, err, ErrFormat, "privkey")
	_, err = NewLoadable(goldenUnsupported(t), g.Privkey, ParentOwner, false)
	wantError(t, err, errUnsupported, "keyed hash")
	pubkey := bytes.Clone(g.Pubkey)
	k, err := NewLoadable(pubkey, g.Privkey, ParentOwner, false)
	if err != nil {
		t.Fatal(err)
	}
	clear(pubkey)
	if !bytes.Equal(k.Pubkey, g.Pubkey) {
		t.Error("the key changes with the caller's slice")
	}
}

// goldenUnsupported is the TPM2B_PUBLIC of an HMAC key.
func goldenUnsupported(t *testing.T) []byte {
	der := goldenDER(t, "tools-hmac")
	at := bytes.Index(der, unhex("0008 000b"))
	size := int(binary.BigEndian.Uint16(der[at-2:]))
	return der[at-2 : at+size]
}

func TestMarshalChecks(t *testing.T) {
	t.Parallel()
	good := goldenKey(t, "openssl-p256")
	for name, change := range map[string]func(*TPMKey){
		"type":        func(k *TPMKey) { k.Type = 0 },
		"secret":      func(k *TPMKey) { k.Secret = []byte{0, 1, 1} },
		"description": func(k *TPMKey) { k.Description = strings.Repeat("x", maxDescription+1) },
		"parent":      func(k *TPMKey) { k.Parent = 7 },
		"pubkey":      func(k *TPMKey) { k.Pubkey = k.Pubkey[:20] },
		"privkey":     func(k *TPMKey) { k.Privkey = nil },
		"octets":      func(k *TPMKey) { k.Policy = []Policy{{1, make([]byte, maxFile)}} },
	} {
		k := *good
		change(&k)
		_, err := k.Marshal()
		wantError(t, err, ErrFormat, "write key file", name)
	}
	k := *good
	k.Public = nil
	if _, err := k.Marshal(); err != nil || k.Public != nil {
		t.Errorf("Marshal goes by Public, or sets it: %v", err)
	}
	if Type(0).String() != "unknown" || Loadable.String() != "loadable" || Importable.String() != "importable" {
		t.Error("names of types")
	}
}
