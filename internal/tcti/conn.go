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

// maxMessage bounds commands and answers: the buffer of the kernel's driver and
// of the reference implementation (TPM_BUFSIZE, MAX_COMMAND_SIZE).
const maxMessage = 4096

// headerSize is the size of the header of commands and answers: tag (2 octets),
// size of the whole (4), command code or return code (4). TPM 2.0 Part 1, 18.
const headerSize = 10

// slowest bounds a command whose context has no deadline. The kernel itself
// gives up after five minutes, for CreatePrimary; who waits longer waits for a
// TPM that will never answer.
const slowest = 6 * time.Minute

// wire carries frames to one TPM and back.
type wire interface {
	// exchange sends one command and returns its answer, whole and alone, in
	// memory of its own. After an error only hangUp is left to call.
	exchange(ctx context.Context, command []byte) (answer []byte, err error)
	// hangUp closes the connection and gives back what belongs to it. pending
	// says that a command was sent whose answer was not read. It may be called
	// once, and while exchange runs, which it then ends.
	hangUp(pending bool) error
	// grace bounds how long closing is worth waiting for.
	grace() time.Duration
	managed() bool
}

// Conn is one open TPM. Send must not be called concurrently; Close may be
// called at any time, and ends a Send that runs.
type Conn struct {
	name string // the address, for errors
	wire wire

	mu      sync.Mutex
	pending bool          // a command is out, its answer is not in
	closing chan struct{} // nil while open; closed when wire.hangUp has returned
	hangErr error         // of wire.hangUp; read it after closing is closed
}

// Managed reports whether a resource manager stands between us and the TPM:
// what this Conn made in the TPM then dies with it, and others can use the TPM
// meanwhile. Otherwise the TPM is raw: one client at a time, and what is not
// flushed stays.
func (c *Conn) Managed() bool { return c.wire.managed() }

// Send sends one command and returns its answer, at most 4096 octets each. The
// answer has a whole header and is as long as it says; its return code may be
// anything.
//
// After an error the Conn is closed for good, and later calls return an error
// that wraps net.ErrClosed. The exceptions are a command that is refused here
// and a context that is over before anything was sent: they leave the Conn as
// it was, so that a caller can still flush what it has in the TPM.
// An error after the end of ctx wraps ctx.Err().
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
		err = net.ErrClosed // somebody called Close meanwhile
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

// end notes how a command ended, and hangs up if it did not end well. It
// reports whether the Conn was closed by somebody else meanwhile.
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

// hangUp closes the wire, in a goroutine, because that can take as long as the
// command that runs. The caller holds mu.
func (c *Conn) hangUp() {
	c.closing = make(chan struct{})
	pending := c.pending
	go func() {
		c.hangErr = c.wire.hangUp(pending)
		close(c.closing)
	}()
}

// Close closes the TPM. It does not wait for a device's driver, which finishes
// the command that runs first; for the private software TPM it waits, bounded,
// until that has shut down. Closing again returns the same again.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closing == nil {
		c.hangUp()
	}
	c.mu.Unlock()
	timer := time.NewTimer(c.wire.grace())
	defer timer.Stop()
	select {
	case <-c.closing:
		return c.hangErr
	case <-timer.C:
		return nil // it goes on without us
	}
}

// checkCommand refuses what no TPM would take and what would put the frames out
// of step: the size in the header is what the other side goes by.
func checkCommand(command []byte) error {
	switch {
	case len(command) > maxMessage:
		return fmt.Errorf("TPM command of %d octets, more than %d", len(command), maxMessage)
	case len(command) < headerSize:
		return fmt.Errorf("TPM command of %d octets, less than its header", len(command))
	case uint64(binary.BigEndian.Uint32(command[2:])) != uint64(len(command)):
		return fmt.Errorf("TPM command of %d octets that says %d", len(command), binary.BigEndian.Uint32(command[2:]))
	}
	return nil
}
