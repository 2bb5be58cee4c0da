package keyfile

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestMarshalInto(t *testing.T) {
	t.Parallel()
	old, err := os.ReadFile("testdata/openssl-p256.tpm")
	if err != nil {
		t.Fatal(err)
	}
	k, err := ReadFile("testdata/openssl-p256-pin.tpm")
	if err != nil {
		t.Fatal(err)
	}
	block, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const end = pemEnd + "\n"
	for name, around := range map[string][2]string{
		"nothing":          {"", ""},
		"text":             {"the key of the old machine\n\n", "# and more\n"},
		"no newline":       {"text\r\n", "the end"},
		"an end before it": {end, end},
		"another block":    {"", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
	} {
		for _, crlf := range []bool{false, true} {
			inside := string(old)
			if crlf {
				inside = strings.ReplaceAll(inside, "\n", "\r\n")
			}
			got, err := k.MarshalInto([]byte(around[0] + inside + around[1]))
			if err != nil || string(got) != around[0]+string(block)+around[1] {
				t.Errorf("%s: %v, %q", name, err, got)
			}
			if again, err := Parse(got); err != nil || !bytes.Equal(again.Privkey, k.Privkey) {
				t.Errorf("%s: reading it: %v", name, err)
			}
		}
	}
	// The last newline may be missing.
	if got, err := k.MarshalInto(bytes.TrimSuffix(old, []byte("\n"))); err != nil || !bytes.Equal(got, block) {
		t.Errorf("%v, %q", err, got)
	}
	for name, file := range map[string]string{
		"no block":   "text",
		"two blocks": string(old) + string(old),
		"no end":     strings.TrimSuffix(string(old), end),
	} {
		if got, err := k.MarshalInto([]byte(file)); err == nil || got != nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, err := k.MarshalInto([]byte(strings.Repeat("x", maxFile-100) + "\n" + string(old))); !errors.Is(err, ErrFormat) {
		t.Errorf("too long: %v", err)
	}
	k.Unknown = []int{7}
	if _, err := k.MarshalInto(old); err == nil {
		t.Error("unknown fields are lost")
	}
}
