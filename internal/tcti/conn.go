package tcti

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxMessage bounds commands and answers. The kernel's driver (TPM_BUFSIZE) and the
// reference implementation (MAX_COMMAND_SIZE) have buffers of this size.
const maxMessage = 4096

// headerSize is the size of the header of commands and answers: tag (2 octets),
// size of the whole (4), command code or return code (4). TPM 2.0 Part 1, 18.
const headerSize = 10

// Tags of answers, TPM 2.0 Part 2, 6.9. A TPM 1.2 puts tagTPM12 before every answer.
// TPM 2.0 has it, as TPM_ST_RSP_COMMAND, only for a command with a bad tag, and we
// send none.
const (
	tagNoSessions = 0x8001
	tagSessions   = 0x8002
	tagTPM12      = 0x00c4
)

// slowest bounds a command whose context has no deadline. The kernel itself gives up
// after five minutes, for CreatePrimary.
const slowest = 6 * time.Minute

// closeGrace is how long Close waits for a close that should take no time, so that
// the TPM is usually free again when Close returns.
const closeGrace = 50 * time.Millisecond

// Conn is one open TPM. Send must not be called concurrently. Close may be called at
// any time, and ends a running Send.
type Conn struct {
	name string // the address, for errors
	// exchange sends one command and returns its answer, whole and alone, in
	// memory of its own. After an error only leave may be called.
	exchange func(ctx context.Context, command []byte) (answer []byte, err error)
	// leave closes the connection and frees what belongs to it. pending says that
	// a command was sent whose answer was not read. It is called once, possibly
	// while exchange runs, which it then ends.
	leave   func(pending bool) error
	managed bool
	grace   time.Duration // how long Close waits for leave

	mu      sync.Mutex
	pending bool          // a command was sent, and its answer has not been read
	closing chan struct{} // nil while open; closed when leave has returned
	hangErr error         // of leave; valid after closing is closed
}

// Managed reports whether a resource manager stands between us and the TPM. Then
// everything that this Conn made in the TPM is removed with it, and other programs
// can use the TPM meanwhile. Without one, the TPM has one client at a time, and what
// is not flushed stays.
func (c *Conn) Managed() bool { return c.managed }

// Send sends one command and returns its answer, at most 4096 octets each. The answer
// has a whole header and the size that this claims. Its return code may be anything.
//
// After an error the Conn is closed for good, and later calls return an error that
// wraps net.ErrClosed. There are two exceptions, after which the caller can still
// flush what it has in the TPM: Send refused the command, or ctx had ended before
// anything was sent. An error after the end of ctx wraps ctx.Err().
func (c *Conn) Send(ctx context.Context, command []byte) ([]byte, error) {
	if err := checkFrame("TPM command", command); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("nothing was sent to the TPM: %w", err)
	}
	if err := c.begin(); err != nil {
		return nil, err
	}
	answer, err := c.exchange(ctx, command)
	if err == nil {
		err = checkAnswer(answer)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.pending = false
		return answer, nil
	case c.closing != nil:
		err = net.ErrClosed // Close was called meanwhile
	default:
		c.hangUp()
	}
	return nil, fmt.Errorf("talking to the TPM %s: %w", c.name, err)
}

// begin notes that a command is on its way.
func (c *Conn) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing != nil {
		return fmt.Errorf("the connection to the TPM %s: %w", c.name, net.ErrClosed)
	}
	if c.pending {
		return errors.New("two commands at once on one connection to the TPM")
	}
	c.pending = true
	return nil
}

// hangUp leaves in a goroutine, because that can take as long as the running
// command. The caller holds mu.
func (c *Conn) hangUp() {
	c.closing = make(chan struct{})
	pending := c.pending
	go func() {
		c.hangErr = c.leave(pending)
		close(c.closing)
	}()
}

// Close closes the TPM. It does not wait for the driver of a device, which finishes
// the running command first. It does wait, for a bounded time, until the private
// software TPM has shut down. A second Close returns the same as the first.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closing == nil {
		c.hangUp()
	}
	c.mu.Unlock()
	select {
	case <-c.closing:
		return c.hangErr
	case <-time.After(c.grace):
		return nil // hangUp goes on without us
	}
}

// checkFrame checks the size of a command or an answer. A wrong one would put the two
// out of step: the other side relies on the size in the header.
func checkFrame(what string, frame []byte) error {
	switch n := len(frame); {
	case n > maxMessage:
		return fmt.Errorf("%s of %d octets, more than %d", what, n, maxMessage)
	case n < headerSize:
		return fmt.Errorf("%s of %d octets, less than a header", what, n)
	case uint64(binary.BigEndian.Uint32(frame[2:])) != uint64(n):
		return fmt.Errorf("%s of %d octets that claims to have %d", what, n, binary.BigEndian.Uint32(frame[2:]))
	}
	return nil
}

// checkAnswer checks the size and the tag of an answer.
func checkAnswer(answer []byte) error {
	if err := checkFrame("answer", answer); err != nil {
		return err
	}
	switch tag := binary.BigEndian.Uint16(answer); tag {
	case tagNoSessions, tagSessions:
		return nil
	case tagTPM12:
		return ErrTPM12
	default:
		return fmt.Errorf("answer with the tag %#04x, which no TPM uses", tag)
	}
}

// readAnswer reads one answer, and nothing beyond it. A simulator's has its size
// before it and a zero after it, four octets each.
func readAnswer(r io.Reader, simulator bool) ([]byte, error) {
	margin := 0
	if simulator {
		margin = 4
	}
	frame := make([]byte, maxMessage+2*margin)
	head := margin + headerSize
	if n, err := io.ReadFull(r, frame[:head]); err != nil {
		return nil, cutOff(n, err)
	}
	size := binary.BigEndian.Uint32(frame[margin+2:])
	if size < headerSize || size > maxMessage {
		return nil, fmt.Errorf("answer that claims to have %d octets", size)
	}
	frame = frame[:margin+int(size)+margin]
	if n, err := io.ReadFull(r, frame[head:]); err != nil {
		return nil, cutOff(head+n, err)
	}
	answer := frame[margin : margin+int(size)]
	if simulator {
		if n := binary.BigEndian.Uint32(frame); n != size {
			return nil, fmt.Errorf("the simulator announced %d octets, but the answer has %d", n, size)
		}
		if status := binary.BigEndian.Uint32(frame[margin+int(size):]); status != 0 {
			return nil, fmt.Errorf("the simulator ended the answer with %d instead of 0", status)
		}
	}
	return answer, nil
}

// cutOff returns the error for an answer that ended after n octets.
func cutOff(n int, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("hung up after %d octets of the answer: %w", n, io.ErrUnexpectedEOF)
	}
	return err
}
