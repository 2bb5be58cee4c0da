package way

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPlain is the length limit of Plain, in octets.
const maxPlain = 256

// maxMarks is how many combining marks in a row Printable keeps on one
// character: more of them grow into the lines around. No language writes more.
const maxMarks = 3

// Plain is Printable for text without another length limit.
func Plain(s string) string { return CutEnd(Printable(s), maxPlain) }

// Printable removes everything that is not visible text: control characters,
// which steer terminals; invisible characters, by which names that look the same
// may differ; marks that reverse the direction of writing, which make a name
// look like another; and private characters, whose looks are unknown.
func Printable(s string) string {
	marks := maxMarks // none without a character to stand on
	return strings.Map(func(r rune) rune {
		switch {
		case !unicode.IsPrint(r) || blank(r):
			return -1
		case !unicode.Is(unicode.M, r):
			marks = 0
		case marks == maxMarks:
			return -1
		default:
			marks++
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// blank reports whether a character counts as printable but is invisible:
// fillers of Hangul, variation selectors, the empty cell of Braille.
func blank(r rune) bool {
	return r == '\u2800' || unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// CutEnd shortens s to limit octets, keeping its beginning.
func CutEnd(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit - len("…")
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
