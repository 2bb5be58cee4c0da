// Package ask defines what the user is asked. It implements no prompts.
package ask

import (
	"context"
	"errors"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// A Prompter asks the user. When ctx ends it takes its prompt away and returns.
type Prompter interface {
	// AuthValue asks for the auth value of a key. The caller owns the returned
	// slice and overwrites it after use.
	AuthValue(ctx context.Context, p AuthPrompt) ([]byte, error)

	// LastTry warns that one more wrong auth value locks out the TPM, and
	// returns nil only if the user wants to go on.
	LastTry(ctx context.Context, p AuthPrompt) error

	// Confirm asks whether a key may be used, and for how long. Where it cannot
	// offer a choice it offers GrantOnce. With an error it returns GrantNo.
	Confirm(ctx context.Context, p ConfirmPrompt) (Grant, error)

	// Inform tells the user about a lockout, if it can, and returns when the
	// user has dismissed it.
	Inform(ctx context.Context, n Notice)
}

// How asking may end, wrapped in what a Prompter returns.
var (
	// ErrRefused means that the user declined: cancelled the dialog, typed end
	// of file, or answered no.
	ErrRefused = errors.New("refused at the prompt")
	// ErrNoPrompt means that there is no way to ask.
	ErrNoPrompt = errors.New("no way to ask the user")
	// ErrNoAnswer means that the prompt ended before it was answered.
	ErrNoAnswer = errors.New("no answer at the prompt")
	// ErrLeft means that the client left the terminal with the prompt, by Ctrl-C
	// or Ctrl-Z. Other requests for the key are not affected.
	ErrLeft = errors.New("the client left its terminal")
)

// A Question tells the user what a prompt is about.
type Question struct {
	Name        string // of the key's file; "" if there is none
	Comment     string
	Fingerprint string    // SHA256:…
	Peer        peer.Peer // the program that wants the signature
	Use         Use       // what the signature is for
}

// An AuthPrompt asks for a PIN.
type AuthPrompt struct {
	Question
	Retry     bool // the previous PIN was wrong
	TriesLeft int  // wrong PINs until lockout; -1: unknown or unlimited
	Waiting   int  // other requests that the same answer serves
}

// A ConfirmPrompt asks for consent to the use of a key.
type ConfirmPrompt struct {
	Question
}

// A Notice tells the user that the TPM accepts no PIN, because too many were
// wrong.
type Notice struct {
	Question
	Wait time.Duration // until it accepts one again, at most; 0: unknown
}

// A UseKind is a kind of data to be signed.
type UseKind int

// The kinds of data that SSH clients have signed.
const (
	UseUnknown     UseKind = iota // none of the others
	UseLogin                      // RFC 4252, section 7
	UseSignature                  // OpenSSH's PROTOCOL.sshsig
	UseCertificate                // a certificate that the key is to sign, OpenSSH's PROTOCOL.certkeys
)

// A Use is the purpose of a signature, as far as the data and the client's bindings
// tell.
type Use struct {
	Kind      UseKind
	User      string   // of a login
	Host      string   // of a login over a bound connection; "" if its name is unknown
	HostKey   string   // its fingerprint
	Namespace string   // of an SSHSIG: git, file, …
	Forwarded bool     // the connection was forwarded, or could not be proven to be local
	Via       []string // the hosts in between, nearest first, by name or fingerprint; "" for one that failed to prove its identity

	KeyID      string   // of a certificate
	Principals []string // of a certificate; none: any
	HostCert   bool     // a certificate for a host, not for a user
}

// A Grant is how long a consent holds.
type Grant int

// The grants, from none to the longest.
const (
	GrantNo          Grant = iota
	GrantOnce              // this request
	GrantProcess           // while the requesting process runs
	GrantMinutes           // GrantTime
	GrantUntilLocked       // until PINs are forgotten
)

// GrantTime is how long GrantMinutes lasts.
const GrantTime = 15 * time.Minute
