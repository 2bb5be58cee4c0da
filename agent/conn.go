package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// readTimeout is the time from the first byte of a message to its last.
	// Between messages a client may be silent for ever.
	readTimeout = 30 * time.Second

	// writeTimeout is the time in which a client must take its answer.
	writeTimeout = 30 * time.Second
)

// conn is one client. Its reader reads on while a request is being answered,
// for two reasons: to see at once that the client hangs up, and because
// clients send requests ahead of answers. The answers are given one after the
// other by run's goroutine.
type conn struct {
	a       *Agent
	nc      net.Conn
	peer    Peer
	waiting *queue

	// What this connection was bound to, and its connections to the upstream
	// agents. Only the goroutine that answers uses them.
	bindings bindings
	relay    *relay

	pending  atomic.Int32 // requests without an answer
	lastUsed atomic.Int64 // by the agent's clock

	// ctx is that of every request, and ends when the client hangs up.
	ctx    context.Context
	hangUp context.CancelFunc

	closing sync.Once
	closed  chan struct{} // closed with nc

	mu       sync.Mutex // orders the read deadlines of reader and drain
	draining bool
	drained  chan struct{} // closed when draining
}

func newConn(ctx context.Context, a *Agent, nc net.Conn) *conn {
	c := &conn{
		a: a, nc: nc, peer: peerOf(nc), waiting: newQueue(),
		closed: make(chan struct{}), drained: make(chan struct{}),
	}
	c.ctx, c.hangUp = context.WithCancel(ctx)
	c.relay = a.upstreams.relay()
	c.lastUsed.Store(int64(a.clock.Now()))
	return c
}

// run serves the client until it hangs up, breaks the protocol or is drained,
// and closes the connection.
func (c *conn) run() {
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		c.guard(c.read)
		c.waiting.end()
	}()
	c.guard(c.answer)
	c.close()
	c.relay.close()
	<-reader
	c.waiting.discard()
}

// guard keeps a panic to the connection in which it happens.
func (c *conn) guard(work func()) {
	defer func() {
		if p := recover(); p != nil {
			c.a.log.Error("panic, connection closed", "panic", fmt.Sprint(p), "peer", c.peer, "stack", string(debug.Stack()))
			c.close()
		}
	}()
	work()
}

// close is for both goroutines and for the server.
func (c *conn) close() {
	c.hangUp()
	c.closing.Do(func() { close(c.closed) })
	c.nc.Close()
}

// drain ends the reading: what has come is answered, then the connection is
// closed.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		c.draining = true
		close(c.drained)
		c.nc.SetReadDeadline(longAgo)
	}
}

// longAgo as a deadline ends what is waiting.
var longAgo = time.Unix(1, 0)

// setReadDeadline leaves the deadline of drain alone.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		c.nc.SetReadDeadline(t)
	}
}

func (c *conn) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}

// read queues the client's requests. Its end is that of the requests'
// context, unless it ended because of drain. What was sent before is still
// answered, as far as it can be without the context.
func (c *conn) read() {
	err := c.readRequests()
	if c.isDraining() {
		return
	}
	c.hangUp()
	if !ordinaryEnd(err) {
		c.a.log.Warn("connection closed", "cause", err, "peer", c.peer)
	}
}

func (c *conn) readRequests() error {
	r := &reader{from: c.nc}
	begun := func() { c.setReadDeadline(time.Now().Add(readTimeout)) }
	for !c.isDraining() {
		if c.waiting.full() {
			if err := c.awaitRoom(); err != nil {
				return err
			}
			continue
		}
		c.setReadDeadline(time.Time{})
		request, err := readMessage(r, begun)
		if err != nil {
			return err
		}
		c.pending.Add(1)
		c.waiting.put(request)
	}
	return nil
}

// idle says whether the client waits for nothing, and since when.
func (c *conn) idle() (since time.Duration, idle bool) {
	return time.Duration(c.lastUsed.Load()), c.pending.Load() == 0
}

// ordinaryEnd: the client has closed the connection, or we have.
func ordinaryEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// reply is what a request gets: the answer, and what is left to do when the
// client has it.
type reply struct {
	answer []byte
	after  func() // may be nil
}

// answer gives the answers, in the order of the requests.
func (c *conn) answer() {
	for {
		request, ok := c.waiting.take()
		if !ok {
			return
		}
		r := c.handle(request)
		c.lastUsed.Store(int64(c.a.clock.Now())) // before the client can go on
		err := c.write(r.answer)
		c.pending.Add(-1)
		if r.after != nil {
			r.after()
		}
		if err != nil {
			if !ordinaryEnd(err) {
				c.a.log.Warn("connection closed", "cause", err, "peer", c.peer)
			}
			return
		}
	}
}

// handle leaves no secret in the request, not even if it panics.
func (c *conn) handle(request []byte) reply {
	if isSecret(request) {
		defer clear(request)
	}
	c.a.before()
	return c.a.handle(c.ctx, c, request)
}

func (c *conn) write(answer []byte) error {
	c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := c.nc.Write(answer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("client takes no answer: %w", err)
	}
	return err
}

// handle answers one request.
func (a *Agent) handle(ctx context.Context, c *conn, request []byte) reply {
	number := request[0]
	if a.isLocked() && !worksLocked(number) {
		a.refuse(c.asker(), requestName(number), nil, &refusal{cause: CauseLocked})
		return reply{answer: failure()}
	}
	switch number {
	case msgRequestIdentities:
		return reply{answer: a.list(ctx, c)}
	case msgSignRequest:
		return a.sign(ctx, c, request)
	case msgAddIdentity, msgAddIDConstrained:
		return reply{answer: a.add(ctx, c, request)}
	case msgRemoveIdentity:
		return reply{answer: a.remove(ctx, c, request)}
	case msgRemoveAllIdentities, msgRemoveAllRSA1:
		return reply{answer: a.removeAll(ctx, c)}
	case msgAddSmartcardKey, msgAddSmartcardConstr, msgRemoveSmartcardKey:
		return reply{answer: a.smartcard(ctx, c, request)}
	case msgLock, msgUnlock:
		return reply{answer: a.lockUnlock(ctx, c, request)}
	case msgExtension:
		return reply{answer: a.extension(ctx, c, request)}
	}
	a.refuse(c.asker(), requestName(number), nil, &refusal{cause: CauseUnsupported})
	return reply{answer: failure()}
}

// worksLocked are the requests that a locked agent looks at: the list is
// empty, and of the extensions there is one.
func worksLocked(number byte) bool {
	return number == msgRequestIdentities || number == msgUnlock || number == msgExtension
}

// isSecret are the requests with private keys, PINs and passwords in them.
func isSecret(request []byte) bool {
	switch request[0] {
	case msgExtension:
		return bytes.HasPrefix(request, appendString([]byte{msgExtension}, extUnlockKey))
	case msgAddIdentity, msgAddIDConstrained, msgAddSmartcardKey, msgAddSmartcardConstr, msgRemoveSmartcardKey, msgLock, msgUnlock:
		return true
	}
	return false
}
