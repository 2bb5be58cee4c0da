package prompt

import (
	"strings"
	"testing"
	"unicode"
)

func TestPlain(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"id_ecdsa.tpm":                    "id_ecdsa.tpm",
		"\x1b]0;x\a":                      "]0;x",
		"a\u202eb\u2066c\u200f":           "abc",
		"\xff\xfe":                        "\uFFFD",
		"a\u00adb\u200bc\ufeff":           "abc",
		"a\ufe0fb\U000e0100c":             "abc",
		"a\U000e0061b\ue000c":             "abc",
		"a\u3164b\u115f\u2800c":           "abc",
		"a\u00a0b\u3000c":                 "abc",
		"\u0301a":                         "a",
		"a" + strings.Repeat("\u0301", 9): "a\u0301\u0301\u0301",
		"a\u0301\u200b\u0301b\u0301":      "a\u0301\u0301b\u0301",
		strings.Repeat("é", 1000):         strings.Repeat("é", 126) + "…",
	} {
		if got := Plain(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"id_ecdsa.tpm", "\x1b]0;x\a", "a\u202eb\u2066c", "\xff\xfe", strings.Repeat("é", 1000), "a\u00adb\u200bc", "\u0301\u0301\u0301\u0301"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Plain(s)
		if len(got) > maxPlain || Plain(got) != got {
			t.Errorf("%q became %q", s, got)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) || unicode.In(r, unicode.C, unicode.Bidi_Control, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) {
				t.Errorf("%q has %U", got, r)
			}
		}
	})
}
