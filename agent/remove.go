package agent

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"
)

// remove answers REMOVE_IDENTITY. As with OpenSSH's agent a key and its
// certificates are removed one by one, each by its own blob; a certificate
// that has expired can still be removed, and what may not be used over this
// connection cannot.
func (a *Agent) remove(ctx context.Context, c *conn, request []byte) []byte {
	by := c.asker()
	var m removeRequest
	if err := ssh.Unmarshal(request, &m); err != nil {
		a.refuse(by, "remove", nil, &refusal{CauseMalformed, err})
		return failure()
	}
	id, refused := a.lookup(string(m.Blob))
	if refused != nil && refused.cause != CauseExpired {
		return a.removeUpstream(ctx, c, m.Blob, request, refused)
	}
	if err := id.visible(c, time.Now()); err != nil {
		a.refuse(by, "remove", id, &refusal{CauseDestination, err})
		return failure()
	}
	a.removeOwn(id)
	a.log.Info("removed", "key", id.name(), "fingerprint", id.fingerprint(), "peer", c.peer)
	return success()
}

// removeOwn removes one identity.
func (a *Agent) removeOwn(id *identity) {
	gone := a.drop(func(e *entry) bool { return e.blob == id.blob })
	if len(gone) == 0 {
		a.hide(id)
	}
	a.sweepPINs()
}

// hide hides identities of the source, and returns how many of them were there
// until now.
func (a *Agent) hide(ids ...*identity) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removed, n = a.removed.and(ids...)
	a.changed()
	return n
}

// removeUpstream removes what is not ours, or not any more.
func (a *Agent) removeUpstream(ctx context.Context, c *conn, blob, request []byte, refused *refusal) []byte {
	print := slog.String("fingerprint", fingerprintOf(blob))
	if refused.elsewhere() && a.upstreams.any() {
		answer, r := a.relayFor(ctx, c, blob, request)
		if r == nil {
			a.log.Info("removed from an upstream agent", print, "peer", c.peer)
			return answer
		}
		refused = r
	}
	a.refuse(c.asker(), "remove", nil, refused, print)
	return failure()
}

// removeAll answers REMOVE_ALL_IDENTITIES, which no constraint limits. What
// appears in the source later was not removed, and the files that it is from
// stay. The upstream agents are told too: a client that asked for all and sees
// keys in the next list was lied to.
func (a *Agent) removeAll(ctx context.Context, c *conn) []byte {
	n := len(a.drop(func(*entry) bool { return true }))
	n += a.hide(a.source.Identities().ids...)
	a.sweepPINs()
	a.log.Info("removed all; key files stay, and are offered again after SIGHUP or a restart", "keys", n, "peer", c.peer)
	if !a.upstreams.any() {
		return success()
	}
	if err := c.relay.all(ctx, []byte{msgRemoveAllIdentities}); err != nil {
		a.refuse(c.asker(), "remove all", nil, &refusal{CauseUpstream, err})
		return failure()
	}
	return success()
}
