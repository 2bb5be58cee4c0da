// Package agent is the server side of the SSH agent protocol (RFC 9987).
//
// An [Agent] answers what clients ask over a listener: which identities there
// are, and to sign with one of them. It knows no TPM, no files and no sockets:
// identities come from a [Source] as an immutable [Set], private keys are
// behind [Key], the user is behind [Prompter], and connections come from any
// net.Listener. Whoever puts these together decides what they are.
//
// # Who waits for whom
//
// The requests of one connection are answered in order; connections do not
// wait for each other. No lock of this package is held while a Key signs, a
// Prompter asks or a Source looks: while a dialog is open, or a signature
// takes its time, everybody else lists and signs. The one exception is wanted:
// a key that needs a PIN asks for it once at a time, and who wants the same
// key waits in line for that.
//
// A client that hangs up ends the context of what was being done for it, and
// with it its prompt and its place in every line.
//
// # What is answered
//
// All of RFC 9987 and OpenSSH's extensions of it. Identities are the source's,
// those that clients add at run time, and those of upstream agents; requests
// about keys and smart cards that are not held here go upstream as they came.
// What no agent does gets SSH_AGENT_FAILURE, as section 5 of the RFC asks for.
// Where the RFC leaves a choice, or clients do not keep to it, the answer is
// that of OpenSSH's ssh-agent.
package agent

