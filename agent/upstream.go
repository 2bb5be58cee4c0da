package agent

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// dialPatience is for connecting to an upstream, which takes microseconds
	// where it works.
	dialPatience = 2 * time.Second

	// listPatience is how long the one client that meets it first waits for an
	// upstream that does not answer.
	listPatience = time.Second

	// silence is what makes an upstream suspect: it owes answers, and has
	// given none for so long.
	silence = 20 * time.Millisecond

	// probeGrace is how long clients wait for a sign of life from a suspect.
	probeGrace = 3 * time.Millisecond

	// probePatience is how long a suspect may take to give it.
	probePatience = 10 * time.Second
)

// upstreams are the other agents, and what all connections know about them.
type upstreams struct {
	list []*upstream
	log  *slog.Logger
}

func newUpstreams(list []Upstream, log *slog.Logger) *upstreams {
	u := &upstreams{list: make([]*upstream, len(list)), log: log}
	for i, up := range list {
		u.list[i] = &upstream{name: up.Name, dialer: up.Dial, log: log}
	}
	return u
}

func (u *upstreams) any() bool { return len(u.list) > 0 }

// holder is the name of the first that has listed the key; "" if none has.
func (u *upstreams) holder(blob string) string {
	for _, up := range u.list {
		if up.holds(blob) {
			return up.name
		}
	}
	return ""
}

// relay is what one client needs to talk to them. It costs nothing until it is
// used.
func (u *upstreams) relay() *relay { return &relay{ups: u} }

// upstream is one of them.
//
// Whether it is well is judged by its silence while it owes answers, to
// whomever: a client should not have to find out by waiting what others are
// just finding out. So the first one waits for listPatience, others only until
// the silence has lasted too long, and who comes later not at all. Then a
// single probe waits for the upstream to come back. An agent that answers one
// request after the other, as OpenSSH's does, is silent to all while a dialog
// of its own is open; that is no different.
type upstream struct {
	name   string
	dialer func(context.Context) (net.Conn, error)
	log    *slog.Logger

	// mu guards what follows, and is never held while something could wait.
	mu    sync.Mutex
	owed  int       // requests in the works, from dialling to the answer
	quiet time.Time // if owed: it has given no answer since
	hung  bool      // it owed answers for too long, and has listed nothing since
	probe *probe    // in flight, or nil
	state state     // as last logged

	relayed, guessed int // see maxRelayed

	history history
}

// probe is a list request that no client waits for.
type probe struct {
	begun time.Time
	done  chan struct{}
}

// begin notes that an answer is owed from now on.
func (u *upstream) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.beginLocked(time.Now())
}

func (u *upstream) beginLocked(now time.Time) {
	if u.owed == 0 {
		u.quiet = now
	}
	u.owed++
}

// enter says whether there is room for one more request that is no list; see
// maxRelayed. leave makes room again.
func (u *upstream) enter(known bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.relayed == maxRelayed || !known && u.guessed == maxGuessed {
		return false
	}
	u.relayed++
	if !known {
		u.guessed++
	}
	return true
}

func (u *upstream) leave(known bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.relayed--
	if !known {
		u.guessed--
	}
}

// heard notes an answer.
func (u *upstream) heard() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.quiet = time.Now()
}

// end notes how it went with what began.
func (u *upstream) end(err error) {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.owed--
	switch stateOf(err) {
	case well, missing, broken:
		// It is there and speaks, or certainly is not there.
	default:
		u.hung = u.hung || u.silentLocked(now)
	}
}

// listedNow ends suspicion: what clients want is a list, and here is one.
func (u *upstream) listedNow() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hung = false
	u.quiet = time.Now()
}

func (u *upstream) silentLocked(now time.Time) bool { return now.Sub(u.quiet) >= silence }

func (u *upstream) suspectLocked(now time.Time) bool {
	return u.hung || (u.owed > 0 && u.silentLocked(now))
}

func (u *upstream) suspect() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.suspectLocked(time.Now())
}

// patience is how long to wait for something.
type patience struct {
	end   time.Time
	brief *upstream // not longer than this one's silence is bearable, or nil
}

func patienceFor(d time.Duration) patience { return patience{end: time.Now().Add(d)} }

// until is the moment at which to give up, as it is known now: each answer to
// others moves that of the brief.
func (p patience) until() time.Time {
	if p.brief == nil {
		return p.end
	}
	p.brief.mu.Lock()
	defer p.brief.mu.Unlock()
	if mark := p.brief.quiet.Add(silence); mark.Before(p.end) {
		return mark
	}
	return p.end
}

// beginList is begin for a list request. It says how long to wait for the
// answer; ok is false if the upstream is not worth asking, and then nothing
// has begun.
func (u *upstream) beginList(ctx context.Context) (p patience, ok bool) {
	if p, ok = u.tryBeginList(); ok {
		return p, true
	}
	if !u.awaitProbe(ctx) {
		return patience{}, false
	}
	return u.tryBeginList()
}

func (u *upstream) tryBeginList() (p patience, ok bool) {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.suspectLocked(now) {
		return patience{}, false
	}
	p.end = now.Add(listPatience)
	if u.owed > 0 {
		p.brief = u
	}
	u.beginLocked(now)
	return p, true
}

// awaitProbe gives the probe in flight a moment to end, and starts one if
// there is none. It says whether the probe has ended.
func (u *upstream) awaitProbe(ctx context.Context) bool {
	u.mu.Lock()
	p := u.probe
	if p == nil {
		p = &probe{begun: time.Now(), done: make(chan struct{})}
		u.probe = p
		go u.run(p)
	}
	u.mu.Unlock()
	grace := time.Until(p.begun.Add(probeGrace))
	if grace <= 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// run makes the probe. It has no client's bindings, so that its list is one to
// remember.
func (u *upstream) run(p *probe) {
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	l := &link{up: u, closed: true}
	keys, err := l.list(ctx, nil, patienceFor(probePatience))
	if err == nil {
		u.learn(keys, true)
	}
	u.mu.Lock()
	u.probe = nil
	if s := stateOf(err); s == missing || s == broken {
		u.hung = false
	}
	u.mu.Unlock()
	u.note(err)
	close(p.done)
}
