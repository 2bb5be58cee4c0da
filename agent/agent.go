// Package agent serves connections of the SSH agent protocol (RFC 9987): it looks
// up a key, checks, asks, signs and answers.
//
// A [Keyring] has the keys. It decides which of them a client may see and use,
// asks their owner, and keeps the reasons for refusals. An [Agent] is the front
// end, or door, that speaks the SSH agent protocol: it parses requests, calls the
// Keyring and sends answers. Other doors can use the same Keyring.
//
// The package knows no TPM, no files and no sockets: identities come from each
// [Source] as an immutable [Set], private keys are behind [Key], the owner is
// behind ask.Prompter, and connections come from any net.Listener.
//
// # Who waits for whom
//
// The requests of one connection are answered in order; connections do not wait
// for each other. No lock of this package is held while a Key signs, a Prompter
// asks or a Source looks: while a dialog is open, or a signature takes its time,
// other clients list and sign. There is one exception: a key that needs a PIN
// asks for it once at a time, and requests for the same key wait for the answer.
//
// A client that hangs up cancels the context of its requests, and with it their
// prompts and their places in every queue.
//
// # What is answered
//
// All of RFC 9987 and OpenSSH's extensions. Requests about keys and smart cards
// that the Keyring does not have go to upstream agents as they came. Unsupported
// requests get SSH_AGENT_FAILURE (section 5). Where the RFC leaves a choice, or
// clients do not follow it, the answer is that of OpenSSH's ssh-agent.
package agent

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
)

// Key makes signatures; see consent.Key.
type Key = consent.Key

// A Source has identities. It returns the same *Set until something changes,
// because what is made of it is cached. It is asked at least once per request, by
// many goroutines at once.
type Source interface {
	Identities() *Set
}

// Config configures a Keyring and the Agent in front of it.
type Config struct {
	// Sources are listed in this order. The keys that clients add are one more
	// source behind them.
	Sources []Source

	// Upstreams are other agents, which get the requests for keys that no source
	// has, in this order.
	Upstreams []upstream.Agent

	Prompter ask.Prompter // nil: requests that must ask are refused
	Log      *slog.Logger // nil: no log

	// Clock is time.Now's monotonic one if it is nil, which stands still while the
	// machine sleeps.
	Clock consent.Clock

	// Lifetime limits keys that are added without a lifetime; 0: no limit.
	Lifetime time.Duration

	// NoSoftwareKeys refuses to hold private keys in memory.
	NoSoftwareKeys bool

	// AllowSHA1 signs with ssh-rsa and SHA-1 for RSA keys if a client asks for
	// nothing better. An attacker who can compute SHA-1 collisions can forge
	// such a signature.
	AllowSHA1 bool

	// ConfirmAll asks before each use of each key, as if it had been added so.
	ConfirmAll bool

	PINLife     func(name, fingerprint string) time.Duration                           // see consent.Config
	GivenPIN    func(name, fingerprint string) (pin []byte, version string, err error) // see consent.Config
	Remembering func()                                                                 // see consent.Config

	// HostName returns the name by which the owner knows a host key, or "". The
	// peer may be an ssh that was given a name, which is only a hint. It is called
	// for prompts only, and may take its time. It may be nil.
	HostName func(key ssh.PublicKey, p peer.Peer) string

	// Before is called before each request is looked at. It does what was asked
	// for by other means before that request, as by a signal. It may be nil.
	Before func()

	// MaxConns is how many clients are served at a time; 0 means 4096. One more
	// closes the connection that has been idle for longest.
	MaxConns int

	// Grace is how long requests in flight may take to finish when Serve ends; 0
	// means 10 seconds.
	Grace time.Duration
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	if c.Clock == nil {
		c.Clock = monotonic{time.Now()}
	}
	if c.Before == nil {
		c.Before = func() {}
	}
	if c.MaxConns == 0 {
		c.MaxConns = 4096
	}
}

// monotonic is the default Clock.
type monotonic struct{ begun time.Time }

func (m monotonic) Now() time.Duration { return time.Since(m.begun) }

func (monotonic) AfterFunc(d time.Duration, f func()) (stop func()) {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

// An Agent answers the requests of SSH agent clients with the keys of a Keyring.
type Agent struct {
	*Keyring
	extensions map[string]Extension
}

// An Extension answers one of the extension requests that are for the owner. They
// are accepted only from processes of this machine: a file descriptor must have
// been passed over the connection, which no forwarding can do.
type Extension struct {
	Locked bool // it is answered while the agent is locked, too
	Secret bool // its requests have secrets in them, and are overwritten
	// Answer returns what follows the extension's name in the answer. An error
	// says that the request is malformed.
	Answer func(ctx context.Context, c *Client, body []byte) ([]byte, error)
}

// New returns an Agent for the keys of k, with extensions of the protocol by name.
func New(k *Keyring, extensions map[string]Extension) *Agent {
	return &Agent{Keyring: k, extensions: extensions}
}
