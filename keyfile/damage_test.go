package keyfile

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
)

// ours reports whether err is of one of the two families that Parse may return.
func ours(err error) bool {
	return errors.Is(err, ErrFormat) != errors.Is(err, errUnsupported)
}

// examples returns the DER of every golden file, and of one with all fields.
func examples(t testing.TB) [][]byte {
	var list [][]byte
	for _, g := range goldens {
		list = append(list, goldenDER(t, g.name))
	}
	list = append(list, goldenDER(t, "sealed"), goldenDER(t, "tools-hmac"))
	f := plain(t)
	f.oid = unhex("06 06 67 81 05 0a 01 04")
	f.optional = bytes.Join([][]byte{
		f.optional,
		tlv(0xa1, tlv(0x30, onePolicy)),
		tlv(0xa2, tlv(0x04, unhex("0003 010203"))),
		tlv(0xa3, tlv(0x30, tlv(0x30, tlv(0xa0, tlv(0x0c, []byte("name"))), tlv(0xa1, tlv(0x30, onePolicy))))),
		tlv(0xa4, tlv(0x0c, []byte("description"))),
		tlv(0xa5, tlv(0x01, []byte{0xff})),
	}, nil)
	full := f.der()
	f.optional = append(f.optional, tlv(0xa6, tlv(0x04, []byte("unknown")))...)
	return append(list, full, f.der())
}

// TestTruncated cuts every file after every octet, with the outermost length as it
// was and corrected.
func TestTruncated(t *testing.T) {
	t.Parallel()
	for _, der := range examples(t) {
		for n := range der {
			if _, err := parseDER(der[:n]); !errors.Is(err, ErrFormat) {
				t.Fatalf("%d of %d octets: %v", n, len(der), err)
			}
		}
		head := len(der) - contentLength(der)
		for n := head; n < len(der); n++ {
			if _, err := parseDER(tlv(0x30, der[head:n])); err == nil || !ours(err) {
				t.Fatalf("%d of %d octets in a SEQUENCE: %v", n, len(der), err)
			}
		}
	}
}

// contentLength returns the length of the content of a SEQUENCE of up to 64 KiB.
func contentLength(der []byte) int {
	switch der[1] {
	case 0x81:
		return int(der[2])
	case 0x82:
		return int(der[2])<<8 | int(der[3])
	}
	return int(der[1])
}

func TestTruncatedPEM(t *testing.T) {
	t.Parallel()
	data := golden(t, "openssl-p256.tpm")
	for n := range len(data) - 1 { // the last newline may be missing
		if _, err := Parse(data[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("%d of %d octets: %v", n, len(data), err)
		}
	}
}

// TestMutated sets every octet of every file to several values. The result must be an
// error of the package, or a key that survives a round trip.
func TestMutated(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, der := range examples(t) {
		for at := range der {
			old := der[at]
			for _, b := range []byte{0, 1, 0x7f, 0x80, 0xff, old + 1, old - 1, old ^ 0x80, old ^ 0x20, byte(random.Uint32())} {
				der[at] = b
				checkParsed(t, der)
			}
			der[at] = old
		}
	}
}

func TestMutatedPEM(t *testing.T) {
	t.Parallel()
	data := golden(t, "importable.tpm")
	for at := range data {
		old := data[at]
		for _, b := range []byte{0, '\n', '\r', '-', ':', '=', 'A', 0x80, old + 1} {
			data[at] = b
			if _, err := Parse(data); err != nil && !ours(err) {
				t.Fatalf("octet %d is %#x: %v", at, b, err)
			}
		}
		data[at] = old
	}
}

// checkParsed checks that any octets give either an error of the package or a
// complete key that survives Marshal and Parse.
func checkParsed(t *testing.T, der []byte) {
	t.Helper()
	k, err := parseDER(der)
	if err != nil {
		if !ours(err) {
			t.Fatalf("% x\n%v", der, err)
		}
		return
	}
	k.DisplayDescription()
	if k.Public == nil || k.Public.Key == nil || len(k.Public.Name()) == 0 {
		t.Fatalf("% x\nincomplete: %+v", der, k)
	}
	data, err := k.Marshal()
	if len(k.Unknown) != 0 {
		if err == nil {
			t.Fatalf("% x\nunknown fields %d were lost", der, k.Unknown)
		}
		return
	}
	if err != nil {
		t.Fatalf("% x\n%v", der, err)
	}
	again, err := Parse(data)
	if err != nil {
		t.Fatalf("% x\n%v\n%s", der, err, data)
	}
	k.Parent = writtenParent(k.Parent)
	if !reflect.DeepEqual(k, again) {
		t.Fatalf("%+v became %+v", k, again)
	}
}
