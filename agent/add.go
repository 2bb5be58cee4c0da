package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
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
	if r := a.mayReplace(c, id.blob); r != nil {
		return r
	}
	a.hold(id)
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

// addUpstream passes on what this agent does not hold: as it came, so that
// constraints that only the upstream knows reach it.
func (a *Agent) addUpstream(ctx context.Context, c *conn, m *addition, request []byte) []byte {
	answer, r := a.relayAddition(ctx, c, m, request)
	if r != nil {
		a.refuse(c.asker(), "add identity", nil, r, slog.String("type", m.typ))
		return failure()
	}
	a.log.Info("added to an upstream agent", "type", m.typ, "peer", c.peer)
	return answer
}

func (a *Agent) relayAddition(ctx context.Context, c *conn, m *addition, request []byte) ([]byte, *refusal) {
	if !a.upstreams.any() {
		return nil, a.notHeld(m)
	}
	if c.bindings.remote() && foreignProvider(request) {
		return nil, &refusal{CauseRemote, errors.New("a FIDO provider is code, and may not be named over a forwarded connection")}
	}
	request, r := a.withLifetime(m, request)
	if r != nil {
		return nil, r
	}
	_, restricted := mentions(request, extRestrictDestination)
	answer, err := c.relay.first(ctx, request, restricted)
	if err != nil {
		return nil, because(ctx, CauseUpstream, err)
	}
	if !isSuccess(answer) {
		return nil, &refusal{CauseUpstream, errors.New("no upstream agent takes the key")}
	}
	return answer, nil
}

func (a *Agent) notHeld(m *addition) *refusal {
	if m.foreign {
		return &refusal{CauseUnsupported, errors.New("keys of type " + m.typ + " are held only by an upstream agent, and there is none")}
	}
	return &refusal{cause: CauseNoSoftware}
}

// foreignProvider says whether a request names a FIDO provider other than the
// one built into the agent that it is for.
func foreignProvider(request []byte) bool {
	rest, found := mentions(request, extProvider)
	if !found {
		return false
	}
	w := &wire{rest: rest}
	return !strings.EqualFold(w.text(), "internal") || w.err != nil
}

// withLifetime gives a request on its way upstream the lifetime that keys have
// here if their owner asks for none.
func (a *Agent) withLifetime(m *addition, request []byte) ([]byte, *refusal) {
	if a.lifetime == 0 {
		return request, nil
	}
	if !m.layout {
		return nil, &refusal{CauseConstraint, errors.New("whether the key has a lifetime cannot be told, and keys get one here")}
	}
	if hasLifetime(m.constraints) {
		return request, nil
	}
	seconds := uint32(a.lifetime / time.Second)
	request = append(bytes.Clone(request), (&constraints{lifetime: &seconds}).marshal()...)
	request[0] = msgAddIDConstrained
	return request, nil
}

// hasLifetime looks for a lifetime among constraints, of which it need not
// know all: extensions that are known to have one string as their contents are
// passed over.
func hasLifetime(b []byte) bool {
	w := &wire{rest: b}
	for !w.done() {
		switch w.byte() {
		case constrainLifetime:
			return true
		case constrainConfirm:
		case constrainExtension:
			w.string()
			w.string()
		default:
			return false
		}
	}
	return false
}

// smartcard answers what is about smart cards. That is PKCS #11: code that the
// upstream agent loads by a name from the request. It must not come from
// another machine (CVE-2023-38408).
func (a *Agent) smartcard(ctx context.Context, c *conn, request []byte) []byte {
	r := func() *refusal {
		switch {
		case !a.upstreams.any():
			return &refusal{cause: CauseUnsupported}
		case c.bindings.remote():
			return &refusal{CauseRemote, errors.New("smart cards are for clients on this machine")}
		}
		return nil
	}()
	var answer []byte
	if r == nil {
		_, restricted := mentions(request, extRestrictDestination)
		var err error
		if answer, err = c.relay.first(ctx, request, restricted); err != nil {
			r = because(ctx, CauseUpstream, err)
		}
	}
	if r != nil {
		a.refuse(c.asker(), requestName(request[0]), nil, r)
		return failure()
	}
	return answer
}
