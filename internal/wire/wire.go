// Package wire encodes and decodes the messages of the SSH agent protocol: its
// frames, the numbers of messages, and the data types of RFC 4251.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
)

var (
	errShort = errors.New("message ends inside a field")
	errRest  = errors.New("message has more behind its last field")
)

// A Parser reads the data types of RFC 4251, section 5, one after the other. It
// is for messages whose later fields depend on earlier ones; others have structs
// for ssh.Unmarshal. From the first field that is missing or wrong, all fields
// are empty and Err says why. Results are part of the message, not copies.
type Parser struct {
	Rest []byte
	Err  error
}

// Take returns the next n bytes.
func (p *Parser) Take(n int) []byte {
	if p.Err == nil && len(p.Rest) < n {
		p.Err = errShort
	}
	if p.Err != nil {
		return nil
	}
	b := p.Rest[:n:n]
	p.Rest = p.Rest[n:]
	return b
}

// Byte reads a byte.
func (p *Parser) Byte() byte {
	if b := p.Take(1); b != nil {
		return b[0]
	}
	return 0
}

// Uint32 reads a uint32.
func (p *Parser) Uint32() uint32 {
	if b := p.Take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// Bytes reads a string.
func (p *Parser) Bytes() []byte {
	n := p.Uint32()
	if p.Err == nil && uint64(n) > uint64(len(p.Rest)) {
		p.Err = errShort
	}
	return p.Take(int(n))
}

// Text reads a string that is text; see CString.
func (p *Parser) Text() string {
	s, err := CString(string(p.Bytes()))
	if p.Err == nil {
		p.Err = err
	}
	if p.Err != nil {
		return ""
	}
	return s
}

// Done reports whether there is nothing more to read.
func (p *Parser) Done() bool { return p.Err != nil || len(p.Rest) == 0 }

// Whole returns an error unless all of the message was read.
func (p *Parser) Whole() error {
	if p.Err == nil && len(p.Rest) > 0 {
		return errRest
	}
	return p.Err
}

// AppendString appends a string.
func AppendString[T ~string | ~[]byte](b []byte, s T) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// CString returns s as OpenSSH reads it: without a NUL byte at its end. It
// refuses one anywhere else, which could hide what follows.
func CString(s string) (string, error) {
	s = strings.TrimSuffix(s, "\x00")
	if strings.Contains(s, "\x00") {
		return "", errors.New("a string with a NUL byte in it")
	}
	return s, nil
}

const (
	// LengthSize is the size of the length in front of each message, which does
	// not count itself.
	LengthSize = 4
	// MaxMessage is the length of the longest message that OpenSSH's agent and
	// clients accept.
	MaxMessage = 256 << 10
	// firstRead is how much memory a message gets before any of it has come.
	firstRead = 4 << 10
)

// Frame returns a message with its length in front. The answers of an agent are
// whole frames, so that they can be cached and leave in one write.
func Frame(message []byte) []byte {
	return AppendString(make([]byte, 0, LengthSize+len(message)), message)
}

// A Reader reads messages from From. It reads ahead, because most messages are
// small, and overwrites what it has delivered, because messages contain private
// keys and passwords.
type Reader struct {
	From       io.Reader
	buf        [1 << 10]byte
	begin, end int // what was read ahead
}

// Read reads from From only if nothing was read ahead, and directly into b if b
// is large.
func (r *Reader) Read(b []byte) (int, error) {
	if r.begin == r.end {
		if len(b) >= len(r.buf) {
			return r.From.Read(b)
		}
		n, err := r.From.Read(r.buf[:])
		if r.begin, r.end = 0, n; n == 0 {
			return 0, err
		} // From will return an error that came with bytes again
	}
	ahead := r.buf[r.begin:r.end]
	n := copy(b, ahead)
	clear(ahead[:n])
	r.begin += n
	return n, nil
}

// ReadMessage reads one message and returns it without its length. It calls
// begun when the first byte has come. The error is io.EOF if the other side
// ended between two messages.
//
// Memory is allocated as bytes come: a client that announces 256 KiB and sends
// nothing costs 4 KiB.
func (r *Reader) ReadMessage(begun func()) ([]byte, error) {
	for r.begin == r.end {
		if _, err := r.Read(nil); err != nil { // reads ahead
			return nil, err
		}
	}
	begun()
	var length [LengthSize]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, fmt.Errorf("reading the length of a message: %w", err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n == 0 || n > MaxMessage {
		return nil, fmt.Errorf("impossible message length %d", n)
	}
	return readBytes(r, int(n))
}

func readBytes(r io.Reader, n int) ([]byte, error) {
	var b []byte
	for have := 0; have < n; {
		longer := make([]byte, have+min(n-have, max(have, firstRead)))
		copy(longer, b)
		clear(b)
		b = longer
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			clear(b)
			if err == io.EOF {
				err = io.ErrUnexpectedEOF // io.EOF would mean an end between messages
			}
			return nil, fmt.Errorf("reading a message of %d bytes: %w", n, err)
		}
		have = len(b)
	}
	return b, nil
}

// OrdinaryEnd reports whether err means that a connection was closed, by either
// side.
func OrdinaryEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
