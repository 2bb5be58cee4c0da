package agent

import (
	"context"
	"errors"
	"fmt"
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

// service is what all calls of Serve have in common. It is guarded by Agent.mu.
type service struct {
	calls  int
	ending context.Context // ends with the last of them
	cancel context.CancelFunc
}

func newService() (s service) {
	s.ending, s.cancel = context.WithCancel(context.Background())
	return s
}

func (a *Agent) beginService() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.service.ending.Err() != nil {
		a.service = newService()
	}
	a.service.calls++
}

func (a *Agent) endService() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.service.calls--; a.service.calls == 0 {
		a.service.cancel()
	}
}

// Serve answers the clients that connect to l until ctx ends. Then it closes
// l and the connections that wait for nothing, takes questions to the user away,
// lets other requests in flight finish for as long as Config.Grace, and returns
// nil. What has not finished by then
// is cancelled. It returns an error if l fails for good, or if requests do not
// even end when they are cancelled. It may be called for several listeners.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	s := &server{a: a, l: l, conns: make(map[*conn]struct{})}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer s.cancel()
	a.beginService()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	err := s.accept(ctx)
	stop()
	l.Close()
	a.endService()
	return errors.Join(err, s.drain(), a.settleDown())
}

// accept returns nil when ctx has ended.
func (s *server) accept(ctx context.Context) error {
	var pause backoff
	for {
		nc, err := s.l.Accept()
		switch {
		case err == nil:
			pause.reset()
			s.awaitRoom(ctx)
			s.start(nc)
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

// awaitRoom ends connections that are idle until there is room for one more;
// if all are busy it waits, and the new client with it.
func (s *server) awaitRoom(ctx context.Context) {
	var pause backoff
	for ctx.Err() == nil && s.count() >= s.a.maxConns {
		if pause.delay == 0 {
			s.a.log.Warn("as many clients as are served at a time; ending idle ones", "clients", s.count())
		}
		s.endIdle()
		pause.wait(ctx)
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// endIdle ends the connection that has been idle for longest, if any is.
func (s *server) endIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest *conn
	first := never
	for c := range s.conns {
		if since, idle := c.idle(); idle && since < first {
			longest, first = c, since
		}
	}
	if longest != nil {
		s.a.log.Info("idle connection ended, to make room", "peer", longest.peer)
		longest.close()
		delete(s.conns, longest) // not to be counted or chosen again
	}
}

// passes says whether an error of accept(2) is about the one connection, or
// about a lack of something, rather than about the listener.
func passes(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains([]syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.ECONNABORTED, syscall.EINTR, syscall.EPROTO, syscall.EAGAIN,
	}, errno)
}

// backoff doubles its pause from 5 milliseconds to a second.
type backoff struct{ delay time.Duration }

func (b *backoff) reset() { b.delay = 0 }

func (b *backoff) wait(ctx context.Context) {
	b.delay = min(max(2*b.delay, 5*time.Millisecond), time.Second)
	select {
	case <-time.After(b.delay):
	case <-ctx.Done():
	}
}

func (s *server) start(nc net.Conn) {
	c := newConn(s.ctx, s.a, nc)
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	s.wg.Go(func() {
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// drain ends all connections.
func (s *server) drain() error {
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	s.each((*conn).drain)
	if within(s.a.grace, done) {
		return nil
	}
	s.cancel()
	s.each((*conn).close)
	if within(s.a.grace, done) {
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

// within waits for done, but not longer than d.
func within(d time.Duration, done <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
