package agent

import (
	"fmt"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// grant is consent to the use of a key that holds for some time. It is for one
// key, and for what its owner was told that it is for: the same login or
// namespace, from the same place.
type grant struct {
	id       *identity
	use      string // see scope
	process  *instance
	mortal   bool
	deadline time.Duration // by the agent's clock; if mortal
}

// scope is all of a use that its owner was told.
func scope(u Use) string { return fmt.Sprintf("%#v", u) }

// granted says whether consent holds for what c asks.
func (a *Agent) granted(id *identity, peer Peer, use Use) bool {
	now := a.clock.Now()
	running := instanceOf(peer)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.grants {
		switch {
		case g.id.line != id.line || g.id.Key != id.Key || g.use != scope(use):
		case g.mortal && now >= g.deadline:
		case g.process == nil, running != nil && *running == *g.process:
			return true
		}
	}
	return false
}

// grant notes for how long consent holds. It does not outlast the agent's
// being locked, or the key. since is Agent.forgotten from before it was asked for.
func (a *Agent) grant(id *identity, peer Peer, use Use, how Grant, since uint64) {
	g := &grant{id: id, use: scope(use)}
	switch how {
	case GrantProcess:
		if g.process = instanceOf(peer); g.process == nil {
			return
		}
	case GrantMinutes:
		g.mortal, g.deadline = true, a.clock.Now()+GrantTime
	case GrantUntilLocked:
	default:
		return
	}
	a.forgetGrants(a.outlived)
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.lock.locked && a.forgotten.Load() == since {
		a.grants = append(a.grants, g)
		a.remembering()
	}
}

// outlived grants are of no use any more.
func (a *Agent) outlived(g *grant) bool {
	if g.process != nil {
		now := instanceOf(Peer{PID: g.process.pid})
		return now == nil || *now != *g.process
	}
	return g.mortal && a.clock.Now() >= g.deadline
}

// forgetGrants takes back consent.
func (a *Agent) forgetGrants(match func(*grant) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var kept []*grant
	for _, g := range a.grants {
		if !match(g) {
			kept = append(kept, g)
		}
	}
	a.grants = kept
}

// instance is a process, and no later one with the same number.
type instance struct {
	pid   int
	start uint64
}

// instanceOf is the peer's; nil if it is not known.
func instanceOf(p Peer) *instance {
	if running, ok := peer.LookAt(p.PID); ok {
		return &instance{running.PID, running.Start}
	}
	return nil
}
