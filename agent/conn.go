package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

const (
	// readTimeout is the time from the first byte of a message to its last.
	// Between messages a client may be silent forever.
	readTimeout = 30 * time.Second

	// writeTimeout is the time in which a client must take its answer.
	writeTimeout = 30 * time.Second

	// What a client may send ahead of its answers. Beyond that it is not read until
	// some have been given.
	maxWaiting      = 64
	maxWaitingBytes = 512 << 10 // exceeded by at most one message
)

// A conn is one client connection. Its reader keeps reading while a request is
// being answered, for two reasons: to see at once that the client hangs up, and
// because clients send requests ahead of answers. run's goroutine answers them in
// order, and only it uses Client.
type conn struct {
	Client
	a  *Agent
	nc net.Conn

	requests chan []byte   // received and not answered yet; only the reader sends
	bytes    atomic.Int64  // in requests
	room     chan struct{} // tells the reader that a request was taken

	pending  atomic.Int32 // requests without an answer
	lastUsed atomic.Int64 // when the last answer was given, in nanoseconds since 1970

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
		a: a, nc: nc, requests: make(chan []byte, maxWaiting), room: make(chan struct{}, 1),
		closed: make(chan struct{}), drained: make(chan struct{}),
	}
	c.Peer = peer.Peer{PID: -1, UID: -1}
	if known, ok := nc.(interface {
		Peer() (pid, uid int, program string)
	}); ok {
		c.Peer.PID, c.Peer.UID, c.Peer.Program = known.Peer()
	}
	if a.upstreams != nil {
		c.relay = a.upstreams.Relay()
	}
	c.ctx, c.hangUp = context.WithCancel(ctx)
	c.lastUsed.Store(time.Now().UnixNano())
	return c
}

// run serves the client until it hangs up, breaks the protocol or is drained, and
// closes the connection.
func (c *conn) run() {
	reader := make(chan struct{})
	go func() {
		defer close(reader)
		c.guard(c.read)
		close(c.requests)
	}()
	c.guard(c.answer)
	c.close()
	if c.relay != nil {
		c.relay.Close()
	}
	<-reader
	for request := range c.requests {
		clear(request) // it may have secrets in it, and gets no answer
	}
}

// guard keeps a panic to the connection in which it happens.
func (c *conn) guard(work func()) {
	defer func() {
		if p := recover(); p != nil {
			c.a.log.Error("panic, connection closed", "panic", fmt.Sprint(p), c.peer(), "stack", string(debug.Stack()))
			c.close()
		}
	}()
	work()
}

// close is called by both goroutines and by the server.
func (c *conn) close() {
	c.hangUp()
	c.closing.Do(func() { close(c.closed) })
	c.nc.Close()
}

// drain stops reading. What was received is answered, then the connection is
// closed.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		c.draining = true
		close(c.drained)
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// setReadDeadline leaves the deadline of drain alone.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining {
		c.nc.SetReadDeadline(t)
	}
}

// read queues requests until the client hangs up, then cancels them. What was
// sent before is still answered, as far as that works without the context. If the
// connection is drained, it only ends.
func (c *conn) read() {
	r := &wire.Reader{From: c.nc}
	begun := func() { c.setReadDeadline(time.Now().Add(readTimeout)) }
	var err error
	for err == nil {
		if len(c.requests) == maxWaiting || c.bytes.Load() >= maxWaitingBytes {
			err = c.awaitRoom()
			continue
		}
		c.setReadDeadline(time.Time{})
		var request []byte
		if request, err = r.ReadMessage(begun); err == nil {
			c.pending.Add(1)
			c.bytes.Add(int64(len(request)))
			c.requests <- request // there is room
		}
	}
	c.mu.Lock()
	draining := c.draining
	c.mu.Unlock()
	if !draining {
		c.hangUp()
		c.ended(err)
	}
}

// ended logs why the connection ends, unless one side just closed it.
func (c *conn) ended(err error) {
	if !wire.OrdinaryEnd(err) {
		c.a.log.Warn("connection closed", "cause", err, c.peer())
	}
}

