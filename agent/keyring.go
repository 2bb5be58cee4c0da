package agent

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
)

// A Keyring stands between the doors and the keys: it decides which keys a client
// may see and use, asks their owner, keeps a log, and remembers why requests were
// refused.
type Keyring struct {
	config    Config
	log       *slog.Logger
	added     *addedKeys
	owner     *consent.Owner
	upstreams *upstream.Agents // nil: none
	refusals  refusal.Log

	mu      sync.Mutex // held while a view is made
	removed atomic.Pointer[removals]
	view    atomic.Pointer[view]
}

// NewKeyring returns a Keyring.
func NewKeyring(c Config) *Keyring {
	c.setDefaults()
	k := &Keyring{config: c, log: c.Log}
	if len(c.Upstreams) > 0 {
		k.upstreams = upstream.New(c.Upstreams, c.Log)
	}
	k.added = newAdded(c.Clock, k.expire)
	k.removed.Store(new(removals))
	k.owner = consent.NewOwner(consent.Config{
		Prompter: c.Prompter, Clock: c.Clock, Log: c.Log, Present: k.present,
		PINLife: c.PINLife, GivenPIN: c.GivenPIN, Remembering: c.Remembering,
	})
	return k
}

// A Client is one connection of a door.
type Client struct {
	Peer     peer.Peer
	Bindings restrict.Bindings // what an SSH client has proven about its connection
	relay    *upstream.Relay   // nil for doors without upstream agents
}

// now returns what is offered now.
func (k *Keyring) now() *view {
	if next := time.Duration(k.added.next.Load()); next != never && k.config.Clock.Now() >= next {
		k.expire()
	}
	v := k.view.Load()
	if v == nil || v.removed != k.removed.Load() || v.sets[len(v.sets)-1] != k.added.set.Load() {
		return k.look()
	}
	for i, s := range k.config.Sources {
		if s.Identities() != v.sets[i] {
			return k.look()
		}
	}
	return v
}

// look makes a new view, and forgets what belongs to keys that are gone. If sets
// change meanwhile, the next request sees that and makes another view.
func (k *Keyring) look() *view {
	sets := k.sets()
	k.mu.Lock()
	old := k.view.Load()
	v := newView(sets, k.removed.Load())
	k.view.Store(v)
	k.mu.Unlock()
	if v.listing.unlisted > 0 && (old == nil || !slices.Equal(old.sets, sets)) {
		k.log.Warn("more keys than clients accept in one list; the rest can be used by name (IdentityFile)",
			"listed", v.listing.listed, "unlisted", v.listing.unlisted)
	}
	k.owner.Sweep()
	return v
}

// sets returns what the sources have now and, behind it, what was added.
func (k *Keyring) sets() (sets []*Set) {
	for _, s := range k.config.Sources {
		sets = append(sets, s.Identities())
	}
	return append(sets, k.added.set.Load())
}

// present implements consent.Config.Present.
func (k *Keyring) present() (offered, exists func(keyBlob string, key Key) bool) {
	keys := k.now().keys
	offered = func(keyBlob string, key Key) bool { return keys[presence{keyBlob, key}] }
	exists = func(keyBlob string, key Key) bool { _, ok := keys[presence{keyBlob, key}]; return ok }
	return offered, exists
}

// lookup finds the identity that a client names by its blob, if it may be used
// now. With a refusal the identity may be returned as well, for the log.
func (k *Keyring) lookup(blob string) (*identity, *refusal.Error) {
	v := k.now()
	id := v.byBlob[blob]
	switch {
	case k.owner.Locked():
		return id, refusal.New(refusal.Locked, nil)
	case id == nil && v.hidden[blob] != nil:
		return v.hidden[blob], refusal.New(refusal.Removed, nil)
	case id == nil:
		return nil, refusal.New(refusal.UnknownKey, nil)
	case id.expired(time.Now()):
		return id, refusal.New(refusal.Expired, nil)
	}
	return id, nil
}

