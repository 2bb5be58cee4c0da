// Package control has the extensions of the agent protocol with which tpm-agent's
// commands talk to a running agent: the agent's side and the commands' side.
package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// The extensions. Each request and each answer is one JSON object in a string (RFC
// 4251, section 5). A request with a secret has it in a second string, which is
// overwritten after use.
const (
	extAddKeyFile = "add-key-file@tpm-agent.github.io"
	extKeyStatus  = "key-status@tpm-agent.github.io"
	extUnlockKey  = "unlock-key@tpm-agent.github.io"
	extForgetPINs = "forget-pins@tpm-agent.github.io"
	extRefusals   = "refusals@tpm-agent.github.io"
	extHeldKeys   = "held-keys@tpm-agent.github.io"
)

// ErrNotOwner means that the agent does not know the request, does not accept it
// over this connection, or is locked.
var ErrNotOwner = errors.New("the agent does not take this request")

// encode appends a request or an answer to b. No copy of the secret is left
// elsewhere.
func encode(b []byte, message any, secret []byte) []byte {
	text, err := json.Marshal(message)
	if err != nil {
		panic("control: " + err.Error()) // the types below can be encoded
	}
	b = slices.Grow(b, 8+len(text)+len(secret))
	b = wire.AppendString(b, string(text))
	if secret != nil {
		b = wire.AppendString(b, secret)
	}
	return b
}

// newRequest returns the message of a request, without its length.
func newRequest(name string, message any, secret []byte) []byte {
	return encode(wire.AppendString([]byte{wire.MsgExtension}, name), message, secret)
}

// decode is the inverse of encode, for messages without a secret.
func decode(body []byte, message any) error {
	secret, err := decodeSecret(body, message)
	if err == nil && secret != nil {
		err = errMore
	}
	return err
}

// errMore says that a message has more in it than is known.
var errMore = errors.New("the message has something behind its end")

// decodeSecret is the inverse of encode. secret is part of body; nil: there is
// none.
func decodeSecret(body []byte, message any) (secret []byte, err error) {
	w := &wire.Parser{Rest: body}
	d := json.NewDecoder(bytes.NewReader(w.Bytes()))
	if !w.Done() {
		secret = w.Bytes()
	}
	if err := w.Whole(); err != nil {
		return nil, err
	}
	d.DisallowUnknownFields()
	if err := d.Decode(message); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errMore
	}
	return secret, nil
}

// decodeAnswer reads a message that answers the extension called name.
func decodeAnswer(message []byte, name string, answer any) error {
	if len(message) == 1 && message[0] == wire.MsgFailure {
		return ErrNotOwner
	}
	w := &wire.Parser{Rest: message}
	if number := w.Byte(); number != wire.MsgExtensionResponse || w.Text() != name || w.Err != nil {
		return errors.New("the agent's answer cannot be understood")
	}
	return decode(w.Rest, answer)
}

// keyFile asks the agent to offer a key file, which the agent need not be able to
// read. Its texts may be no UTF-8, which a string of JSON must be.
type keyFile struct {
	Name         []byte // the file's, for logs and prompts
	Comment      []byte // as listed
	Content      []byte
	Certificates [][]byte
	Constraints  []byte // as in SSH_AGENTC_ADD_ID_CONSTRAINED
}

// outcome is the answer to a request that may fail; "" is success.
type outcome struct{ Problem string }

// keyBlob names a key.
type keyBlob struct {
	Blob []byte // the public key, or a certificate of it
}

// keyStatus describes the PIN of a key.
type keyStatus struct {
	Missing    bool // there is no such key
	NeedsPIN   bool // may be wrong: see consent.Key
	Remembered bool
	TriesLeft  int           // wrong PINs until a lockout; 0: locked out; -1: unknown or unlimited
	Wait       time.Duration // in a lockout, until one try is given back; 0: unknown
}

// unlock gives the PIN of a key, its secret, before it is needed.
type unlock struct {
	Blob []byte
	TTL  time.Duration // for how long it is remembered; restrict.Forever; 0: as the agent was told, or forever
}

// unlocked is the answer to unlock.
type unlocked struct {
	Outcome   string // one of those below
	Life      time.Duration
	TriesLeft int
	Wait      time.Duration
	Problem   string
}

// The outcomes of unlock.
const (
	unlockDone      = "done"
	unlockWrong     = "wrong PIN"
	unlockLockedOut = "locked out"
	unlockNoPIN     = "no PIN"
	unlockNoKey     = "no key"
	unlockFailed    = "failed"
)

// forgottenPINs is the answer to extForgetPINs.
type forgottenPINs struct{ PINs int }

// heldPage asks for the identities that the agent offers, from one on, in the
// order in which it lists them.
type heldPage struct{ First int }

// heldKeys is the answer. Next, if not 0, is the first that did not fit.
type heldKeys struct {
	Keys []json.RawMessage // of agent.Held
	Next int
}
