package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxMessage is what OpenSSH's agent takes at most, and its clients as well.
const maxMessage = 256 << 10

// firstRead is how much room a message gets on the word of its length alone.
// Most are smaller.
const firstRead = 4 << 10

// errLength is a length that no message has. What follows it on the
// connection cannot be understood.
var errLength = errors.New("impossible message length")

// reader reads messages. It reads ahead, for most messages are small, and
// leaves nothing behind of what it has given away: private keys and passwords
// come this way.
type reader struct {
	from       io.Reader
	buf        [1 << 10]byte
	begin, end int // what is read ahead
}

// Read fills b from what is there, and reads more only if nothing is. A big b
// is read into directly.
func (r *reader) Read(b []byte) (int, error) {
	if r.begin == r.end {
		if len(b) >= len(r.buf) {
			return r.from.Read(b)
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	ahead := r.buf[r.begin:r.end]
	n := copy(b, ahead)
	clear(ahead[:n])
	r.begin += n
	return n, nil
}

// fill reads ahead. It is called when all that was there is given away.
func (r *reader) fill() error {
	n, err := r.from.Read(r.buf[:])
	r.begin, r.end = 0, n
	if n > 0 {
		return nil // an error will be met again
	}
	return err
}

// await waits for something to read.
func (r *reader) await() error {
	for r.begin == r.end {
		if err := r.fill(); err != nil {
			return err
		}
	}
	return nil
}

// readMessage reads one message, without its length. begun is called when the
// first byte of it is there. The error is io.EOF when the other side ended
// between two messages.
//
// Memory is taken as the bytes come, not as the length announces: a client
// that says 256 KiB and sends nothing costs 4.
func readMessage(r *reader, begun func()) ([]byte, error) {
	if err := r.await(); err != nil {
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
		b = grow(b, have+more)
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			clear(b)
			return nil, fmt.Errorf("reading a message of %d bytes: %w", n, noEOF(err))
		}
		have += more
	}
	return b, nil
}

// grow returns b with room for n bytes, and leaves nothing of it elsewhere.
func grow(b []byte, n int) []byte {
	bigger := make([]byte, n)
	copy(bigger, b)
	clear(b)
	return bigger
}

// noEOF keeps an end inside a message from being taken for one between two.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
