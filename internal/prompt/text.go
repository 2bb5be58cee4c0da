package prompt

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPlain is the length limit of Plain, in octets.
const maxPlain = 256

// maxMarks is how many combining marks in a row printable keeps on one
// character: more of them grow into the lines around. No language writes more.
const maxMarks = 3

// Plain returns the visible text of s, with at most 256 octets.
func Plain(s string) string { return cut(printable(s), maxPlain, beginning) }

// printable removes everything that is not visible text: control characters,
// which steer terminals; invisible characters, by which names that look the same
// may differ; marks that reverse the direction of writing, which make a name
// look like another; and private characters, whose looks are unknown.
func printable(s string) string {
	marks := maxMarks // none without a character to stand on
	return strings.Map(func(r rune) rune {
		switch {
		case !unicode.IsPrint(r):
			return -1
		case r == '\u2800', unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
			return -1 // the empty cell of Braille, selectors, fillers of Hangul: "printable", but invisible
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

// part is the part of a text that cut keeps.
type part bool

const (
	beginning part = false
	ending    part = true // of files and hosts, which differ there
)

// cut shortens s to limit octets.
func cut(s string, limit int, keep part) string {
	if len(s) <= limit {
		return s
	}
	if keep == beginning {
		limit -= len("…")
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		return s[:limit] + "…"
	}
	begin := len(s) - limit + len("…")
	for ; begin < len(s); begin++ {
		if r, _ := utf8.DecodeRuneInString(s[begin:]); utf8.RuneStart(s[begin]) && !unicode.Is(unicode.M, r) {
			break
		}
	}
	return "…" + s[begin:]
}

// rightToLeft has the characters that may move the digits and signs next to them
// to their other side.
var rightToLeft = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x590, Hi: 0x8ff, Stride: 1}, {Lo: 0xfb1d, Hi: 0xfdff, Stride: 1}, {Lo: 0xfe70, Hi: 0xfeff, Stride: 1}},
	R32: []unicode.Range32{{Lo: 0x10800, Hi: 0x10fff, Stride: 1}, {Lo: 0x1e800, Hi: 0x1efff, Stride: 1}},
}

// word makes one word of a name from outside, with at most limit octets. It is
// quoted if it has more in it than letters, digits and the signs of names, so
// that it cannot continue our text. Characters written from right to left would
// mix with the text around them, and are replaced.
func word(s string, limit int, keep part) string {
	shown := strings.Map(func(r rune) rune {
		if unicode.Is(rightToLeft, r) {
			return '?'
		}
		return r
	}, printable(s))
	if shown == "" || strings.ContainsFunc(shown, func(r rune) bool { return !nameRune(r) }) {
		return quoted(cut(shown, limit-2, keep))
	}
	return cut(shown, limit, keep)
}

// quoted quotes a text, in which quotes become single ones.
func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, "'") + `"` }

func nameRune(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-+~/:=%[]", r)
}

// maxColumns is the width of a text that fits in a dialog and in a terminal.
const maxColumns = 60

// fold joins words to lines of at most maxColumns, unless a word is longer. All
// lines but the first are indented, so that no line begins with a word from
// outside.
func fold(words ...string) string {
	var b strings.Builder
	at := 0
	for i, word := range words {
		width := columns(word)
		switch {
		case i == 0:
		case at+1+width <= maxColumns:
			b.WriteByte(' ')
			at++
		default:
			b.WriteString("\n  ")
			at = len("  ")
		}
		b.WriteString(word)
		at += width
	}
	return b.String()
}

// columns returns the width of a text, or a little less.
func columns(s string) (n int) {
	for _, r := range s {
		if r >= 0x1100 && (r < 0x2000 || r >= 0x2e80) {
			n++ // most of these are as wide as two
		}
		n++
	}
	return n
}