// An Offer is an identity that a client may see.
type Offer struct {
	Public  ssh.PublicKey // an *ssh.Certificate for a certificate
	Comment string
}

// Offered returns the identities that a client may see: those of the sources and
// those that were added. There are none while the Keyring is locked.
func (k *Keyring) Offered(c *Client) (offers []Offer) {
	if k.owner.Locked() {
		return nil
	}
	now := time.Now()
	for _, id := range k.now().ids {
		if !id.expired(now) && id.visible(c, now) == nil {
			offers = append(offers, Offer{id.Public, id.Comment})
		}
	}
	return offers
}

// A Message is data that a client wants to have signed.
type Message struct {
	// Data has the bytes that an SSH client signs. They tell what the signature is
	// for, and keys with destinations sign nothing else. nil: Use tells.
	Data []byte
	Use  ask.Use

	Digest []byte // what the key signs: a digest of Hash, or the data itself if Hash is 0
	Hash   crypto.Hash
}

// A Signature is one that was made. The client should have it before it is logged.
type Signature struct {
	Raw []byte // as crypto.Signer encodes it
	Log func(format string)
}

// Sign has a key sign for a client, if the key's constraints and its owner allow
// it. blob is the wire encoding of the public key or the certificate that the
// client asks for; prepare gets the key and returns the message. A refusal is
// logged and kept for `tpm-agent why`.
func (k *Keyring) Sign(ctx context.Context, c *Client, blob []byte, prepare func(ssh.PublicKey) (Message, error)) (*Signature, *refusal.Error) {
	begun := time.Now()
	id, refused := k.lookup(string(blob))
	var raw []byte
	if refused == nil {
		raw, refused = k.sign(ctx, c, id, prepare)
	}
	took := slog.Duration("duration", time.Since(begun))
	if refused != nil {
		k.refuse(c, "sign", id, blob, refused, took)
		return nil, refused
	}
	return &Signature{raw, func(format string) {
		k.log.Info("signed", "key", id.Label(), "fingerprint", id.Fingerprint, "algorithm", format, c.peer(), took)
	}}, nil
}

func (k *Keyring) sign(ctx context.Context, c *Client, id *identity, prepare func(ssh.PublicKey) (Message, error)) ([]byte, *refusal.Error) {
	m, err := prepare(id.plain)
	if err != nil {
		return nil, refusal.New(refusal.Algorithm, err)
	}
	if ctx.Err() != nil {
		return nil, refusal.New(refusal.HungUp, ctx.Err())
	}
	var destination string
	if id.restricted() {
		if destination, err = permit(c, id, m); err != nil {
			return nil, refusal.New(refusal.Destination, err)
		}
	}
	raw, err := k.owner.Sign(ctx, consent.Request{
		Identity: &id.Identity,
		Again:    func() (*consent.Identity, *refusal.Error) { return k.again(id) },
		Peer:     c.Peer,
		Use:      func() ask.Use { return k.use(c, id, m, destination) },
		Origin:   c.Bindings.Origin,
		Confirm:  k.config.ConfirmAll || id.limits != nil && id.limits.Confirm,
		Digest:   m.Digest, Hash: m.Hash,
	})
	if err != nil {
		return nil, refusal.Because(ctx, causeOf(err), err)
	}
	return raw, nil
}

// causeOf returns the cause for the error of a key.
func causeOf(err error) refusal.Cause {
	var l consent.LockedOut
	var w consent.WrongAuth
	switch {
	case errors.As(err, &l):
		return refusal.Lockout
	case errors.As(err, &w) && w.WrongAuth():
		return refusal.WrongAuth
	}
	return refusal.Key
}

// permit judges a message by the key's destinations, and returns the name that
// they give the host.
func permit(c *Client, id *identity, m Message) (destination string, err error) {
	if m.Data == nil {
		return "", errors.New("the key has destinations, and this is no login")
	}
	return restrict.MaySign(id.limits.Destinations, &c.Bindings, id.Public, m.Data, time.Now())
}

