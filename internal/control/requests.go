package control

import (
	"errors"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
)

// The commands' side: each request has a function that returns its message, and
// one that reads the answer; both messages are without their length.

// keyFileRequest asks the agent to offer a key file.
type keyFileRequest struct {
	Name         string // the file's, for logs and prompts
	Comment      string // as listed
	Content      []byte
	Certificates []*ssh.Certificate
	Lifetime     *uint32 // in seconds; nil: the agent's default
	Confirm      bool
	Destinations []restrict.Destination
	PINLife      *time.Duration // 0: its PIN is not remembered; nil: as the agent was told
}

func (k *keyFileRequest) marshal() []byte {
	m := keyFile{Name: []byte(k.Name), Comment: []byte(k.Comment), Content: k.Content}
	for _, cert := range k.Certificates {
		m.Certificates = append(m.Certificates, cert.Marshal())
	}
	m.Constraints = k.constraints()
	return newRequest(extAddKeyFile, m, nil)
}

func (k *keyFileRequest) constraints() []byte {
	c := restrict.Constraints{Lifetime: k.Lifetime, Confirm: k.Confirm, Destinations: k.Destinations, PINLife: k.PINLife}
	return c.Marshal()
}

// errNoKeyFiles: the agent takes no key files, or not over this connection.
var errNoKeyFiles = errors.New("the agent takes no key files")

// parseKeyFileAnswer returns why the key was not added.
func parseKeyFileAnswer(answer []byte) error {
	var o outcome
	err := decodeAnswer(answer, extAddKeyFile, &o)
	switch {
	case errors.Is(err, ErrNotOwner):
		return errNoKeyFiles
	case err == nil && o.Problem != "":
		return errors.New(o.Problem)
	}
	return err
}

func statusRequest(blob []byte) []byte { return newRequest(extKeyStatus, keyBlob{blob}, nil) }

// parseStatusAnswer returns what the agent knows about the PIN of a key. The error
// may be agent.ErrNoKey or ErrNotOwner.
func parseStatusAnswer(answer []byte) (s keyStatus, err error) {
	err = decodeAnswer(answer, extKeyStatus, &s)
	if err == nil && s.Missing {
		err = agent.ErrNoKey
	}
	return s, err
}

// unlockRequest gives a PIN before it is needed. The caller overwrites the
// message after use.
func unlockRequest(blob, pin []byte, ttl time.Duration) []byte {
	if pin == nil {
		pin = []byte{}
	}
	return newRequest(extUnlockKey, unlock{blob, ttl}, pin)
}

// parseUnlockAnswer returns for how long the PIN is remembered. The error is a
// consent.WrongPINError, a consent.LockedOutError, consent.ErrNoPIN, agent.ErrNoKey,
// ErrNotOwner, or says what else went wrong.
func parseUnlockAnswer(answer []byte) (life time.Duration, err error) {
	var u unlocked
	if err := decodeAnswer(answer, extUnlockKey, &u); err != nil {
		return 0, err
	}
	return u.Life, u.err()
}

func forgetRequest() []byte { return newRequest(extForgetPINs, struct{}{}, nil) }

// parseForgetAnswer returns how many PINs were forgotten.
func parseForgetAnswer(answer []byte) (pins int, err error) {
	var f forgottenPINs
	err = decodeAnswer(answer, extForgetPINs, &f)
	return f.PINs, err
}

func refusalsRequest() []byte { return newRequest(extRefusals, struct{}{}, nil) }

// parseRefusals returns the refusals in the order in which they happened.
func parseRefusals(answer []byte) (all []refusal.Record, err error) {
	err = decodeAnswer(answer, extRefusals, &all)
	return all, err
}

// heldRequest asks which identities the agent offers, from one on.
func heldRequest(first int) []byte { return newRequest(extHeldKeys, heldPage{first}, nil) }

// parseHeld returns some of the identities; next, if not 0, is where to continue.
func parseHeld(answer []byte) (some []agent.Held, next int, err error) {
	var page struct {
		Keys []agent.Held
		Next int
	}
	err = decodeAnswer(answer, extHeldKeys, &page)
	return page.Keys, page.Next, err
}