// peer returns the client for the log.
func (c *Client) peer() slog.Attr {
	return slog.Group("peer", slog.Int("pid", c.Peer.PID), slog.String("program", c.Peer.Program))
}

// idle reports whether the client waits for nothing, and since when.
func (c *conn) idle() (since int64, idle bool) {
	return c.lastUsed.Load(), c.pending.Load() == 0
}

// reply is the answer to a request, and what is left to do when the client has
// it.
type reply struct {
	answer []byte
	after  func() // may be nil
}

func failed() reply { return reply{answer: wire.Failure()} }

// answer answers the requests in order.
func (c *conn) answer() {
	for request := range c.requests {
		c.bytes.Add(-int64(len(request)))
		select {
		case c.room <- struct{}{}:
		default:
		}
		r := c.handle(request)
		c.lastUsed.Store(time.Now().UnixNano()) // before the client can go on
		c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := c.nc.Write(r.answer)
		c.pending.Add(-1) // not before: a client that waits for its answer is not idle
		if r.after != nil {
			r.after()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("client takes no answer: %w", err)
		}
		if err != nil {
			c.ended(err)
			return
		}
	}
}

// handle answers one request, and leaves no secret in it, even if it panics.
func (c *conn) handle(request []byte) reply {
	a, number := c.a, request[0]
	if a.isSecret(request) {
		defer clear(request)
	}
	a.config.Before()
	if a.owner.Locked() && !worksLocked(number) {
		a.refuse(&c.Client, wire.RequestName(number), nil, nil, refusal.New(refusal.Locked, nil))
		return failed()
	}
	switch number {
	case wire.MsgRequestIdentities:
		return reply{answer: a.list(c.ctx, &c.Client)}
	case wire.MsgSignRequest:
		return a.sign(c.ctx, &c.Client, request)
	case wire.MsgAddIdentity, wire.MsgAddIDConstrained:
		return reply{answer: a.add(c.ctx, &c.Client, request)}
	case wire.MsgRemoveIdentity:
		return reply{answer: a.remove(c.ctx, &c.Client, request)}
	case wire.MsgRemoveAllIdentities, msgRemoveAllRSA1:
		return reply{answer: a.removeAll(c.ctx, &c.Client)}
	case wire.MsgAddSmartcardKey, wire.MsgAddSmartcardConstr, wire.MsgRemoveSmartcardKey:
		return reply{answer: a.smartcard(c.ctx, &c.Client, request)}
	case wire.MsgLock, wire.MsgUnlock:
		return reply{answer: a.lock(c.ctx, &c.Client, request)}
	case wire.MsgExtension:
		return reply{answer: a.extension(c.ctx, c, request)}
	}
	a.refuse(&c.Client, wire.RequestName(number), nil, nil, refusal.New(refusal.Unsupported, nil))
	return failed()
}

// msgRemoveAllRSA1 is of version 1 of the protocol. ssh-add -D still sends it
// after REMOVE_ALL_IDENTITIES.
const msgRemoveAllRSA1 = 9

// worksLocked reports whether a locked agent looks at a request: the list is
// empty, and each extension decides for itself.
func worksLocked(number byte) bool {
	return number == wire.MsgRequestIdentities || number == wire.MsgUnlock || number == wire.MsgExtension
}

// isSecret reports whether a request has private keys, PINs or passwords in it.
func (a *Agent) isSecret(request []byte) bool {
	switch request[0] {
	case wire.MsgExtension:
		w := &wire.Parser{Rest: request[1:]}
		return a.extensions[w.Text()].Secret
	case wire.MsgAddIdentity, wire.MsgAddIDConstrained, wire.MsgAddSmartcardKey, wire.MsgAddSmartcardConstr,
		wire.MsgRemoveSmartcardKey, wire.MsgLock, wire.MsgUnlock:
		return true
	}
	return false
}
