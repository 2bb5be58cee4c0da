package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

// server is one call of Serve.
type server struct {
	a *Agent
	l net.Listener

	// ctx is the parent of all requests. It outlives that of Serve by the
	// grace that they are given to finish.
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	conns map[*conn]struct{}
	wg    sync.WaitGroup // one for each of conns
}

// Serve answers the clients that connect to l until ctx ends. Then it closes l,
// idle connections and open dialogs, lets other requests finish for as long as
// Config.Grace, cancels those that have not, and returns nil. It returns an error
// if l fails for good, or if requests do not even end when they are cancelled. It
// may be called for several listeners.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	s := &server{a: a, l: l, conns: make(map[*conn]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer s.cancel()
	a.owner.Begin()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	err := s.accept(ctx)
	stop()
	l.Close()
	a.owner.End()
	return errors.Join(err, s.drain(), a.owner.Wait(a.config.Grace))
}

// accept returns nil when ctx has ended.
func (s *server) accept(ctx context.Context) error {
	var pause backoff
	for {
		nc, err := s.l.Accept()
		switch {
		case err == nil:
			pause = backoff{}
			s.start(ctx, nc)
		case ctx.Err() != nil:
			return nil
		case passes(err):
			if pause.delay == 0 {
				s.a.log.Error("no new connections for now", "err", err)
			}
			s.endIdle()
			pause.wait(ctx)
		default:
			return fmt.Errorf("accepting connections: %w", err)
		}
	}
}

// awaitRoom closes idle connections until there is room for one more. If all are
// busy it waits, and the new client with it. s.mu is held.
func (s *server) awaitRoom(ctx context.Context) {
	var pause backoff
	for ctx.Err() == nil && len(s.conns) >= s.a.config.MaxConns {
		n := len(s.conns)
		s.mu.Unlock()
		if pause.delay == 0 {
			s.a.log.Warn("too many clients; closing idle connections", "clients", n)
		}
		s.endIdle()
		pause.wait(ctx)
		s.mu.Lock()
	}
}

// endIdle closes the connection that has been idle for longest, if any is.
func (s *server) endIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest *conn
	first := int64(math.MaxInt64)
	for c := range s.conns {
		if since, idle := c.idle(); idle && since < first {
			longest, first = c, since
		}
	}
	if longest != nil {
		s.a.log.Info("closed an idle connection to make room", longest.peer())
		longest.close()
		delete(s.conns, longest) // not to be counted or chosen again
	}
}

// passes reports whether an error of accept(2) is about one connection, or about a
// lack of resources, rather than about the listener.
func passes(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains([]syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.ECONNABORTED, syscall.EINTR, syscall.EPROTO, syscall.EAGAIN,
	}, errno)
}

// backoff doubles its pause from 5 milliseconds to a second.
type backoff struct{ delay time.Duration }

func (b *backoff) wait(ctx context.Context) {
	b.delay = min(max(2*b.delay, 5*time.Millisecond), time.Second)
	select {
	case <-time.After(b.delay):
	case <-ctx.Done():
	}
}

func (s *server) start(ctx context.Context, nc net.Conn) {
	c := newConn(s.ctx, s.a, nc)
	s.mu.Lock()
	if len(s.conns) >= s.a.config.MaxConns {
		s.awaitRoom(ctx)
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	s.wg.Go(func() {
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// drain closes all connections.
func (s *server) drain() error {
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	s.each((*conn).drain)
	if within(s.a.config.Grace, done) {
		return nil
	}
	s.cancel()
	s.each((*conn).close)
	if within(s.a.config.Grace, done) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Errorf("%d requests did not end when they were cancelled", len(s.conns))
}

func (s *server) each(do func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		do(c)
	}
}

// within waits for done, for at most d, and reports whether it came.
func within(d time.Duration, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
