package tpmtest

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
)

// A Conn is one open TPM, as the code under test sees it.
type Conn interface {
	Send(ctx context.Context, command []byte) (response []byte, err error)
	Close() error
	Managed() bool
}

// A Recorder sits between the code under test and a TPM. It records what is
// opened, sent and closed, and injects faults. Goroutines may share it.
type Recorder struct {
	open func(context.Context) (Conn, error)

	mu       sync.Mutex
	commands [][]byte
	opened   int
	closed   int
	faults   []*armed
}

// Record returns a recorder for the connections that open returns.
func Record[C Conn](open func(context.Context) (C, error)) *Recorder {
	return &Recorder{open: func(ctx context.Context) (Conn, error) {
		c, err := open(ctx)
		if err != nil {
			return nil, err // not a nil C in an interface
		}
		return c, nil
	}}
}

// Open opens a connection through the recorder.
func (r *Recorder) Open(ctx context.Context) (Conn, error) {
	c, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
	return &recorded{recorder: r, conn: c}, nil
}

// Commands returns the names of the commands sent since the last Forget, in order:
// "ContextLoad", "Sign", "FlushContext". They include commands that a fault kept
// from the TPM.
func (r *Recorder) Commands() []string {
	var names []string
	for _, c := range r.Raw() {
		names = append(names, CommandName(code(c)))
	}
	return names
}

// Raw returns the bytes of the commands.
func (r *Recorder) Raw() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.commands)
}

// Sent reports whether these bytes were sent to the TPM unencrypted.
func (r *Recorder) Sent(octets []byte) bool {
	return slices.ContainsFunc(r.Raw(), func(c []byte) bool { return bytes.Contains(c, octets) })
}

// Forget empties the list of commands.
func (r *Recorder) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commands = nil
}

// Opened returns how many connections have been opened.
func (r *Recorder) Opened() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened
}

// StillOpen returns how many connections are open.
func (r *Recorder) StillOpen() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened - r.closed
}

// A Fault selects the commands that fail, and how.
type Fault struct {
	Command string // its name as in CommandName; empty: every command
	Skip    int    // how many of them succeed first
	Times   int    // how many fail after that; 0 is taken as 1
	Effect  Effect
}

// armed is a fault and its progress.
type armed struct {
	Fault
	seen int
}

// Inject arms a fault. Each command is matched with the faults in the order of
// their injection. The first one that still waits for such a command makes it
// fail or counts it as skipped; later faults do not see it.
func (r *Recorder) Inject(f Fault) {
	if f.Effect == nil {
		panic("tpmtest: a fault without an effect")
	}
	if _, ok := commandCode(f.Command); f.Command != "" && !ok {
		panic("tpmtest: a fault for " + f.Command + ", which is no command")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &armed{Fault: f})
}

// Disarm removes all faults, and returns how many of them did not happen as often
// as they were meant to.
func (r *Recorder) Disarm() (unused int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		if f.seen < f.Skip+max(f.Times, 1) {
			unused++
		}
	}
	r.faults = nil
	return unused
}

// note records a command and returns its fault's effect, or nil.
func (r *Recorder) note(command []byte) Effect {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commands = append(r.commands, bytes.Clone(command))
	name := CommandName(code(command))
	for _, f := range r.faults {
		if f.Command != "" && !strings.EqualFold(f.Command, name) || f.seen >= f.Skip+max(f.Times, 1) {
			continue
		}
		if f.seen++; f.seen <= f.Skip {
			return nil
		}
		return f.Effect
	}
	return nil
}

// recorded is a connection through a recorder.
type recorded struct {
	recorder *Recorder
	conn     Conn
	once     sync.Once
}

func (c *recorded) Managed() bool { return c.conn.Managed() }

func (c *recorded) Send(ctx context.Context, command []byte) ([]byte, error) {
	effect := c.recorder.note(command)
	if effect == nil {
		return c.conn.Send(ctx, command)
	}
	return effect(ctx, c.conn, command)
}

func (c *recorded) Close() error {
	c.once.Do(func() {
		c.recorder.mu.Lock()
		c.recorder.closed++
		c.recorder.mu.Unlock()
	})
	return c.conn.Close()
}
