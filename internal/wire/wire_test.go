package wire

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
)

// FuzzReader checks that messages do not depend on the sizes of reads.
func FuzzReader(f *testing.F) {
	f.Add(append(Frame([]byte{MsgRequestIdentities}), Frame(make([]byte, 1100))...), uint16(1))
	f.Add(append(Frame(make([]byte, 2000)), 0, 4, 0, 1, 5), uint16(1023))
	f.Add([]byte{0, 0, 0, 9, 1}, uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, chunk uint16) {
		r := &Reader{From: &chunks{b, int(chunk) + 1}}
		for i, want := range whole(b) {
			got, err := r.ReadMessage(func() {})
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("message %d: %x, %v", i, got, err)
			}
		}
		if m, err := r.ReadMessage(func() {}); err == nil {
			t.Fatalf("message %x behind the last", m)
		}
	})
}

// chunks is a reader that returns at most n bytes at a time.
type chunks struct {
	b []byte
	n int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.b[:min(len(c.b), c.n)])
	c.b = c.b[n:]
	return n, nil
}

// whole returns the messages in b up to the first that is cut short or has an
// impossible length.
func whole(b []byte) (messages [][]byte) {
	for len(b) >= 4 {
		length := int(binary.BigEndian.Uint32(b))
		if length == 0 || length > MaxMessage || len(b) < 4+length {
			break
		}
		messages = append(messages, b[4:4+length])
		b = b[4+length:]
	}
	return messages
}

// TestReaderForgets checks that delivered bytes are overwritten in the buffer.
func TestReaderForgets(t *testing.T) {
	t.Parallel()
	message := bytes.Repeat([]byte("secret"), 50)
	r := &Reader{From: bytes.NewReader(Frame(message))}
	if got, err := r.ReadMessage(func() {}); err != nil || !bytes.Equal(got, message) {
		t.Errorf("read %q, %v", got, err)
	}
	if r.buf != [len(r.buf)]byte{} {
		t.Errorf("left in the buffer: %q", r.buf)
	}
}

// TestAnnouncedLength checks that memory grows with the bytes that come, not
// with the length that is announced.
func TestAnnouncedLength(t *testing.T) {
	t.Parallel()
	for _, come := range []int{0, 1, firstRead, 100_000} {
		r := &counter{r: bytes.NewReader(make([]byte, come))}
		if _, err := readBytes(r, MaxMessage); err == nil {
			t.Error("no error for a message that is cut short")
		}
		if most := 2*come + firstRead; r.room > most {
			t.Errorf("%d bytes came, and there was room for %d", come, r.room)
		}
	}
}

// counter is a reader that counts how much room it was given.
type counter struct {
	r    io.Reader
	room int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.room += n; err != nil {
		c.room += len(p)
	}
	return n, err
}