// use returns the purpose of a signature.
func (k *Keyring) use(c *Client, id *identity, m Message, destination string) ask.Use {
	if m.Data == nil {
		return m.Use
	}
	var named func(ssh.PublicKey) string
	if k.config.HostName != nil {
		named = func(host ssh.PublicKey) string { return k.config.HostName(host, c.Peer) }
	}
	return restrict.UseOf(&c.Bindings, id.Public, m.Data, named, destination)
}

// again looks an identity up whenever there was time to remove or replace it, or
// to lock the Keyring. What was judged by other constraints than those that it has
// now was not judged.
func (k *Keyring) again(was *identity) (*consent.Identity, *refusal.Error) {
	id, refused := k.lookup(was.blob)
	switch {
	case refused != nil:
		return nil, refused
	case id.limits != was.limits:
		return nil, refusal.New(refusal.Replaced, nil)
	}
	return &id.Identity, nil
}

// Reload brings back the identities of the sources that clients have removed, but
// not those covered by an added one.
func (k *Keyring) Reload() { k.removed.Store(new(removals)) }

// Forget removes all keys that were added, all PINs and all consent that was given
// for a time, and overwrites them in memory, even if the Keyring is locked. The
// keys of the sources stay.
func (k *Keyring) Forget() {
	n := len(k.drop(func(*entry) bool { return true }))
	k.log.Info("forgot all keys that were added, and all PINs", "keys", n, "PINs", k.owner.Forget())
}

// expire removes added identities that have reached their deadline.
func (k *Keyring) expire() {
	now := k.config.Clock.Now()
	for _, id := range k.drop(func(e *entry) bool { return e.mortal && now >= e.deadline }) {
		k.log.Info("lifetime is over, removed", "key", id.Label(), "fingerprint", id.Fingerprint)
	}
	k.owner.Sweep()
}

// drop removes added identities, and wipes them. Their keys stay hidden in the
// sources, where they have no constraints, until Reload.
func (k *Keyring) drop(match func(*entry) bool) []*identity {
	sets := k.sets()
	k.mu.Lock()
	gone := k.added.remove(match)
	if len(gone) > 0 {
		k.removed.Store(k.removed.Load().withKeys(sets[:len(sets)-1], gone))
	}
	k.mu.Unlock()
	wipe(gone)
	return gone
}

// hide hides identities of the sources, and returns how many of them were
// offered.
func (k *Keyring) hide(ids ...*identity) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	more, n := k.removed.Load().with(ids...)
	k.removed.Store(more)
	return n
}

// refuse logs why a request fails, and keeps it. id may be nil; blob is what the
// client named, if it named a key. That a client has hung up needs no attention.
func (k *Keyring) refuse(c *Client, what string, id *identity, blob []byte, r *refusal.Error, more ...any) {
	level := slog.LevelWarn
	if r.Cause == refusal.HungUp {
		level = slog.LevelInfo
	}
	kept := refusal.Record{Time: time.Now(), Request: what, Cause: string(r.Cause), PID: c.Peer.PID, Chain: c.Peer.Chain()}
	if len(kept.Chain) == 0 && c.Peer.Program != "" { // it has ended since
		kept.Chain = []string{c.Peer.Program}
	}
	if r.Err != nil && r.Err != context.Canceled { // the cause says more
		kept.Detail = r.Err.Error()
	}
	attrs := []any{slog.String("request", what)}
	switch {
	case id != nil:
		kept.Key, kept.Fingerprint = id.Label(), id.Fingerprint
		attrs = append(attrs, "key", kept.Key, "fingerprint", kept.Fingerprint)
	case blob != nil:
		kept.Fingerprint = fingerprint(blob)
		attrs = append(attrs, "fingerprint", kept.Fingerprint)
	}
	k.refusals.Add(kept)
	attrs = append(append(attrs, r.Attrs()...), c.peer())
	k.log.Log(context.Background(), level, "refused", append(attrs, more...)...)
}

// Refusals returns the latest refusals in the order in which they happened.
func (k *Keyring) Refusals() []refusal.Record { return k.refusals.All() }
