package upstream

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/wire"
)

const (
	// idleTime is how long an unused connection stays open.
	idleTime = 30 * time.Second

	// answerPatience is for requests, other than lists and signatures, about which
	// an upstream may ask its user.
	answerPatience = 2 * time.Minute
)

// A link connects one client with one upstream. The connection is its own, because
// the client's bindings decide what the upstream allows on it.
type link struct {
	relay *Relay
	up    *upstream
	keys  []Listed // what the upstream has listed for this client last

	mu   sync.Mutex // guards idle against the timer
	idle *conn      // not in use; may be nil
}

// take returns the idle connection if it can still be used, or nil.
func (l *link) take() *conn {
	l.mu.Lock()
	c := l.idle
	l.idle = nil
	l.mu.Unlock()
	if c == nil {
		return nil
	}
	c.idle.Stop()
	if c.stale() {
		c.Close()
		return nil
	}
	return c
}

// put keeps a connection for the next request.
func (l *link) put(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = c
	c.idle = time.AfterFunc(idleTime, l.drop)
}

// drop closes the idle connection.
func (l *link) drop() {
	if c := l.take(); c != nil {
		c.Close()
	}
}

// do calls use with a connection that has been told the client's bindings. If it
// was idle and turns out to be closed, as after a restart of the upstream, use is
// called again with a new one. A deadline of zero means that do waits for as long
// as the client does.
func (l *link) do(ctx context.Context, deadline time.Time, use func(*conn) ([]byte, error)) (answer []byte, err error) {
	err = io.EOF
	if c := l.take(); c != nil {
		answer, err = l.with(ctx, c, deadline, use)
	}
	if wire.OrdinaryEnd(err) {
		var c *conn
		if c, err = l.up.dial(ctx); err == nil {
			answer, err = l.with(ctx, c, deadline, use)
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return answer, l.up.record(err)
}

// with binds and uses c. It keeps c if that works and the client still waits.
func (l *link) with(ctx context.Context, c *conn, deadline time.Time, use func(*conn) ([]byte, error)) (answer []byte, err error) {
	c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	if err = ctx.Err(); err == nil {
		err = l.bind(c)
	}
	if err == nil {
		answer, err = use(c)
	}
	if !stop() || err != nil {
		c.Close()
		return nil, err
	}
	l.put(c)
	return answer, nil
}

// bind tells the upstream the bindings that it has not heard on c. It may refuse
// them, as if the client talked to it directly; but it must answer.
func (l *link) bind(c *conn) error {
	for _, b := range l.relay.binds[c.bound:] {
		if _, err := c.ask(b); err != nil {
			return err
		}
		c.bound++
	}
	return nil
}

func (u *upstream) dial(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	nc, err := u.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return &conn{Conn: nc}, nil
}

// list asks for the keys, and sets l.keys.
func (l *link) list(ctx context.Context) error {
	deadline := time.Now().Add(patience)
	if err := l.up.await(ctx, l.up.lists); err != nil {
		return err
	}
	defer func() { <-l.up.lists }()
	_, err := l.do(ctx, deadline, func(c *conn) (answer []byte, err error) {
		if answer, err = c.ask([]byte{wire.MsgRequestIdentities}); err == nil {
			l.keys, err = parseList(answer[wire.LengthSize:], l.up.Name)
		}
		return answer, err
	})
	return err
}

// holds reports whether the upstream has listed a key.
func (l *link) holds(blob string) bool {
	return slices.ContainsFunc(l.keys, func(k Listed) bool { return k.Blob == blob })
}

// request makes a request for a key that the upstream has listed.
func (l *link) request(ctx context.Context, request []byte) (answer []byte, err error) {
	deadline := time.Now().Add(answerPatience)
	if request[0] == wire.MsgSignRequest {
		deadline = time.Time{} // The user may be thinking.
	}
	return l.do(ctx, deadline, func(c *conn) ([]byte, error) { return c.ask(request) })
}

// offer makes any other request, if the upstream is able to list its keys and, if
// needsBinding, proves that it checks bindings. sent reports whether the upstream
// may have received the request.
func (l *link) offer(ctx context.Context, request []byte, needsBinding bool) (answer []byte, sent bool, err error) {
	err = l.list(ctx)
	if err == nil && needsBinding {
		err = l.up.provesBinding(ctx)
	}
	if err == nil {
		err = l.up.await(ctx, l.up.offers)
	}
	if err != nil {
		return nil, false, err
	}
	defer func() { <-l.up.offers }()
	// A new connection leads to the agent that has just proven itself. And on a new
	// connection do never repeats a request: there may be a wrong PIN in it.
	l.drop()
	answer, err = l.do(ctx, time.Now().Add(answerPatience), func(c *conn) ([]byte, error) {
		sent = true
		return c.ask(request)
	})
	return answer, sent, err
}