import (
	"context"
	"crypto"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// A Key makes signatures. Its methods are called from many goroutines at once.
//
// Keys are compared with ==, so the type behind the interface must be
// comparable; a pointer is.
type Key interface {
	// AuthRequired says whether a PIN is to be asked for before the first
	// try. It may be mistaken: a Sign that fails for want of one is followed
	// by a prompt all the same.
	AuthRequired() bool

	// Sign signs digest, made with opts.HashFunc(). The signature is encoded
	// as crypto.Signer's are: ASN.1 for ECDSA, PKCS #1 v1.5 for RSA. auth is
	// the auth value, the user's PIN, and empty when there is none; Sign does
	// not keep it. Sign returns soon after ctx ends.
	//
	// An error that has, somewhere in its tree, the methods WrongAuth() bool
	// and TriesLeft() (n int, known bool), and whose WrongAuth is true, says
	// that the auth value was not the right one, and how many more wrong ones
	// are taken before the key's keeper locks up.
	Sign(ctx context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// A Source has the identities that there are now. It returns the same *Set
// until something changes, because answers are cached by it. It is asked once
// or more for every request, and from many goroutines at once.
type Source interface {
	Identities() *Set
}

// Clock measures lifetimes. It goes on while the machine sleeps: a key that
// was added for an hour is gone after a night.
type Clock interface {
	// Now is the time since some fixed moment.
	Now() time.Duration

	// AfterFunc calls f in a goroutine of its own when d has passed, soon
	// after waking up if the machine slept through that moment. stop prevents
	// a call that has not begun.
	AfterFunc(d time.Duration, f func()) (stop func())
}

// Upstream is another agent, whose keys are offered behind our own.
type Upstream struct {
	Name string // for the log
	Dial func(context.Context) (net.Conn, error)
}

// Config says what an Agent is made of.
type Config struct {
	Source   Source       // required
	Prompter Prompter     // nil: signatures that need a PIN are refused
	Log      *slog.Logger // nil: nothing is logged

	// Upstreams get, in this order, what is not for us.
	Upstreams []Upstream

	// Clock is time.Now's monotonic one if it is nil, which stands still while
	// the machine sleeps.
	Clock Clock

	// Lifetime is that of keys that are added without one; 0 is for ever.
	Lifetime time.Duration

	// NoSoftwareKeys refuses to hold private keys in memory.
	NoSoftwareKeys bool

	// AllowSHA1 signs with ssh-rsa and SHA-1 for RSA keys if a client asks
	// for nothing better. Such a signature may be forged by who can find a
	// collision of SHA-1.
	AllowSHA1 bool

	// KeyFile makes the identity of a key file that is added at run time;
	// nil: none can be added.
	KeyFile func(name, comment string, content []byte) (Identity, error)

	// PINLife says for how long the PIN of a key is remembered that was typed
	// for a signature: 0 is not at all, [Forever] until PINs are forgotten. nil:
	// none is.
	PINLife func(name, fingerprint string) time.Duration

	// GivenPIN, if not nil, has the PINs of keys whose owner is not to be asked,
	// as in a service. The PIN is nil if there is none for a key, and is
	// overwritten after use. A version tells it from another: one that was
	// wrong is not tried again.
	GivenPIN func(name, fingerprint string) (pin []byte, version string, err error)

	// ConfirmAll asks before each use of every key that is held here, as if it
	// had been added so.
	ConfirmAll bool

	// Remembering, if not nil, is called when a PIN or consent begins to be
	// remembered, so that there is something to be forgotten. It must not wait,
	// nor call the agent.
	Remembering func()

	// HostName is the name that the owner knows a host key by, or "". The peer
	// may be an ssh that was told a name, which is no more than a hint. It is
	// only asked for a prompt, and may take its time. It may be nil.
	HostName func(key ssh.PublicKey, peer Peer) string

	// Before, if not nil, is called before each request is looked at: what
	// has been asked for in another way than by a request, as by a signal,
	// can be done then, in order.
	Before func()

	// MaxConns is how many clients are served at a time; 0 means 4096. One
	// more ends the connection that has been idle for longest.
	MaxConns int

	// Grace is how long requests in flight may take to finish when Serve is
	// told to end; 0 means 10 seconds.
	Grace time.Duration
}

// Agent answers the requests of SSH agent clients. Make one with New.
type Agent struct {
	source         Source
	prompter       Prompter
	log            *slog.Logger
	grace          time.Duration
	clock          Clock
	lifetime       time.Duration
	noSoftwareKeys bool
	allowSHA1      bool
	keyFile        func(name, comment string, content []byte) (Identity, error)
	before         func()
	pinLife        func(name, fingerprint string) time.Duration
	givenPIN       func(name, fingerprint string) (pin []byte, version string, err error)
	confirmAll     bool
	remembering    func()
	hostName       func(ssh.PublicKey, Peer) string
	maxConns       int
	upstreams      *upstreams
	lockMemory     uint32 // KiB; less only where many locks are tested
	maxAdded       int    // less only where that is tested

	lines  lines  // one per key, for prompts; and one for lock passwords
	rounds rounds // searches for PINs
	recent recent // refusals

	forgotten atomic.Uint64      // how often all PINs were
	informing atomic.Bool        // a notice is shown
	endNotice context.CancelFunc // takes it away; may be nil; guarded by rounds.mu

	// mu guards look-ups in what follows, each short. Nothing that could wait
	// is called under it: no Source, Key, Prompter or upstream agent.
	mu        sync.Mutex
	lock      lock
	service   service
	added     addedKeys
	removed   removals
	changes   uint64          // of added and removed, to tell one state from another
	stopAlarm func()          // for the next deadline of added; may be nil
	listing   *listing        // the last list answer
	reported  *Set            // the last one whose unlisted identities were logged
	auth      map[string]auth // by blob of the plain public key
	tries     int             // see AuthPrompt.TriesLeft
	pins      map[string]*pin // by blob of the plain public key
	grants    []*grant
	swept     *Set // the one that pins, grants and auth were last compared with
	// stopPINAlarm is for the next look after pins; may be nil.
	stopPINAlarm func()
}

// New makes an Agent.
func New(c Config) *Agent {
	a := &Agent{
		source:         c.Source,
		prompter:       c.Prompter,
		log:            c.Log,
		grace:          c.Grace,
		clock:          c.Clock,
		lifetime:       c.Lifetime,
		noSoftwareKeys: c.NoSoftwareKeys,
		allowSHA1:      c.AllowSHA1,
		keyFile:        c.KeyFile,
		before:         c.Before,
		pinLife:        c.PINLife,
		givenPIN:       c.GivenPIN,
		confirmAll:     c.ConfirmAll,
		remembering:    c.Remembering,
		hostName:       c.HostName,
		maxConns:       c.MaxConns,
		lockMemory:     lockMemory,
		maxAdded:       maxAdded,
		lock:           newLock(),
		service:        newService(),
		added:          newAdded(),
		auth:           make(map[string]auth),
		pins:           make(map[string]*pin),
		tries:          triesUnknown,
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.grace == 0 {
		a.grace = 10 * time.Second
	}
	if a.clock == nil {
		a.clock = monotonic{time.Now()}
	}
	if a.before == nil {
		a.before = func() {}
	}
	if a.remembering == nil {
		a.remembering = func() {}
	}
	if a.maxConns == 0 {
		a.maxConns = 4096
	}
	a.upstreams = newUpstreams(c.Upstreams, a.log)
	return a
}

// Reload brings back the identities of the source that clients have removed,
// but not those in whose place another was added.
func (a *Agent) Reload() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removed = removals{}
	a.changed()
}
