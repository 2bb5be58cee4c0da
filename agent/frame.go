package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// maxMessage is what OpenSSH's agent takes at most, and its clients as well.
const maxMessage = 256 << 10

// firstRead is how much room a message gets on the word of its length alone.
// Most are smaller.
const firstRead = 4 << 10

// errLength is a length that no message has. What follows it on the
// connection cannot be understood.
var errLength = errors.New("impossible message length")

// readMessage reads one message, without its length. begun is called when the
// first byte of it is there. The error is io.EOF when the other side ended
// between two messages.
//
// Memory is taken as the bytes come, not as the length announces: a client
// that says 256 KiB and sends nothing costs 4.
func readMessage(r *bufio.Reader, begun func()) ([]byte, error) {
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	begun()
	var length [lengthSize]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, fmt.Errorf("reading the length of a message: %w", err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n == 0 || n > maxMessage {
		return nil, fmt.Errorf("%w: %d", errLength, n)
	}
	return readBytes(r, int(n))
}

func readBytes(r io.Reader, n int) ([]byte, error) {
	var b []byte
	for have := 0; have < n; {
		more := min(n-have, max(have, firstRead))
		b = slices.Grow(b, more)[:have+more]
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			return nil, fmt.Errorf("reading a message of %d bytes: %w", n, noEOF(err))
		}
		have += more
	}
	return b, nil
}

// noEOF keeps an end inside a message from being taken for one between two.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
