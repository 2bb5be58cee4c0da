package pinentry

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

const (
	maxLine  = 1000 // octets of an Assuan line, without its end
	maxLines = 1000 // in one answer
)

var (
	errProtocol = errors.New("not the protocol of a pinentry")
	errEnded    = errors.New("ended without an answer")
	errTooLong  = fmt.Errorf("%w: %w", errProtocol, prompt.ErrTooLong)
	errPercent  = fmt.Errorf("%w: a percent sign without two hexadecimal digits", errProtocol)
)

// conn is a client of the Assuan protocol.
type conn struct {
	in  io.Writer
	out io.Reader
	buf [maxLine + len("\r\n")]byte // the last line; may have had a PIN in it
}

// line returns the next line without its end, which is part of the buffer and
// valid until the next call. It reads octet by octet, so that nothing that the
// program said, such as a PIN, is in another place.
func (c *conn) line() ([]byte, error) {
	for n := range c.buf {
		if _, err := c.out.Read(c.buf[n : n+1]); err != nil {
			return nil, errEnded
		}
		if c.buf[n] == '\n' {
			return bytes.TrimSuffix(c.buf[:n], []byte("\r")), nil
		}
	}
	return nil, fmt.Errorf("%w: a line longer than %d octets", errProtocol, maxLine)
}

// answer reads the answer to a command up to its OK or ERR; ERR is a *failure.
// It appends data to what fits in data, whose array never moves.
func (c *conn) answer(data []byte) ([]byte, error) {
	for range maxLines {
		line, err := c.line()
		if err != nil {
			return data, err
		}
		word, rest := line, []byte(nil)
		if blank := slices.Index(line, ' '); blank >= 0 {
			word, rest = line[:blank], line[blank+1:]
		}
		switch string(word) {
		case "OK":
			return data, nil
		case "ERR":
			return data, parseFailure(string(rest))
		case "D":
			if data, err = appendData(data, rest); err != nil {
				return data, err
			}
		case "S", "#", "": // status and comments
		default: // not quoted, since it may be a PIN
			return data, fmt.Errorf("%w: an unknown line of %d octets", errProtocol, len(line))
		}
	}
	return data, fmt.Errorf("%w: no end of its answer in %d lines", errProtocol, maxLines)
}

// appendData decodes the octets of a D line, in place, and appends them to data.
func appendData(data, encoded []byte) ([]byte, error) {
	for len(encoded) > 0 {
		octets := 1
		if encoded[0] == '%' {
			octets = len("%25")
			if len(encoded) < octets {
				return data, errPercent
			}
			if _, err := hex.Decode(encoded[:1], encoded[1:octets]); err != nil {
				return data, errPercent
			}
		}
		if len(data) == cap(data) {
			return data, errTooLong
		}
		data = append(data, encoded[0])
		encoded = encoded[octets:]
	}
	return data, nil
}

// failure is an ERR line.
type failure struct {
	reason uint16 // of libgpg-error, without the program that reports it
	text   string
}

func parseFailure(rest string) error {
	number, text, _ := strings.Cut(rest, " ")
	code, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return fmt.Errorf("%w: an error without a number", errProtocol)
	}
	return &failure{uint16(code), text}
}

func (f *failure) Error() string {
	if f.text == "" {
		return fmt.Sprintf("error %d", f.reason)
	}
	return prompt.Plain(f.text)
}

// command sends a command and reads its answer, which has no data.
func (c *conn) command(line string) error {
	_, err := c.commandData(line, nil)
	return err
}

// commandData sends a command and appends the data of its answer to data.
func (c *conn) commandData(line string, data []byte) ([]byte, error) {
	if _, err := io.WriteString(c.in, line+"\n"); err != nil {
		return nil, errEnded
	}
	return c.answer(data)
}

// withText returns the line for a command with a text, which is shortened if it
// would not fit.
func withText(command, text string) string {
	escape := strings.NewReplacer("%", "%25", "\n", "%0A")
	line := command + " " + escape.Replace(text)
	for len(line) > maxLine {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
		line = command + " " + escape.Replace(text) + "…"
	}
	return line
}
