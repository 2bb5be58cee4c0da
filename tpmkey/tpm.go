package tpmkey

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sync/semaphore"
)

// Conn is an open TPM that takes whole commands and returns whole responses. Only one
// goroutine uses it at a time.
type Conn interface {
	// Send transmits one command and returns its response. After an error the
	// Conn must not be used again: the next response could belong to this
	// command.
	Send(ctx context.Context, command []byte) (response []byte, err error)
	Close() error
	// Managed reports whether a resource manager flushes what a client left in
	// the TPM when it closes its Conn. Without one, a single client uses the TPM
	// at a time, and what it leaves there stays.
	Managed() bool
}

const (
	// idleAfter is how long the device stays open, and the authorization session
	// in the TPM, after the last use: long enough for a burst of signatures,
	// short enough not to keep other programs waiting.
	idleAfter = 2 * time.Second
	// holdFor is how long a TPM without resource manager stays open while
	// signatures keep coming. Then other programs get a chance.
	holdFor = time.Second
)

// TPM is one TPM and the queue of its callers. It opens the device when there is work
// and closes it after some idle seconds. It is safe for use by several goroutines;
// they get their turns in order of arrival.
type TPM struct {
	open func(context.Context) (Conn, error)
	// queue has one unit, which is the turn. Only its holder may touch the fields
	// below, and the state of a Key.
	queue *semaphore.Weighted

	conn    Conn
	opened  time.Time
	idle    *time.Timer
	session *session
	parents primaries
	srk     srk
	hashes  map[tpm2.TPMAlgID]bool
	lost    leftovers
	closed  bool
}

// New returns the TPM that open opens. The device is opened at the first use.
func New[C Conn](open func(context.Context) (C, error)) *TPM {
	t := &TPM{
		open: func(ctx context.Context) (Conn, error) {
			conn, err := open(ctx)
			if err != nil {
				return nil, err // not a Conn that contains a nil pointer
			}
			return conn, nil
		},
		queue:   semaphore.NewWeighted(1),
		parents: make(primaries),
	}
	t.idle = time.AfterFunc(idleAfter, t.rest)
	t.idle.Stop()
	return t
}

// Close waits for the turn in progress, flushes what the TPM still holds of ours and
// closes the device. Later calls of other methods fail.
func (t *TPM) Close() error {
	if err := t.queue.Acquire(context.Background(), 1); err != nil {
		return err
	}
	defer t.queue.Release(1)
	t.closed = true
	t.idle.Stop()
	return t.release()
}

// withTurn waits for its turn, then calls fn, which has the TPM to itself. A caller
// whose ctx ends leaves the queue. Once fn runs, ctx can stop it only between two
// commands (see [link.alive]): a TPM command cannot be cancelled, and fn must flush
// what it loaded.
//
// If the connection broke since its last use, because the TPM was restarted or the
// device was removed and came back, withTurn opens it again and repeats fn. A
// connection that breaks during fn costs this turn.
func (t *TPM) withTurn(ctx context.Context, fn func(*link) error) error {
	if err := t.queue.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("waiting for the TPM: %w", context.Cause(ctx))
	}
	defer t.queue.Release(1)
	if t.closed {
		return errors.New("the TPM is closed")
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
			// fn may have failed for another reason, but its caller has gone.
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
}

// connect opens the TPM unless it is open, and flushes what a broken connection may
// have left in it.
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
	if len(t.lost.objects)+len(t.lost.unnamed) > 0 {
		t.clearLost(l)
	}
	if l.broken != nil {
		t.drop(l)
		return nil, l.broken
	}
	return l, nil
}

// endTurn closes a TPM that other programs may be waiting for. Otherwise it starts
// the idle timer.
func (t *TPM) endTurn() {
	switch {
	case t.conn == nil:
	case !t.conn.Managed() && time.Since(t.opened) > holdFor:
		// The next use opens the device again and reports any error that
		// matters.
		_ = t.release()
	default:
		t.idle.Reset(idleAfter)
	}
}

// rest is called by the idle timer. If a turn is in progress, its end starts the
// timer again.
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

// drop closes a broken connection and remembers what it may have left in the TPM.
func (t *TPM) drop(l *link) {
	_ = t.conn.Close() // it is broken already
	if !t.conn.Managed() {
		t.lost.add(l, t.session)
	}
	t.conn, t.session = nil, nil
}

