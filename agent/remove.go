package agent

import (
	"log/slog"
	"maps"
	"time"

	"golang.org/x/crypto/ssh"
)

// removals are the identities that clients have removed, by blob. They belong
// to the source, so they are only hidden, and come back with [Agent.Reload].
// A removals is never changed, only replaced: a copy taken under the lock can
// be read outside it.
type removals struct {
	blobs map[string]bool
	count uint64 // of changes, to tell one state from another
}

func (r *removals) has(blob string) bool { return r.blobs[blob] }

// add returns how many of ids were not removed before.
func (r *removals) add(ids ...*identity) int {
	blobs := maps.Clone(r.blobs)
	if blobs == nil {
		blobs = make(map[string]bool, len(ids))
	}
	before := len(blobs)
	for _, id := range ids {
		blobs[id.blob] = true
	}
	*r = removals{blobs, r.count + 1}
	return len(blobs) - before
}

func (r *removals) clear() { *r = removals{nil, r.count + 1} }

// lookup finds the identity that a client names by its blob, if it may be
// used now.
func (a *Agent) lookup(blob string) (*identity, *refusal) {
	set, now := a.source.Identities(), time.Now()
	id := set.byBlob[blob]
	a.mu.Lock()
	removed := a.removed.has(blob)
	a.mu.Unlock()
	switch {
	case id == nil:
		return nil, &refusal{cause: causeUnknownKey}
	case removed:
		return id, &refusal{cause: causeRemoved}
	case id.expired(now):
		return id, &refusal{cause: causeExpired}
	}
	return id, nil
}

// remove answers REMOVE_IDENTITY. As with OpenSSH's agent a key and its
// certificates are removed one by one, each by its own blob, and a
// certificate that has expired can still be removed.
func (a *Agent) remove(c *conn, request []byte) []byte {
	var m removeRequest
	if err := ssh.Unmarshal(request, &m); err != nil {
		a.refuse(slog.Any("peer", c.peer), "remove", nil, &refusal{causeMalformed, err})
		return failure()
	}
	set := a.source.Identities()
	id := set.byBlob[string(m.Blob)]
	if id == nil {
		a.refuse(slog.Any("peer", c.peer), "remove", nil, &refusal{cause: causeUnknownKey})
		return failure()
	}
	if a.hide(id) == 0 {
		a.refuse(slog.Any("peer", c.peer), "remove", id, &refusal{cause: causeRemoved})
		return failure()
	}
	a.log.Info("removed", "key", id.Name, "fingerprint", id.fingerprint(), "peer", c.peer)
	return success()
}

// hide removes ids, and returns how many of them were there until now.
func (a *Agent) hide(ids ...*identity) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.removed.add(ids...)
}

// removeAll answers REMOVE_ALL_IDENTITIES. What appears in the source later
// was not removed.
func (a *Agent) removeAll(c *conn) []byte {
	n := a.hide(a.source.Identities().ids...)
	a.log.Info("removed all", "keys", n, "peer", c.peer)
	return success()
}
