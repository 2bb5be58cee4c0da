package pinentry

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
	"unicode/utf8"
)

// answers reads what a program says, as if a PIN had been asked for.
func answers(t *testing.T, from io.Reader) (pin []byte, replied string, err error) {
	t.Helper()
	var sent bytes.Buffer
	c := newConn(&sent, from)
	c.secret = true
	pin, err = c.answer(make([]byte, 0, maxPIN))
	c.wipe()
	if slices.ContainsFunc(c.buf, func(b byte) bool { return b != 0 }) {
		t.Errorf("the buffer was not wiped: %q", c.buf)
	}
	return pin, sent.String(), err
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
		pin, sent, err := answers(t, bytes.NewReader(said))
		if len(pin) > maxPIN || bytes.IndexByte(pin, 0) >= 0 {
			t.Errorf("not a PIN: %q", pin)
		}
		if rest := strings.ReplaceAll(sent, "CAN\n", ""); rest != "" || len(sent) > 4*bytes.Count(said, []byte("INQUIRE")) {
			t.Errorf("sent %q", sent)
		}
		if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("the error is not harmless: %q", err)
		}
		pieces, _, errPieces := answers(t, iotest.OneByteReader(bytes.NewReader(said)))
		if !bytes.Equal(pieces, pin) || (err == nil) != (errPieces == nil) {
			t.Errorf("whole: %q, %v; octet by octet: %q, %v", pin, err, pieces, errPieces)
		}
	})
}

func FuzzEscape(f *testing.F) {
	for _, seed := range []string{"", "Enter PIN\nfor 100%", "\x1b[31mä\x00\xff\u0085\u202e", strings.Repeat("%", 2000), strings.Repeat("ä\n", 999)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var sent bytes.Buffer
		if err := newConn(&sent, nil).send("SETDESC " + escape(text)); err != nil {
			t.Fatal(err)
		}
		line, ok := strings.CutSuffix(sent.String(), "\n")
		if !ok || len(line) > maxLine || !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl) {
			t.Fatalf("sent %q", line)
		}
		shown, err := url.PathUnescape(strings.TrimPrefix(line, "SETDESC "))
		if err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		want := strings.Map(func(r rune) rune {
			switch {
			case r == '\t':
				return ' '
			case unicode.IsControl(r) && r != '\n':
				return unicode.ReplacementChar
			}
			return r
		}, strings.ToValidUTF8(text, "\uFFFD"))
		if cut, ok := strings.CutSuffix(shown, "…"); shown != want && (!ok || !strings.HasPrefix(want, cut) || len(line) < maxLine-6) {
			t.Errorf("%q is shown as %q", want, shown)
		}
	})
}

// A PIN is nowhere but in the slice that was returned, as soon as it was read.
func TestBufferIsWiped(t *testing.T) {
	c := newConn(io.Discard, strings.NewReader("D secret\nOK\nOK again\n"))
	pin, err := c.answer(make([]byte, 0, maxPIN))
	if err != nil || string(pin) != "secret" {
		t.Fatalf("got %q, %v", pin, err)
	}
	c.wipe()
	if bytes.Contains(c.buf, []byte("s")) {
		t.Errorf("the buffer holds %q", c.buf)
	}

	// What is read next does not leave the end of a longer line behind.
	c = newConn(io.Discard, iotest.OneByteReader(strings.NewReader("D secret\nOK\nOK\n")))
	if _, err := c.answer(make([]byte, 0, maxPIN)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.answer(nil); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(c.buf, []byte("ret")) {
		t.Errorf("the buffer holds %q", c.buf)
	}
}

// The slice for a PIN never moves: a copy would stay behind.
func TestPINIsNotMoved(t *testing.T) {
	room := make([]byte, 0, 8)
	data, err := appendData(room, []byte("12345678"))
	if err != nil || &data[0] != &room[:1][0] {
		t.Errorf("got %q, %v, in another place", data, err)
	}
	if data, err = appendData(data, []byte("9")); !errors.Is(err, ErrProtocol) || &data[0] != &room[:1][0] {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestReaderWithoutProgress(t *testing.T) {
	c := newConn(io.Discard, endlessNothing{})
	if _, err := c.answer(nil); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
}

type endlessNothing struct{}

func (endlessNothing) Read([]byte) (int, error) { return 0, nil }

func TestFailure(t *testing.T) {
	for text, want := range map[string]string{
		"ERR 99\n":                    "error 99",
		"ERR 83886179 \x1b[31mRed\n":  `"\x1b[31mRed"`,
		"ERR 83886179 left\u202eto\n": `"left\u202eto"`,
		"S X\nS ERROR curses.isatty 83918950 \x1b\nERR 5 No\n": `"No", "curses.isatty 83918950 \x1b"`,
		"ERR 1 " + strings.Repeat("x", 500) + "\n":             `"` + strings.Repeat("x", 100) + `"…`,
	} {
		_, err := newConn(io.Discard, strings.NewReader(text)).answer(nil)
		if f, ok := errors.AsType[*failure](err); !ok || f.Error() != want {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
}
