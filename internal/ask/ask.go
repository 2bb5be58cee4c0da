// Package ask defines what the user is asked. It implements no prompts.
package ask

import (
	"context"
	"errors"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// A Prompter asks the user. What it shows ends when the context does, and so
// does the method.
type Prompter interface {
	// AuthValue asks for the auth value of a key. The slice returned belongs
	// to the caller, who overwrites it after use.
	AuthValue(ctx context.Context, p AuthPrompt) ([]byte, error)

	// LastTry asks for an explicit go before an auth value is asked for that,
	// if it is wrong, locks the keeper of the key. Only nil is a go.
	LastTry(ctx context.Context, p AuthPrompt) error

	// Confirm asks whether a key may be used, and for how long that holds. The
	// longer ones are offered where the user can be given a choice; with an
	// error it is GrantNo.
	Confirm(ctx context.Context, p ConfirmPrompt) (Grant, error)

	// Inform tells the user of a lockout, where that can be done, and returns
	// when he has read it or ctx ends. It asks nothing.
	Inform(ctx context.Context, n Notice)
}

// How asking may end, wrapped in what a Prompter returns.
var (
	// ErrRefused: somebody was asked and declined. The dialog was cancelled,
	// the terminal said end of file, or the answer was no.
	ErrRefused = errors.New("refused at the prompt")
	// ErrNoPrompt: there is nobody who could be asked.
	ErrNoPrompt = errors.New("no way to ask the user")
	// ErrNoAnswer: somebody was asked, and did not answer in time.
	ErrNoAnswer = errors.New("nobody answered at the prompt")
	// ErrLeft: somebody was asked on the client's terminal, and the client left
	// it, by Ctrl-C or Ctrl-Z. It says nothing about who else wants the key.
	ErrLeft = errors.New("the client left its terminal")
)

// Question is what the user should be told about what he is asked for.
type Question struct {
	Name        string // of the key's file; "" for a key that has none
	Comment     string
	Fingerprint string    // SHA256:…
	Peer        peer.Peer // who wants the signature
	Use         Use       // what for
}

// AuthPrompt asks for a PIN.
type AuthPrompt struct {
	Question
	Retry     bool // the value given before was not the right one
	TriesLeft int  // wrong values until lockout; 1: the next is the last; -1: not known, or without limit
	Waiting   int  // other requests that the same answer serves
}

// ConfirmPrompt asks for consent to the use of a key.
type ConfirmPrompt struct {
	Question
}

// Notice tells the user that the keeper of a key takes no PIN, because too many
// were wrong.
type Notice struct {
	Question
	Wait time.Duration // until it takes one again, at most; 0: not known
}

// UseKind is what sort of data is to be signed.
type UseKind int

// The kinds of data that SSH clients have signed.
const (
	UseUnknown     UseKind = iota // none of the others
	UseLogin                      // RFC 4252, section 7
	UseSignature                  // OpenSSH's PROTOCOL.sshsig
	UseCertificate                // a certificate that the key is to sign, OpenSSH's PROTOCOL.certkeys
)

// Use is what a signature is for, as far as that is proven by what is signed
// and by the client's session-bind.
type Use struct {
	Kind      UseKind
	User      string   // of a login
	Host      string   // of a login over a connection that is bound: its name, if that is known
	HostKey   string   // its fingerprint
	Namespace string   // of an SSHSIG: git, file, …
	Forwarded bool     // it came over a forwarded connection, or over one that could not be proven to be none
	Via       []string // through these hosts, the nearest to here first, by name or fingerprint; "" is one that did not prove who it is

	KeyID      string   // of a certificate
	Principals []string // whom it is for; none: anybody
	HostCert   bool     // for a host, not for a user
}

// Grant is for how long a consent holds.
type Grant int

// The grants, from none to the longest.
const (
	GrantNo          Grant = iota
	GrantOnce              // this request
	GrantProcess           // while the process that asks runs
	GrantMinutes           // GrantTime
	GrantUntilLocked       // until PINs are forgotten
)

// GrantTime is how long GrantMinutes lasts.
const GrantTime = 15 * time.Minute
