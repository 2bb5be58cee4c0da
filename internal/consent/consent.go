// Package consent asks the owner of keys for PINs and consent, and remembers the
// answers for as long as it may.
//
// An [Owner] stands between requests for signatures and the keys. Requests for
// the same key from the same place share one dialog, and requests for other keys
// do not wait for it. No lock of this package is held while a key signs or a
// prompter asks.
package consent

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
)

// A Key makes signatures. Its methods are called by many goroutines at once.
//
// Keys are compared with ==, so the type behind the interface must be
// comparable; a pointer is.
type Key interface {
	// AuthRequired reports whether to ask for a PIN before the first try. It may
	// be wrong: a PIN is asked for as well when Sign fails for want of one.
	AuthRequired() bool

	// Sign signs digest, made with opts.HashFunc(), and encodes the signature as
	// crypto.Signer does: ASN.1 for ECDSA, PKCS #1 v1.5 for RSA. auth is the auth
	// value, which the user knows as the PIN; it is empty if there is none, and
	// Sign does not keep it. Sign returns soon after ctx ends.
	//
	// If the auth value was wrong, or none is accepted, the error's tree contains
	// a [WrongAuth] or a [LockedOut].
	Sign(ctx context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// An Identity is a key as its owner knows it.
type Identity struct {
	Key         Key
	KeyBlob     string // wire encoding of the public key, which its certificates share
	Name        string // of the key's file; "" if it has none
	Comment     string
	Fingerprint string         // SHA256:… of the public key
	PINLife     *time.Duration // how long its PIN is remembered; nil: as Config.PINLife says
}

// Label returns the name for logs. A key without a file is known by its comment.
func (id *Identity) Label() string {
	if id.Name == "" {
		return id.Comment
	}
	return id.Name
}

// A Clock measures lifetimes. It advances while the machine sleeps, so a key
// that was added for an hour is gone after a night.
type Clock interface {
	// Now returns the time since some fixed moment.
	Now() time.Duration

	// AfterFunc calls f in its own goroutine after d, or soon after the machine
	// wakes up if it slept through that moment. stop cancels the call.
	AfterFunc(d time.Duration, f func()) (stop func())
}

// Config configures an Owner. Clock, Log and Present are required.
type Config struct {
	Prompter ask.Prompter // nil: requests that must ask are refused
	Clock    Clock
	Log      *slog.Logger

	// Present looks at the key sources, and returns functions that report whether
	// a key is offered, and whether it exists at all: a client may have removed it
	// from the agent, but not from the disk.
	Present func() (offered, exists func(keyBlob string, key Key) bool)

	// PINLife returns how long to remember a PIN that was typed for a signature:
	// 0 is not at all, restrict.Forever until PINs are forgotten.
	PINLife func(name, fingerprint string) time.Duration

	// GivenPIN returns the PIN of a key that needs no prompt, or nil. The
	// caller overwrites it after use. version identifies the PIN: one that was
	// wrong is not tried again.
	GivenPIN func(name, fingerprint string) (pin []byte, version string, err error)

	// Remembering is called when a PIN or consent begins to be remembered. It
	// must not block, or call the Owner.
	Remembering func()
}

// An Owner gives PINs and consent for keys. It is composed of objects that each
// have a lock of their own.
type Owner struct {
	Config

	book   book   // what is known about the keys' PINs
	store  store  // the PINs and consent that are remembered
	turns  turns  // one per key, for dialogs; one for lock passwords
	rounds rounds // searches for PINs
	lock   lock   // whether the agent is locked or ends
	notice notice // the one that is shown
}

// NewOwner returns an Owner.
func NewOwner(c Config) *Owner {
	if c.Remembering == nil {
		c.Remembering = func() {}
	}
	o := &Owner{Config: c, book: newBook()}
	o.store = newStore(c, o.Sweep)
	o.lock.begin()
	return o
}

// Locked reports whether the agent is locked.
func (o *Owner) Locked() bool { return o.lock.locked.Load() }

// A Request is a signature that a client waits for.
type Request struct {
	Identity *Identity
	// Again looks the identity up once more. It fails if the identity was
	// removed or replaced meanwhile, or the agent was locked.
	Again   func() (*Identity, *refusal.Error)
	Peer    peer.Peer
	Use     func() ask.Use // what the signature is for; called before the owner is asked
	Origin  func() string  // the place that the request comes from; "" is this machine
	Confirm bool           // the owner must consent to this use
	Digest  []byte
	Hash    crypto.Hash
}

// try is a Request on its way.
type try struct {
	Request
	o   *Owner
	id  *Identity
	use ask.Use
}

// Sign returns a signature, for which it asks the owner if it has to: for
// consent first, then for the PIN. The error is a *refusal.Error, or the key's.
//
// A key that is known to need no PIN, or whose PIN is remembered, signs at once.
// Everything else happens once for all who want the key at the same time: a key must
// not have two dialogs, and a first signature with an empty auth value
// costs a try if the key has a PIN after all; 32 connections of a parallel rsync
// would lock the TPM.
func (o *Owner) Sign(ctx context.Context, r Request) ([]byte, error) {
	t := &try{Request: r, o: o, id: r.Identity}
	if r.Confirm {
		t.use = r.Use()
		if refused := t.confirm(ctx); refused != nil {
			return nil, refused
		}
	}
	if known, ok := o.book.get(t.id); ok && !known.needed {
		sig, err := t.with(ctx, nil)
		if err == nil || !isWrongAuth(err) {
			return sig, err
		}
		o.book.learnNeeded(t.id, true)
	}
	if pin := o.store.pin(t.id); pin != nil {
		sig, err := t.withPIN(ctx, pin)
		if !isWrongAuth(err) && !errors.Is(err, softkey.ErrWiped) {
			return sig, err
		}
	}
	if !r.Confirm {
		t.use = r.Use()
	}
	return o.rounds.join(ctx, t)
}

// lookup fails if the identity was removed or replaced, or the agent locked.
func (t *try) lookup() error {
	id, refused := t.Again()
	switch {
	case refused != nil:
		return refused
	case id.Key != t.id.Key:
		return refusal.New(refusal.Replaced, nil)
	}
	t.id = id
	return nil
}

// with signs with one auth value, unless ctx has ended.
func (t *try) with(ctx context.Context, value []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sig, err := t.id.Key.Sign(ctx, value, t.Digest, t.Hash)
	if err != nil || len(value) > 0 {
		t.o.book.judge(err)
	}
	return sig, err
}

// withPIN signs with a PIN that is held, and forgets it if it is wrong.
func (t *try) withPIN(ctx context.Context, pin *softkey.Secret) (sig []byte, err error) {
	err = pin.Use(func(value []byte) (err error) {
		sig, err = t.with(ctx, value)
		return err
	})
	if isWrongAuth(err) {
		t.o.forgetWrong(t.id, pin)
	}
	return sig, err
}

func (t *try) question() ask.Question {
	return ask.Question{Name: t.id.Name, Comment: t.id.Comment, Fingerprint: t.id.Fingerprint, Peer: t.Peer, Use: t.use}
}

// Wait closes notices and waits, for at most d, for what is still running for
// clients that have gone.
func (o *Owner) Wait(d time.Duration) error {
	o.notice.close()
	if !o.rounds.wait(d) {
		return errors.New("a key or a prompt did not end when it was cancelled")
	}
	return nil
}

// lockoutPatience is how long a prompt waits for the number of tries left if the
// TPM is busy.
const lockoutPatience = 5 * time.Second

// lockoutKnower is a Key that can tell how many tries are left before one is
// spent.
type lockoutKnower interface {
	Lockout(ctx context.Context) (Lockout, error)
}

// knowledge has the facts that signatures have shown about a key. What the key says itself
// about its PIN is a hint, and finding out with an empty auth value may cost a
// try, so it is done once.
type knowledge struct {
	key    Key // a new key behind the same public key has to be learned again
	needed bool
	// refused is the version of the PIN from Config.GivenPIN that was wrong,
	// taken the one that was right.
	refused, taken string
	emptyWrong     bool // an empty PIN was given and was wrong
}

// book has the knowledge about all keys, apart from their PINs.
type book struct {
	mu    sync.Mutex
	known map[string]knowledge // by Identity.KeyBlob
	tries int                  // see ask.AuthPrompt.TriesLeft
}

func newBook() book { return book{known: make(map[string]knowledge), tries: triesUnknown} }

// get returns what is known about a key. ok is false if nothing is.
func (b *book) get(id *Identity) (known knowledge, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known, ok = b.known[id.KeyBlob]
	if !ok || known.key != id.Key {
		return knowledge{key: id.Key}, false
	}
	return known, true
}

// learn changes what is known about a key.
func (b *book) learn(id *Identity, change func(*knowledge)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := b.known[id.KeyBlob]
	if known.key != id.Key {
		known = knowledge{key: id.Key, needed: true}
	}
	change(&known)
	b.known[id.KeyBlob] = known
}

// learnNeeded records what became of an empty auth value.
func (b *book) learnNeeded(id *Identity, needed bool) {
	b.learn(id, func(k *knowledge) { k.needed, k.emptyWrong = needed, needed })
}

// judge learns from a key's answer to an auth value that was not empty, or wrong.
// The number of tries left is one for all keys, because a TPM counts all wrong
// values in it. A right value does not raise it.
func (b *book) judge(err error) {
	var w WrongAuth
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.As(err, &w) && w.WrongAuth():
		b.countWrong(w)
	case err == nil && b.tries == 0: // it accepts values again
		b.tries = triesUnknown
	}
}

// countWrong counts a wrong value. A key that cannot tell how many tries are
// left has still spent one. b.mu is held.
func (b *book) countWrong(w WrongAuth) {
	n, known := w.TriesLeft()
	switch {
	case known:
		b.tries = n
	case b.tries > 1:
		b.tries--
	}
}

// sweep forgets what is known about keys that do not exist any more.
func (b *book) sweep(exists func(keyBlob string, key Key) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.known, func(blob string, k knowledge) bool { return !exists(blob, k.key) })
}

// lockout asks the key how many tries are left. known is false for the number
// after the last wrong value, which may have changed since.
func (o *Owner) lockout(ctx context.Context, id *Identity) (l Lockout, known bool) {
	if k, ok := id.Key.(lockoutKnower); ok {
		ctx, cancel := context.WithTimeout(ctx, lockoutPatience)
		defer cancel()
		if l, err := k.Lockout(ctx); err == nil {
			return l, true
		}
	}
	o.book.mu.Lock()
	defer o.book.mu.Unlock()
	return Lockout{Tries: o.book.tries}, false
}
