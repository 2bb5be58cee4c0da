package tpmkey

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"
)

// Conn is an open TPM: whole commands go in, whole responses come out. It is
// used by one goroutine at a time.
type Conn interface {
	// Send transmits one command and returns its response. After an error
	// the Conn is of no more use: the next response could belong to this
	// command.
	Send(ctx context.Context, command []byte) (response []byte, err error)
	Close() error
	// Managed reports whether a resource manager removes what a client left
	// in the TPM when it closes its Conn. Where there is none, one client
	// uses the TPM at a time, and what it leaves stays.
	Managed() bool
}

const (
	// idleAfter is how long the device stays open, and the authorization
	// session in the TPM, after the last use: long enough for a burst of
	// signatures, short enough that nobody else waits for us.
	idleAfter = 2 * time.Second
	// holdFor bounds how long a TPM that serves one client at a time is kept
	// open while signatures keep coming, so that others get their turn.
	holdFor = time.Second
)

// TPM is one TPM and the line of those who wait for it. It opens the device
// when there is work and closes it when there was none for some seconds. It is
// safe for use by several goroutines: everybody gets a turn, in order of
// arrival.
type TPM struct {
	open func(context.Context) (Conn, error)
	// queue is the line. Whoever holds its one unit has the turn, and only
	// they may touch the fields below, the state of a Key included.
	queue *semaphore.Weighted

	conn    Conn
	opened  time.Time
	idle    *time.Timer
	session *session
	parents map[storageKey]*parent
	srk     srk
	hashes  map[uint16]bool
	lost    leftovers
	closed  bool
}

// New returns the TPM that open opens. Nothing is opened before the first use.
func New(open func(context.Context) (Conn, error)) *TPM {
	t := &TPM{
		open:    open,
		queue:   semaphore.NewWeighted(1),
		parents: make(map[storageKey]*parent),
	}
	t.idle = time.AfterFunc(idleAfter, t.rest)
	t.idle.Stop()
	return t
}

// Close waits for the turn in progress, removes what the TPM still holds of
// ours and closes the device. Later calls of other methods fail with
// [ErrClosed].
func (t *TPM) Close() error {
	if err := t.queue.Acquire(context.Background(), 1); err != nil {
		return err
	}
	defer t.queue.Release(1)
	t.closed = true
	t.idle.Stop()
	return t.release()
}

// withTurn waits in line, then runs fn with the TPM to itself. A caller whose
// ctx ends while it waits leaves the line. Once fn runs, ctx ends it only
// between two commands (see [link.alive]): a TPM command cannot be called back,
// and what fn loaded must be flushed.
//
// A connection that broke since its last use, because the TPM was restarted or
// the device went away and came back, is opened again and fn repeated; one that
// breaks in the middle costs this turn.
func (t *TPM) withTurn(ctx context.Context, fn func(*link) error) error {
	if err := t.queue.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("waiting for the TPM: %w", context.Cause(ctx))
	}
	defer t.queue.Release(1)
	if t.closed {
		return ErrClosed
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.idle.Stop()
	defer t.endTurn()
	for {
		stale := t.conn != nil
		l, err := t.connect(ctx)
		if err != nil {
			return err
		}
		err = fn(l)
		if l.broken != nil {
			t.drop(l)
			if stale && l.answered == 0 {
				continue
			}
		}
		if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
			// It may have failed by itself, but nobody waited any more.
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
}

// connect opens the TPM unless it is open, and clears away what an earlier
// connection that broke may have left in it.
func (t *TPM) connect(ctx context.Context) (*link, error) {
	if t.conn == nil {
		conn, err := t.open(ctx)
		if err != nil {
			return nil, err
		}
		t.conn, t.opened = conn, time.Now()
		t.srk = srk{}
	}
	l := &link{ctx: ctx, conn: t.conn}
	if err := t.clearLost(l); err != nil {
		t.drop(l)
		return nil, err
	}
	return l, nil
}

// endTurn lets go of a TPM that others wait for, else starts the idle clock.
func (t *TPM) endTurn() {
	switch {
	case t.conn == nil:
	case !t.conn.Managed() && time.Since(t.opened) > holdFor:
		// The device is opened anew at the next use, where an error that
		// matters is seen again.
		_ = t.release()
	default:
		t.idle.Reset(idleAfter)
	}
}

// rest is what the idle clock calls. Whoever has the turn just now starts the
// clock again when they are done.
func (t *TPM) rest() {
	if !t.queue.TryAcquire(1) {
		return
	}
	defer t.queue.Release(1)
	_ = t.release()
}

// release flushes the authorization session and closes the device.
func (t *TPM) release() error {
	if t.conn == nil {
		return nil
	}
	l := &link{ctx: context.Background(), conn: t.conn}
	err := t.endSession(l)
	if l.broken != nil {
		t.drop(l)
		return err
	}
	err = errors.Join(err, t.conn.Close())
	t.conn = nil
	return err
}

// drop gives up a connection that broke, and remembers what may be left in the
// TPM because of it.
func (t *TPM) drop(l *link) {
	// The connection failed already: how closing it goes tells nothing.
	_ = t.conn.Close()
	if !t.conn.Managed() {
		t.lost.add(l, t.session)
	}
	t.conn, t.session = nil, nil
}
