package restrict

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMatches(t *testing.T) {
	t.Parallel()
	tests := []struct {
		s, pattern string
		want       bool
	}{
		{"", "", true},
		{"a", "", false},
		{"", "*", true},
		{"", "**", true},
		{"", "?", false},
		{"a", "a", true},
		{"a", "A", false},
		{"ab", "a", false},
		{"a", "ab", false},
		{"abc", "a?c", true},
		{"abc", "a*", true},
		{"abc", "*c", true},
		{"abc", "*b*", true},
		{"abc", "*b", false},
		{"aab", "*ab", true},
		{"abab", "a*b?b", true},
		{"abb", "a*b?b", false},
		{"mississippi", "m*iss*ip*", true},
		{"mississippi", "m*iss*iss*iss*", false},
		{"a*c", "a\\*c", false},
		{"\xc3\xa4", "?", false}, // bytes, not letters
		{"\xc3\xa4", "??", true},
		{"a", "a***", true},
	}
	for _, tt := range tests {
		w := walk{steps: maxSteps}
		if got := w.matches(tt.s, tt.pattern); got != tt.want {
			t.Errorf("%q and %q: %v", tt.s, tt.pattern, got)
		}
	}
}

// FuzzMatches compares with regular expressions.
func FuzzMatches(f *testing.F) {
	f.Add("mississippi", "m*iss?*p*")
	f.Add("", "*?")
	f.Fuzz(func(t *testing.T, s, pattern string) {
		if len(s) > 1<<10 || len(pattern) > 1<<8 {
			return
		}
		// One letter for each byte: regexp matches letters.
		var expr, letters strings.Builder
		for i := range len(s) {
			letters.WriteRune(rune(s[i]))
		}
		for i := range len(pattern) {
			switch c := pattern[i]; c {
			case '*':
				expr.WriteString("(?s:.*)")
			case '?':
				expr.WriteString("(?s:.)")
			default:
				expr.WriteString(regexp.QuoteMeta(string(rune(c))))
			}
		}
		re, err := regexp.Compile("^(?:" + expr.String() + ")\\z")
		if err != nil {
			t.Skip(err) // too large for regexp
		}
		w := walk{steps: maxSteps}
		if got := w.matches(s, pattern); got != re.MatchString(letters.String()) {
			t.Errorf("%q and %q: %v", s, pattern, got)
		}
	})
}

// TestMatchesBounded has a comparison that would take hours: it ends without a
// match.
func TestMatchesBounded(t *testing.T) {
	t.Parallel()
	s := strings.Repeat("a", 1<<18)
	pattern := "*" + strings.Repeat("a", 1<<17) + "b"
	w := walk{steps: maxSteps, now: time.Now()}
	if w.matches(s, pattern) || w.steps > 0 {
		t.Errorf("%d steps are left", w.steps)
	}
	if w.matches("a", "a") {
		t.Error("a match without steps left")
	}
}
