package prompt

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tpm-agent/tpm-agent/internal/prompt/way"
)

// rightToLeft reports whether a character may move the digits and signs next to
// it to its other side.
func rightToLeft(r rune) bool {
	return r >= 0x590 && r <= 0x8ff || r >= 0xfb1d && r <= 0xfdff || r >= 0xfe70 && r <= 0xfeff ||
		r >= 0x10800 && r <= 0x10fff || r >= 0x1e800 && r <= 0x1efff
}

// word makes one word of a name from outside, with at most limit octets. It is
// quoted if it has more in it than letters, digits and the signs of names, so
// that it cannot continue our text. Characters written from right to left would
// mix with the text around them, and are replaced.
func word(s string, limit int, cut func(string, int) string) string {
	shown := strings.Map(func(r rune) rune {
		if rightToLeft(r) {
			return '?'
		}
		return r
	}, way.Printable(s))
	if shown == "" || strings.ContainsFunc(shown, func(r rune) bool { return !nameRune(r) }) {
		return quoted(cut(shown, limit-2))
	}
	return cut(shown, limit)
}

// quoted quotes a text, in which quotes become single ones.
func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, "'") + `"` }

func nameRune(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-+~/:=%[]", r)
}

// cutBegin shortens s to limit octets, keeping its end: by that, files and hosts
// differ.
func cutBegin(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	begin := len(s) - limit + len("…")
	for ; begin < len(s); begin++ {
		if r, _ := utf8.DecodeRuneInString(s[begin:]); utf8.RuneStart(s[begin]) && !unicode.Is(unicode.M, r) {
			break
		}
	}
	return "…" + s[begin:]
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
