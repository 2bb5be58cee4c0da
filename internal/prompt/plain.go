package prompt

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPlain bounds, in octets, what is not bounded otherwise.
const maxPlain = 256

// maxMarks is how many marks in a row are kept on one character: more of them
// grow into the lines around. No language writes more.
const maxMarks = 3

// plain keeps what can be printed and drops the rest: control characters, which
// steer terminals; the invisible ones, of which two names that look the same
// may differ; those that turn the direction of writing, which make a name look
// like another; private ones, of which nobody knows what they look like. Long
// texts are cut.
func plain(s string) string { return cutEnd(printable(s), maxPlain) }

func printable(s string) string {
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

// blank says that a character counts as printable and is not to be seen: fillers
// of Hangul, variation selectors, the empty cell of Braille.
func blank(r rune) bool {
	return r == '\u2800' || unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// rightToLeft says that a character may take the digits and signs beside it
// over to the other side.
func rightToLeft(r rune) bool {
	return r >= 0x590 && r <= 0x8ff || r >= 0xfb1d && r <= 0xfdff || r >= 0xfe70 && r <= 0xfeff ||
		r >= 0x10800 && r <= 0x10fff || r >= 0x1e800 && r <= 0x1efff
}

// word makes a name that came from outside one word of a sentence, of max
// octets at most, which can be told from the words around it: one that has
// more in it than letters, digits and the signs of names stands in quotes.
// That keeps it from writing on in our place. What is written from right to
// left would mix with what stands beside it, and is spelled out.
func word(s string, max int, cut func(string, int) string) string {
	s = printable(s)
	if strings.ContainsFunc(s, rightToLeft) {
		s = strings.Map(func(r rune) rune {
			if rightToLeft(r) {
				return '?'
			}
			return r
		}, s)
		return quoted(cut(s, max-2))
	}
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !nameRune(r) }) {
		return quoted(cut(s, max-2))
	}
	return cut(s, max)
}

// quoted has no other quotes inside than single ones.
func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, "'") + `"` }

func nameRune(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-+~/:=%[]", r)
}

// cutEnd leaves at most max octets, the beginning of s.
func cutEnd(s string, max int) string {
	if len(s) <= max {
		return s
	}
	end := max - len("…")
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

// cutBegin leaves at most max octets, the end of s: of a file or a host that is
// what tells it from others.
func cutBegin(s string, max int) string {
	if len(s) <= max {
		return s
	}
	begin := len(s) - max + len("…")
	for begin < len(s) && (!utf8.RuneStart(s[begin]) || isMark(s[begin:])) {
		begin++
	}
	return "…" + s[begin:]
}

func isMark(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return unicode.Is(unicode.M, r)
}

// maxColumns is what fits into a dialog beside its frame, and into a terminal.
const maxColumns = 60

// fold joins words to lines of at most maxColumns, as far as the words are not
// longer. The second line and those behind it are set in, so that no word that
// came from outside begins a line.
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

// columns is how much of a line a text takes, or a little less.
func columns(s string) (n int) {
	for _, r := range s {
		if r >= 0x1100 && (r < 0x2000 || r >= 0x2e80) {
			n++ // most of these are as wide as two
		}
		n++
	}
	return n
}