// leftovers names what broken connections may have left in a TPM that has no resource
// manager.
type leftovers struct {
	objects []string // Names
	unnamed []unnamed
}

// unnamed is something in the TPM that has no Name, or whose Name is not known: a
// session, or what a command created whose response was lost.
type unnamed struct {
	boot   bootCount      // the run of the TPM that it belongs to
	handle tpm2.TPMHandle // 0 if it was in the lost response
	// What was there before the command, if there is no handle.
	kind   tpm2.TPMHandle // the first handle of that kind
	before []tpm2.TPMHandle
}

func (lo *leftovers) add(l *link, s *session) {
	for _, name := range l.held {
		if !slices.Contains(lo.objects, name) {
			lo.objects = append(lo.objects, name)
		}
	}
	if s != nil {
		lo.unnamed = append(lo.unnamed, unnamed{boot: s.boot, handle: s.handle})
	}
	lo.unnamed = append(lo.unnamed, l.unnamed...)
}

// First handles of what a command can create (TPM 2.0 Part 2, 7.2).
const (
	firstSession   tpm2.TPMHandle = 0x02000000
	firstTransient tpm2.TPMHandle = 0x80000000
)

// making calls fn, which sends a command that creates something of this kind. On a
// TPM without resource manager it first records what is there, which takes two
// commands. Signatures without a policy do not come here.
func (l *link) making(kind tpm2.TPMHandle, fn func() error) error {
	if l.conn.Managed() {
		return fn()
	}
	boot, err := l.readBootCount()
	if err != nil {
		return err
	}
	before, err := l.handles(kind)
	if err != nil {
		return err
	}
	l.boot = boot
	err = fn()
	if l.broken != nil {
		l.unnamed = append(l.unnamed, unnamed{boot: boot, kind: kind, before: before})
	}
	return err
}

// clearLost flushes what earlier connections left. If the TPM refuses to list or to
// flush something, the caller's commands are tried anyway: they fail themselves if
// there is no room. Only a broken connection is an error (see l.broken), and nothing
// is forgotten then.
func (t *TPM) clearLost(l *link) {
	lost := t.lost
	t.lost = leftovers{}
	if len(lost.objects) > 0 {
		l.clearObjects(lost.objects)
	}
	for _, u := range lost.unnamed {
		l.clearUnnamed(u)
	}
	if l.broken != nil {
		t.lost = lost
	}
}

// clearObjects flushes objects by their Names: a handle may have been given to an
// object of another program since.
func (l *link) clearObjects(names []string) {
	handles, _ := l.handles(firstTransient)
	for _, h := range handles {
		rsp, err := execute(l, "TPM2_ReadPublic", tpm2.ReadPublic{ObjectHandle: h})
		if err == nil && slices.Contains(names, string(rsp.Name.Buffer)) {
			_ = l.flush(h)
		}
	}
}

// clearUnnamed flushes what u stands for, unless the TPM was reset since. What
// appeared since a command whose response was lost is taken for its result: the TPM
// serves one client at a time.
func (l *link) clearUnnamed(u unnamed) {
	now, err := l.readBootCount()
	if err != nil || now != u.boot {
		return
	}
	if u.handle != 0 {
		_ = l.flush(u.handle)
		return
	}
	handles, _ := l.handles(u.kind)
	for _, h := range handles {
		if !slices.Contains(u.before, h) {
			_ = l.flush(h)
		}
	}
}

// bootCount tells one run of a TPM from the next (TPMS_CLOCK_INFO of TPM 2.0 Part 2,
// 10.11.1).
type bootCount struct{ reset, restart uint32 }

func (l *link) readBootCount() (bootCount, error) {
	rsp, err := execute(l, "TPM2_ReadClock", tpm2.ReadClock{})
	if err != nil {
		return bootCount{}, err
	}
	info := rsp.CurrentTime.ClockInfo
	return bootCount{info.ResetCount, info.RestartCount}, nil
}

// handles returns the handles in the TPM of the kind that begins with first.
func (l *link) handles(first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	return query(l, tpm2.TPMCapHandles, uint32(first), uint32(first)+63, (*tpm2.TPMUCapabilities).Handles,
		func(list *tpm2.TPMLHandle) []tpm2.TPMHandle { return list.Handle },
		func(h tpm2.TPMHandle) uint32 { return uint32(h) })
}
