package pinentry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxLine = 1000     // octets of an Assuan line, without its end
	maxPIN  = 1024     // octets of a PIN
	maxTalk = 64 << 10 // octets of comments and status lines that come with one answer
)

// conn speaks Assuan, as its client. What the program says, PINs among it,
// passes through buf and nothing else in this process.
type conn struct {
	in     io.Writer
	out    io.Reader
	buf    []byte
	start  int  // of what is not used yet
	end    int  // of what was read
	secret bool // the lines that come may hold a PIN, and must not be quoted
}

func newConn(in io.Writer, out io.Reader) *conn {
	return &conn{in: in, out: out, buf: make([]byte, maxLine+len("\r\n"))}
}

// wipe forgets what was read.
func (c *conn) wipe() {
	clear(c.buf)
	c.start, c.end = 0, 0
}

// line returns the next line without its end. It is part of the buffer, and
// holds only until the next call.
//
// The lines are gone through octet by octet, as a PIN may be among them: what
// takes 16 at a time leaves them in registers, and whenever a thread is
// interrupted these are written to memory that nobody overwrites.
func (c *conn) line() ([]byte, error) {
	for {
		if n := slices.Index(c.buf[c.start:c.end], '\n'); n >= 0 {
			line := bytes.TrimSuffix(c.buf[c.start:c.start+n], []byte("\r"))
			c.start += n + 1
			if len(line) > maxLine {
				return nil, c.tooLong()
			}
			return line, nil
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads more, over the lines that were used.
func (c *conn) fill() error {
	kept := c.end - c.start
	for i := range kept {
		c.buf[i] = c.buf[c.start+i]
	}
	clear(c.buf[kept:c.end])
	c.start, c.end = 0, kept
	if kept == len(c.buf) {
		return c.tooLong()
	}
	n, err := c.out.Read(c.buf[c.end:])
	c.end += n
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

func (c *conn) tooLong() error {
	return fmt.Errorf("%w: a line longer than %d octets", ErrProtocol, maxLine)
}

// failure is an ERR line.
type failure struct {
	code   uint32 // of libgpg-error: the source in the highest octet, the reason in the lower two
	text   string
	detail string // where in the program it happened, "" if it did not say
}

// reason is the part of the code that says what happened; who says it, a
// pinentry or the agent behind it, does not matter.
func (f *failure) reason() uint32 { return f.code & 0xffff }

func (f *failure) Error() string {
	said := "error " + strconv.Itoa(int(f.reason()))
	if f.text != "" {
		said = harmless(f.text)
	}
	if f.detail != "" {
		said += ", " + harmless(f.detail)
	}
	return said
}

// answer reads the answer to a command, to its OK or ERR; ERR is a *failure.
// Data is appended to data as far as that has room, and never beyond.
func (c *conn) answer(data []byte) ([]byte, error) {
	var detail string
	for ignored := 0; ignored <= maxTalk; {
		line, err := c.line()
		if err != nil {
			return data, err
		}
		word, rest := cut(line)
		switch string(word) {
		case "OK":
			return data, nil
		case "ERR":
			return data, c.failure(rest, detail)
		case "D":
			if data, err = appendData(data, rest); err != nil {
				return data, err
			}
		case "INQUIRE": // it wants to know something, and it gets a refusal
			if err := c.send("CAN"); err != nil {
				return data, err
			}
		case "S":
			if about, ok := bytes.CutPrefix(rest, []byte("ERROR ")); ok {
				detail = string(about)
			}
		case "":
		default:
			if line[0] != '#' {
				return data, c.unknown(line)
			}
		}
		ignored += len(line) + 1
	}
	return data, fmt.Errorf("%w: no end of its answer in %d octets", ErrProtocol, maxTalk)
}

// cut cuts a line at its first blank, octet by octet.
func cut(line []byte) (word, rest []byte) {
	if n := slices.Index(line, ' '); n >= 0 {
		return line[:n], line[n+1:]
	}
	return line, nil
}

// failure reads what follows ERR.
func (c *conn) failure(rest []byte, detail string) error {
	number, text, _ := strings.Cut(string(rest), " ")
	code, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return c.unknown(append([]byte("ERR "), rest...))
	}
	return &failure{uint32(code), text, detail}
}

// unknown is the error for a line that Assuan has not. While a PIN is expected
// it says no more than how long the line is: it may be the PIN.
func (c *conn) unknown(line []byte) error {
	if c.secret {
		return fmt.Errorf("%w: an unknown line of %d octets", ErrProtocol, len(line))
	}
	return fmt.Errorf("%w: an unknown line, %s", ErrProtocol, harmless(string(line)))
}

var (
	errTooMuch = fmt.Errorf("%w: more data than was asked for", ErrProtocol)
	errPercent = fmt.Errorf("%w: a percent sign without two hexadecimal digits", ErrProtocol)
	errNUL     = fmt.Errorf("%w: a NUL octet", ErrProtocol)
)

// appendData decodes the octets of a D line into what is left of data.
func appendData(data, encoded []byte) ([]byte, error) {
	for i := 0; i < len(encoded); i++ {
		octet := encoded[i]
		if octet == '%' {
			if i+2 >= len(encoded) {
				return data, errPercent
			}
			high, low := hexDigit(encoded[i+1]), hexDigit(encoded[i+2])
			if high < 0 || low < 0 {
				return data, errPercent
			}
			octet = byte(high<<4 | low)
			i += 2
		}
		// pinentry's own strings end at a NUL, and the TPM cuts zero octets off
		// the end of an auth value: a PIN cannot have one.
		if octet == 0 {
			return data, errNUL
		}
		if len(data) == cap(data) {
			return data, errTooMuch
		}
		data = append(data, octet)
	}
	return data, nil
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// command sends a command and reads its answer, which brings no data.
func (c *conn) command(words ...string) error {
	if err := c.send(strings.Join(words, " ")); err != nil {
		return err
	}
	_, err := c.answer(nil)
	return err
}

// send writes a line, cut off where Assuan does not allow it to go on.
func (c *conn) send(line string) error {
	if len(line) > maxLine {
		line = shorten(line, maxLine)
	}
	_, err := io.WriteString(c.in, line+"\n")
	return err
}

// shorten cuts an escaped line at the end of a character, to at most longest
// octets with the dots that say so.
func shorten(line string, longest int) string {
	const dots = "…"
	end := longest - len(dots)
	for end > 0 && !utf8.RuneStart(line[end]) {
		end--
	}
	if n := strings.LastIndexByte(line[end-2:end], '%'); n >= 0 { // not inside %0A
		end += n - 2
	}
	return line[:end] + dots
}

// escape makes text one line. Control characters other than a newline are not
// passed on: the program would send them to the user's terminal.
func escape(text string) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(text, "\uFFFD") {
		switch {
		case r == '%':
			b.WriteString("%25")
		case r == '\n':
			b.WriteString("%0A")
		case r == '\t':
			b.WriteByte(' ')
		case unicode.IsControl(r):
			b.WriteRune(unicode.ReplacementChar)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// harmless quotes what a program said: short, and without anything that a
// terminal would act upon.
func harmless(text string) string {
	const longest = 100
	if len(text) > longest {
		return strconv.Quote(text[:longest]) + "…"
	}
	return strconv.Quote(text)
}

// closed says whether err means that the program has gone, or has closed its
// end.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || isBrokenPipe(err)
}
