package tcti

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// slowest bounds a command whose context has no deadline. The kernel itself gives up
// after five minutes, for CreatePrimary.
const slowest = 6 * time.Minute

// closeGrace is how long Close waits for a close that should take no time, so that
// the TPM is usually free again when Close returns.
const closeGrace = 50 * time.Millisecond

// wire carries frames to one TPM and back.
type wire interface {
	// exchange sends one command and returns its answer, whole and alone, in
	// memory of its own. After an error only hangUp may be called.
	exchange(ctx context.Context, command []byte) (answer []byte, err error)
	// hangUp closes the connection and frees what belongs to it. pending says that
	// a command was sent whose answer was not read. It is called once, possibly
	// while exchange runs, which it then ends.
	hangUp(pending bool) error
}

// Conn is one open TPM. Send must not be called concurrently. Close may be called at
// any time, and ends a running Send.
type Conn struct {
	name    string // the address, for errors
	wire    wire
	managed bool
	grace   time.Duration // how long Close waits for wire.hangUp

	mu      sync.Mutex
	pending bool          // a command was sent, and its answer has not been read
	closing chan struct{} // nil while open; closed when wire.hangUp has returned
	hangErr error         // of wire.hangUp; valid after closing is closed
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
	if err := checkCommand(command); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("nothing was sent to the TPM: %w", err)
	}
	if err := c.begin(); err != nil {
		return nil, err
	}
	answer, err := c.wire.exchange(ctx, command)
	if err == nil {
		err = checkAnswer(answer)
	}
	if c.end(err == nil) && err != nil {
		err = net.ErrClosed // Close was called meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("talking to the TPM %s: %w", c.name, err)
	}
	return answer, nil
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

// end notes how a command ended, and hangs up if it failed. It reports whether Close
// was called meanwhile.
func (c *Conn) end(well bool) (closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing != nil {
		return true
	}
	if well {
		c.pending = false
	} else {
		c.hangUp()
	}
	return false
}

// hangUp closes the wire in a goroutine, because that can take as long as the running
// command. The caller holds mu.
func (c *Conn) hangUp() {
	c.closing = make(chan struct{})
	pending := c.pending
	go func() {
		c.hangErr = c.wire.hangUp(pending)
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

// checkCommand refuses commands that no TPM would accept or that would put the frames
// out of step. The other side relies on the size in the header.
func checkCommand(command []byte) error {
	switch {
	case len(command) > maxMessage:
		return fmt.Errorf("TPM command of %d octets, more than %d", len(command), maxMessage)
	case len(command) < headerSize:
		return fmt.Errorf("TPM command of %d octets, less than a header", len(command))
	case uint64(binary.BigEndian.Uint32(command[2:])) != uint64(len(command)):
		return fmt.Errorf("TPM command of %d octets that claims to have %d", len(command), binary.BigEndian.Uint32(command[2:]))
	}
	return nil
}
