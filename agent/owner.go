package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
)

// What the owner can ask a Keyring.

// ErrNoKey says that there is no such key, or that it cannot be used.
var ErrNoKey = errors.New("the agent has no such key")

// RefuseMalformed logs and keeps why a request could not be read.
func (k *Keyring) RefuseMalformed(c *Client, what string, err error) {
	k.refuse(c, what, nil, nil, refusal.New(refusal.Malformed, err))
}

// Status returns what is known about the PIN of a key. The error is ErrNoKey.
func (k *Keyring) Status(ctx context.Context, blob []byte) (consent.Status, error) {
	id, refused := k.lookup(string(blob))
	if refused != nil {
		return consent.Status{}, ErrNoKey
	}
	return k.owner.Status(ctx, &id.Identity), nil
}

// GivePIN remembers a PIN that was given before it is needed, if the key accepts
// it, and returns for how long. A ttl of 0 is as Config.PINLife says, or forever.
// The error is ErrNoKey, or one of consent.Owner.Give.
func (k *Keyring) GivePIN(ctx context.Context, c *Client, blob, pin []byte, ttl time.Duration) (time.Duration, error) {
	id, refused := k.lookup(string(blob))
	if refused != nil {
		k.refuse(c, "unlock key", nil, blob, refused)
		return 0, ErrNoKey
	}
	_, hash, err := scheme(id.plain, flagRSASHA256, false)
	if err != nil {
		return 0, err
	}
	nothing := make([]byte, 32)
	rand.Read(nothing)
	life, err := k.owner.Give(ctx, consent.Request{
		Identity: &id.Identity, Peer: c.Peer,
		Again:  func() (*consent.Identity, *refusal.Error) { return k.again(id) },
		Digest: digest(hash, nothing), Hash: hash,
	}, pin, ttl)
	if err != nil && !errors.Is(err, consent.ErrNoPIN) {
		k.refuse(c, "unlock key", id, nil, refusal.Because(ctx, causeOf(err), err))
	}
	return life, err
}

// ForgetPINs forgets all PINs, and all consent that was given for a time. It
// returns how many PINs there were. c is the client that asked for it, or nil.
func (k *Keyring) ForgetPINs(c *Client) int {
	n := k.owner.Forget()
	if c != nil {
		k.log.Info("forgot all PINs", "PINs", n, c.peer())
	}
	return n
}

// Where the private key of an identity is.
const (
	InDirectory = "directory" // a key file that a Source has
	InKeyFile   = "file"      // a key file that was added at run time
	InMemory    = "memory"    // the agent's own memory
	InUpstream  = "upstream"  // another agent
)

// Held is an identity that is offered, and under which conditions. Only the
// upstream agent knows the conditions of its keys.
type Held struct {
	Blob    []byte // the public key, or a certificate of it
	Comment string
	Name    string // of its key file, or of the upstream agent; "" in memory
	Keeper  string // InDirectory, …

	Mortal       bool          // it will be removed
	Lifetime     time.Duration // until then; if Mortal
	Confirm      bool
	Destinations []string // see restrict.Destination.String; none: anywhere

	PIN time.Duration // for how long it is still remembered; restrict.Forever; 0: not at all
}

// Held returns all identities that are offered, including those of upstream agents
// as the client sees them, in the order of lists.
func (k *Keyring) Held(ctx context.Context, c *Client) (all []Held) {
	v, wall, now := k.now(), time.Now(), k.config.Clock.Now()
	for _, id := range v.ids {
		if id.expired(wall) {
			continue
		}
		h := Held{
			Blob: []byte(id.blob), Comment: id.Comment, Name: id.Name, Keeper: InDirectory,
			Confirm: k.config.ConfirmAll, PIN: k.owner.PINLeft(&id.Identity),
		}
		if e := k.added.get(id.blob); e != nil && e.identity == id {
			h.limit(e, now)
		}
		all = append(all, h)
	}
	if k.upstreams == nil || c.relay == nil {
		return all
	}
	for _, id := range c.relay.List(ctx) {
		if v.byBlob[id.Blob] == nil {
			all = append(all, Held{Blob: []byte(id.Blob), Comment: id.Comment, Name: id.Agent, Keeper: InUpstream})
		}
	}
	return all
}

// limit sets the conditions of an identity that was added.
func (h *Held) limit(e *entry, now time.Duration) {
	h.Keeper = InKeyFile
	if _, ok := e.Key.(wiper); ok {
		h.Keeper = InMemory
	}
	if h.Mortal = e.mortal; e.mortal {
		h.Lifetime = max(0, e.deadline-now)
	}
	h.Confirm = h.Confirm || e.limits.Confirm
	for i := range e.limits.Destinations {
		h.Destinations = append(h.Destinations, e.limits.Destinations[i].String())
	}
}
