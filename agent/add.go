package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// add answers ADD_IDENTITY and ADD_ID_CONSTRAINED.
func (a *Agent) add(ctx context.Context, c *conn, request []byte) []byte {
	m, err := parseAddition(request)
	if err != nil {
		a.refuse(c.asker(), "add identity", nil, &refusal{CauseMalformed, err})
		return failure()
	}
	if m.foreign || a.noSoftwareKeys {
		if m.key != nil {
			m.key.wipe()
		}
		return a.addUpstream(ctx, c, m, request)
	}
	id := newIdentity(Identity{Public: m.public, Comment: m.comment, Key: m.key})
	if r := a.addOwn(c, id, m.constraints); r != nil {
		m.key.wipe()
		a.refuse(c.asker(), "add identity", id, r)
		return failure()
	}
	return success()
}

// addOwn holds an identity under the constraints of its request.
func (a *Agent) addOwn(c *conn, id *identity, limits []byte) *refusal {
	var err error
	if id.limits, err = parseConstraints(limits); err != nil {
		return &refusal{CauseConstraint, err}
	}
	if _, inMemory := id.Key.(wiper); inMemory && id.limits.pinLife != nil {
		return &refusal{CauseConstraint, errors.New("a key in memory has no PIN")}
	}
	if r := a.mayReplace(c, id.blob); r != nil {
		return r
	}
	if !a.hold(id) {
		return &refusal{cause: CauseTooMany}
	}
	a.log.Info("added", "key", id.name(), "type", id.Public.Type(), "fingerprint", id.fingerprint(),
		slog.Any("constraints", id.limits), "peer", c.peer)
	return nil
}

// mayReplace: who cannot see a key here cannot give it other constraints.
func (a *Agent) mayReplace(c *conn, blob string) *refusal {
	a.mu.Lock()
	id := a.added.get(blob)
	a.mu.Unlock()
	if id == nil {
		return nil
	}
	if err := id.visible(c, time.Now()); err != nil {
		return &refusal{CauseDestination, err}
	}
	return nil
}
