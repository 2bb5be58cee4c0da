// Package upstream passes requests on to other agents, whose keys are offered
// behind our own.
//
// Requests and answers are passed on as raw messages, so that keys of kinds that
// are unknown here work. Each client has its own connection to each upstream.
package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

const (
	// patience is for what takes an upstream microseconds: accepting a
	// connection, and listing its keys.
	patience = time.Second

	// firstPause is how long an upstream is not asked for lists after one of them
	// timed out. The pause doubles, up to longestPause, with each further timeout.
	firstPause   = 2 * time.Second
	longestPause = time.Minute

	// maxLists and maxOffers are how many requests can be with one upstream at a
	// time, not counting those for keys that it has listed. Two agents that are each
	// other's upstream would otherwise pass such a request to and fro until there are
	// no descriptors left. It waits for at most turnPatience until there are fewer.
	maxLists     = 32
	maxOffers    = 8
	turnPatience = 200 * time.Millisecond
)

var (
	errBusy      = errors.New("too many requests are waiting for this agent")
	errSilent    = errors.New("it did not answer, and is asked for its keys again later")
	errNoBinding = errors.New("it does not check session bindings")
)

// An Agent is another agent.
type Agent struct {
	Name string // for errors, the log and Listed
	Dial func(context.Context) (net.Conn, error)
}

// Agents are the other agents, in the order in which they are asked.
type Agents struct{ list []*upstream }

// New returns Agents that log when one of them fails, and when it works again.
func New(list []Agent, log *slog.Logger) *Agents {
	a := new(Agents)
	for _, up := range list {
		a.list = append(a.list, &upstream{
			Agent: up, log: log, lists: make(chan struct{}, maxLists), offers: make(chan struct{}, maxOffers),
		})
	}
	return a
}

// Any reports whether there are any.
func (a *Agents) Any() bool { return len(a.list) > 0 }

// Relay returns what a new client needs to use the agents. It opens no connection
// before the client makes a request.
func (a *Agents) Relay() *Relay {
	r := new(Relay)
	for _, up := range a.list {
		r.links = append(r.links, &link{relay: r, up: up})
	}
	return r
}

// An upstream is one of the other agents, and how it is doing.
type upstream struct {
	Agent
	log           *slog.Logger
	lists, offers chan struct{} // full: see maxLists

	mu     sync.Mutex
	failed bool          // the last request failed, as the log says
	pause  time.Duration // 0 unless a list timed out, and nothing was answered since
	again  time.Time     // when to ask for a list again, if there is a pause
}

// await waits until there is room in lists or offers, and takes it.
func (u *upstream) await(ctx context.Context, room chan<- struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, turnPatience)
	defer cancel()
	select {
	case room <- struct{}{}:
		return nil
	case <-ctx.Done():
		return u.named(errBusy)
	}
}

// mayList returns nil if the upstream should be asked for its keys. When a pause
// is over, a single client finds out whether the upstream answers.
func (u *upstream) mayList() error {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.pause == 0:
		return nil
	case now.Before(u.again):
		return u.named(errSilent)
	}
	u.again = now.Add(patience)
	return nil
}

// record notes how a request went, logs changes, and returns err with the name of
// the upstream.
func (u *upstream) record(err error) error {
	u.mu.Lock()
	before := u.failed
	u.failed = err != nil
	timeout, ok := errors.AsType[net.Error](err)
	if now := time.Now(); err == nil {
		u.pause, u.again = 0, time.Time{}
	} else if ok && timeout.Timeout() && !now.Before(u.again) {
		// Lists that time out together count once: the first one sets again.
		u.pause = min(max(firstPause, 2*u.pause), longestPause)
		u.again = now.Add(u.pause)
	}
	u.mu.Unlock()
	switch {
	case err == nil && before:
		u.log.Info("upstream agent is back", "upstream", u.Name)
	case err != nil && !before:
		u.log.Warn("upstream agent fails", "upstream", u.Name, "err", err)
	}
	return u.named(err)
}

func (u *upstream) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("upstream %s: %w", u.Name, err)
}

// provesBinding returns nil if the upstream accepts a valid binding and refuses a
// false one, on a connection that is made for this. Others would ignore the
// destinations of a key.
func (u *upstream) provesBinding(ctx context.Context) error {
	valid, wrong, err := restrict.Probes()
	if err != nil {
		return fmt.Errorf("making a session binding: %w", err)
	}
	l := &link{relay: new(Relay), up: u}
	defer l.drop()
	var toValid []byte
	toWrong, err := l.do(ctx, time.Now().Add(patience), func(c *conn) (answer []byte, err error) {
		if toValid, err = c.ask(valid); err != nil {
			return nil, err
		}
		return c.ask(wrong)
	})
	if err == nil && (!bytes.Equal(toValid, wire.Success()) || bytes.Equal(toWrong, wire.Success())) {
		err = u.named(errNoBinding)
	}
	return err
}
