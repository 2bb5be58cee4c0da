package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// Add adds an identity under constraints (as they are encoded in
// SSH_AGENTC_ADD_ID_CONSTRAINED). what names the request in the log.
func (k *Keyring) Add(c *Client, what string, added Identity, constraints []byte) *refusal.Error {
	id := newIdentity(added)
	refused := k.add(c, id, constraints)
	if refused != nil {
		k.refuse(c, what, id, nil, refused)
		return refused
	}
	k.log.Info("added", "key", id.Label(), "type", id.Public.Type(), "fingerprint", id.Fingerprint,
		slog.Any("constraints", id.limits), c.peer())
	return nil
}

func (k *Keyring) add(c *Client, id *identity, constraints []byte) *refusal.Error {
	var err error
	if id.limits, err = restrict.ParseConstraints(constraints); err != nil {
		return refusal.New(refusal.Constraint, err)
	}
	if life := id.limits.PINLife; life != nil {
		if _, inMemory := id.Key.(wiper); inMemory {
			return refusal.New(refusal.Constraint, errors.New("a key in memory has no PIN"))
		}
		id.PINLife = life
	}
	// A client that cannot see a key cannot give it other constraints.
	if old := k.added.get(id.blob); old != nil {
		if err := old.visible(c, time.Now()); err != nil {
			return refusal.New(refusal.Destination, err)
		}
	}
	// A certificate that has expired already was not added by mistake: it can
	// still sign for a time in the past, so it stays offered.
	if id.expired(time.Now()) {
		id.expires = ssh.CertTimeInfinity
	}
	life, mortal := k.config.Lifetime, k.config.Lifetime > 0
	if id.limits.Lifetime != nil {
		life, mortal = time.Duration(*id.limits.Lifetime)*time.Second, true
	}
	replaced, ok := k.added.put(&entry{id, mortal, k.config.Clock.Now() + life})
	wipe(replaced)
	if !ok {
		return refusal.New(refusal.TooMany, nil)
	}
	k.now() // a lifetime of 0 is over now
	return nil
}

// add answers ADD_IDENTITY and ADD_ID_CONSTRAINED.
func (a *Agent) add(ctx context.Context, c *Client, request []byte) []byte {
	m, err := softkey.ParseAddition(request)
	if err != nil {
		a.refuse(c, "add identity", nil, nil, refusal.New(refusal.Malformed, err))
		return wire.Failure()
	}
	if m.Foreign || a.config.NoSoftwareKeys {
		if m.Key != nil {
			m.Key.Wipe()
		}
		return a.addUpstream(ctx, c, m, request)
	}
	if a.Add(c, "add identity", Identity{Public: m.Public, Comment: m.Comment, Key: m.Key}, m.Constraints) != nil {
		m.Key.Wipe()
		return wire.Failure()
	}
	return wire.Success()
}

type removeRequest struct {
	Blob []byte `sshtype:"18"`
	Rest []byte `ssh:"rest"`
}

// remove answers REMOVE_IDENTITY. As with OpenSSH's agent, a key and its
// certificates are removed one by one, each by its own blob; a certificate that
// has expired can still be removed, and what the client may not use cannot.
func (a *Agent) remove(ctx context.Context, c *Client, request []byte) []byte {
	var m removeRequest
	if err := ssh.Unmarshal(request, &m); err != nil {
		a.refuse(c, "remove", nil, nil, refusal.New(refusal.Malformed, err))
		return wire.Failure()
	}
	id, refused := a.lookup(string(m.Blob))
	if refused != nil && refused.Cause != refusal.Expired {
		return a.removeUpstream(ctx, c, m.Blob, request, refused)
	}
	if err := id.visible(c, time.Now()); err != nil {
		a.refuse(c, "remove", id, nil, refusal.New(refusal.Destination, err))
		return wire.Failure()
	}
	if gone := a.drop(func(e *entry) bool { return e.blob == id.blob }); len(gone) == 0 {
		a.hide(id)
	}
	a.owner.Sweep()
	a.log.Info("removed", "key", id.Label(), "fingerprint", id.Fingerprint, c.peer())
	return wire.Success()
}

// removeAll answers REMOVE_ALL_IDENTITIES, which no constraint limits. Keys that
// appear in a source later were not removed, and the files stay. The upstream
// agents are told as well: a client that removed all keys expects an empty list.
func (a *Agent) removeAll(ctx context.Context, c *Client) []byte {
	n := len(a.drop(func(*entry) bool { return true }))
	for _, s := range a.config.Sources {
		n += a.hide(s.Identities().ids...)
	}
	a.owner.Sweep()
	a.log.Info("removed all; key files stay, and are offered again after SIGHUP or a restart", "keys", n, c.peer())
	if a.upstreams == nil {
		return wire.Success()
	}
	if err := c.relay.All(ctx, []byte{wire.MsgRemoveAllIdentities}); err != nil {
		a.refuse(c, "remove all", nil, nil, refusal.New(refusal.Upstream, err))
		return wire.Failure()
	}
	return wire.Success()
}

// lock answers LOCK and UNLOCK (RFC 9987, section 5.7).
func (a *Agent) lock(ctx context.Context, c *Client, request []byte) []byte {
	number, w := request[0], &wire.Parser{Rest: request[1:]}
	password, what := w.Bytes(), wire.RequestName(number)
	refused := refusal.New(refusal.Malformed, w.Err)
	switch {
	case w.Err != nil:
	case number == wire.MsgLock:
		refused = a.owner.Lock(ctx, password)
	default:
		refused = a.owner.Unlock(ctx, password)
	}
	if refused != nil {
		a.refuse(c, what, nil, nil, refused)
		return wire.Failure()
	}
	a.log.Info(what+"ed", c.peer())
	return wire.Success()
}
