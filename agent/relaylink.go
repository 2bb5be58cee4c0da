package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// idleTime is how long a connection that is not used stays open.
	idleTime = 30 * time.Second

	// wakePatience is for a list from an upstream that is not known to have
	// what it will be asked for.
	wakePatience = 5 * time.Second

	// answerPatience is for everything that can make an upstream ask its user,
	// or wait for a touch.
	answerPatience = 2 * time.Minute

	// maxRelayed is how many requests are with one upstream at a time, and
	// maxGuessed how many of them it is not known to be the right one for. Two
	// agents that are each other's upstream would pass such a request to and
	// fro until there are no descriptors left.
	maxRelayed = 256
	maxGuessed = 16
)

// link is what one client has with one upstream: a connection of its own, so
// that what the client's bindings allow there is right, dialled when there is
// something to say.
type link struct {
	up *upstream

	// What follows is for idleness, which ends in a goroutine of a timer. A
	// connection in use belongs to who took it.
	mu     sync.Mutex
	idle   *upConn // or nil
	timer  *time.Timer
	closed bool // nothing is kept from now on
}

// take returns the idle connection if it is as it was left, or nil.
func (l *link) take() *upConn {
	l.mu.Lock()
	w := l.idle
	l.idle = nil
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	if w != nil && w.stale() {
		w.nc.Close()
		return nil
	}
	return w
}

// put keeps a connection for the next request.
func (l *link) put(w *upConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		w.nc.Close()
		return
	}
	l.idle = w
	if l.timer == nil {
		l.timer = time.AfterFunc(idleTime, l.drop)
	} else {
		l.timer.Reset(idleTime)
	}
}

// drop closes the connection if nobody uses it. A timer that was late may find
// the next one to be idle, which costs a dial.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle != nil {
		l.idle.nc.Close()
		l.idle = nil
	}
}

func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()
	l.drop()
}

// with calls use with a connection on which every one of binds was answered.
// It is closed if use fails.
func (l *link) with(ctx context.Context, binds [][]byte, p patience, use func(*upConn) error) error {
	w := l.take()
	if w == nil {
		var err error
		if w, err = l.up.dial(ctx, p); err != nil {
			return err
		}
	}
	err := l.bind(ctx, w, binds, p)
	if err == nil {
		err = use(w)
	}
	if err != nil {
		w.nc.Close()
		return err
	}
	l.put(w)
	return nil
}

func (u *upstream) dial(ctx context.Context, p patience) (*upConn, error) {
	end := time.Now().Add(dialPatience)
	if until := p.until(); until.Before(end) {
		end = until
	}
	limited, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	nc, err := u.dialer(limited)
	switch {
	case ctx.Err() != nil:
		if err == nil {
			nc.Close()
		}
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return &upConn{nc: nc}, nil
}

// bind tells w the bindings that it has not heard yet. It may refuse them: a
// client that talked to the upstream itself would go on as well, and what the
// upstream makes of it is its own affair. It may not leave them unanswered.
func (l *link) bind(ctx context.Context, w *upConn, binds [][]byte, p patience) error {
	for w.bound < len(binds) {
		if _, err := w.ask(ctx, binds[w.bound], p); err != nil {
			return fmt.Errorf("binding: %w", err)
		}
		w.bound++
		l.up.heard()
	}
	return nil
}

// list asks for the keys.
func (l *link) list(ctx context.Context, binds [][]byte, p patience) (c *catalog, err error) {
	err = twice(ctx, func() error {
		return l.with(ctx, binds, p, func(w *upConn) error {
			c, err = l.listOn(ctx, w, p)
			return err
		})
	})
	return c, err
}

func (l *link) listOn(ctx context.Context, w *upConn, p patience) (*catalog, error) {
	answer, err := w.ask(ctx, []byte{msgRequestIdentities}, p)
	if err != nil {
		return nil, fmt.Errorf("listing: %w", err)
	}
	if answer[lengthSize] == msgFailure {
		return &catalog{}, nil
	}
	return l.up.parse(answer[lengthSize:])
}

// errand is a request to be relayed.
type errand struct {
	request []byte
	binds   [][]byte // told before
	known   bool     // the upstream is the right one for it
	once    bool     // not to be repeated
}

// errBusy: see maxRelayed.
var errBusy = errors.New("too many requests are with the upstream agent")

// request relays a request. An upstream that is not known to be the right one
// must first show that it is awake: not every request should wait as long as
// one that its user may be asked about. sent says whether it may have got the
// request.
func (l *link) request(ctx context.Context, e errand) (answer []byte, sent bool, err error) {
	if !l.up.enter(e.known) {
		return nil, false, errBusy
	}
	defer l.up.leave(e.known)
	l.up.begin()
	work := func() error {
		answer, err = l.relay(ctx, e, &sent)
		return err
	}
	if e.once || !repeatable(e.request[0]) {
		err = work()
	} else {
		err = twice(ctx, work)
	}
	l.up.end(err)
	if !sent || stateOf(err) != silent { // else it is its user who does not answer
		l.up.note(err)
	}
	return answer, sent, err
}

func (l *link) relay(ctx context.Context, e errand, sent *bool) (answer []byte, err error) {
	*sent = false
	p := patienceFor(answerPatience)
	if !e.known {
		p = patienceFor(wakePatience)
	}
	err = l.with(ctx, e.binds, p, func(w *upConn) (err error) {
		if !e.known {
			if err = l.wake(ctx, w, p, len(e.binds) == 0); err != nil {
				return err
			}
		}
		*sent = true
		answer, err = w.ask(ctx, e.request, patienceFor(answerPatience))
		return err
	})
	if err == nil {
		l.up.heard()
	}
	return answer, err
}

func (l *link) wake(ctx context.Context, w *upConn, p patience, unbound bool) error {
	c, err := l.listOn(ctx, w, p)
	if err == nil {
		l.up.learn(c, unbound)
	}
	return err
}

// twice repeats what failed because the upstream hung up, as one does that is
// restarted.
func twice(ctx context.Context, work func() error) error {
	err := work()
	if errors.Is(err, errGone) && ctx.Err() == nil {
		return work()
	}
	return err
}

// repeatable says whether doing it twice is the same as once. Giving a wrong
// PIN to a smart card is not.
func repeatable(request byte) bool {
	switch request {
	case msgRequestIdentities, msgSignRequest, msgAddIdentity, msgAddIDConstrained,
		msgRemoveIdentity, msgRemoveAllIdentities:
		return true
	}
	return false
}
