package pinentry

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// answers reads what a program says when it is asked for a PIN.
func answers(from io.Reader) (pin []byte, err error) {
	return (&conn{out: from}).answer(make([]byte, 0, prompt.MaxAnswer))
}

func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"OK\n", "OK Pleased to meet you\r\n", "D 1234\nOK\n", "D 12\n# x\nD %334%0A\nS X\n\nOK\n",
		errCancelled, errFully, errTimedOut, errNoTTY, "ERR\n", "ERR x\n", "ERR 4294967295 \x1b[2J\n",
		"INQUIRE QUALITY 1234\nOK\n", "D 12%00\nOK\n", "D 1%\nOK\n", "D 1%zz\nOK\n", "END\n", "", "\x00", "D 12",
		"D " + strings.Repeat("x", 998) + "\r\nOK\n", "D " + strings.Repeat("x", 999) + "\nOK\n",
		strings.Repeat("D 0123456789012345678901234567890123456789\n", 30) + "OK\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		pin, err := answers(bytes.NewReader(said))
		if len(pin) > prompt.MaxAnswer {
			t.Errorf("a PIN of %d octets", len(pin))
		}
		if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("the error has control characters in it: %q", err)
		}
	})
}

// FuzzText tests that a text of any length fits in a line, and is shown as it is
// or shortened.
func FuzzText(f *testing.F) {
	for _, seed := range []string{"", "Enter PIN\nfor 100%", strings.Repeat("%", 2000), strings.Repeat("ä\n", 999)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			return
		}
		line := withText("SETDESC", text)
		if len(line) > maxLine || !utf8.ValidString(line) || strings.Contains(line, "\n") {
			t.Fatalf("got %q", line)
		}
		shown, err := url.PathUnescape(strings.TrimPrefix(line, "SETDESC "))
		if err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if cut, ok := strings.CutSuffix(shown, "…"); shown != text && (!ok || !strings.HasPrefix(text, cut) || len(line) < maxLine-6) {
			t.Errorf("%q is shown as %q", text, shown)
		}
	})
}

// The array for a PIN never moves, which would leave a copy behind.
func TestPINIsNotMoved(t *testing.T) {
	room := make([]byte, 0, 8)
	data, err := appendData(room, []byte("12345678"))
	if err != nil || &data[0] != &room[:1][0] {
		t.Errorf("got %q, %v, in another place", data, err)
	}
	if data, err = appendData(data, []byte("9")); !errors.Is(err, errProtocol) || &data[0] != &room[:1][0] {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestFailure(t *testing.T) {
	for text, want := range map[string]string{
		"ERR 99\n":                                        "error 99",
		"ERR 83886179 \x1b[31mRed\n":                      "[31mRed",
		"ERR 83886179 left\u202eto\n":                     "leftto",
		"S ERROR curses.isatty 83918950 \x1b\nERR 5 No\n": "No",
	} {
		_, err := answers(strings.NewReader(text))
		if f, ok := errors.AsType[*failure](err); !ok || f.Error() != want {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
}
