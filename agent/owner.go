package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// The extensions in this file are for the agent's owner: like KeyFileRequest
// they are taken only over a connection on which a descriptor was passed. What
// a request is not understood or not allowed gets SSH_AGENT_FAILURE, which is
// ErrNotOwner to the client. Answers begin with SSH_AGENT_EXTENSION_RESPONSE
// and the extension's name, RFC 9987, section 5.9.
const (
	extKeyStatus  = "key-status@tpm-agent.github.io"
	extUnlockKey  = "unlock-key@tpm-agent.github.io"
	extForgetPINs = "forget-pins@tpm-agent.github.io"
	extRefusals   = "refusals@tpm-agent.github.io"
	extHeldKeys   = "held-keys@tpm-agent.github.io"
)

// Forever is how long a PIN is remembered that nothing but forgetting ends.
const Forever = time.Duration(math.MaxInt64)

// What an agent may say to its owner.
var (
	// ErrNotOwner: the agent does not know the request, does not take it over
	// this connection, or is locked.
	ErrNotOwner = errors.New("the agent does not take this request")
	// ErrNoPIN: the key needs no PIN.
	ErrNoPIN = errors.New("the key has no PIN")
	// ErrNoKey: the agent has no such key, or cannot use it.
	ErrNoKey = errors.New("the agent has no such key")
)

// WrongPINError says that a PIN was not the right one.
type WrongPINError struct {
	TriesLeft int // until lockout; -1: not known, or without limit
}

func (e *WrongPINError) Error() string {
	switch {
	case e.TriesLeft < 0:
		return "wrong PIN"
	case e.TriesLeft == 1:
		return "wrong PIN (1 try left before the TPM locks)"
	}
	return fmt.Sprintf("wrong PIN (%d tries left before the TPM locks)", e.TriesLeft)
}

// LockedOutError says that no PIN is taken because too many were wrong.
type LockedOutError struct {
	Wait time.Duration // until one try is given back, at most; 0: not known
}

func (e *LockedOutError) Error() string {
	if e.Wait == 0 {
		return "locked out after too many wrong PINs"
	}
	return fmt.Sprintf("locked out after too many wrong PINs, for %v at most", e.Wait)
}

// StatusRequest asks what is known of the PIN of a key.
type StatusRequest struct {
	Blob []byte // the public key, or a certificate of it
}

// KeyStatus is what is known of the PIN of a key.
type KeyStatus struct {
	Name       string        // of the key's file
	NeedsPIN   bool          // may be mistaken: see Key.AuthRequired
	Remembered bool          // the PIN is
	TriesLeft  int           // wrong ones until lockout, 0 in one; -1: not known, or without limit
	Wait       time.Duration // in a lockout, until one try is given back; 0: not known
}

// Marshal returns the request's message, without its length.
func (r *StatusRequest) Marshal() []byte {
	return appendString(appendString([]byte{msgExtension}, extKeyStatus), string(r.Blob))
}

// ParseStatusAnswer reads the answer to a StatusRequest, without its length.
// The error may be ErrNoKey or ErrNotOwner.
func ParseStatusAnswer(answer []byte) (s KeyStatus, err error) {
	w, err := ownerAnswer(answer, extKeyStatus)
	if err != nil {
		return s, err
	}
	if w.done() {
		return s, ErrNoKey
	}
	s.Name = w.text()
	s.NeedsPIN, s.Remembered = w.byte() != 0, w.byte() != 0
	s.TriesLeft, s.Wait = int(int32(w.uint32())), seconds(w.uint32())
	return s, w.end()
}

func (s *KeyStatus) marshal(b []byte) []byte {
	b = appendString(b, s.Name)
	b = append(b, flag(s.NeedsPIN), flag(s.Remembered))
	b = binary.BigEndian.AppendUint32(b, uint32(int32(s.TriesLeft)))
	return binary.BigEndian.AppendUint32(b, inSeconds(s.Wait))
}

// UnlockRequest gives the PIN of a key ahead of use. The agent remembers it
// after the key has taken it.
type UnlockRequest struct {
	Blob []byte        // the public key, or a certificate of it
	PIN  []byte        // as typed
	TTL  time.Duration // for how long it is remembered, in seconds; Forever; 0: as the agent was told, or Forever
}

// Marshal returns the request's message, without its length. The PIN is in it:
// the caller overwrites it after use.
func (r *UnlockRequest) Marshal() []byte {
	b := make([]byte, 0, len(extUnlockKey)+len(r.Blob)+len(r.PIN)+20)
	b = appendString(append(b, msgExtension), extUnlockKey)
	b = appendString(b, string(r.Blob))
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(r.PIN))), r.PIN...)
	return binary.BigEndian.AppendUint32(b, inSeconds(r.TTL))
}

// Outcomes of an UnlockRequest.
const (
	unlockDone = iota
	unlockWrong
	unlockLockedOut
	unlockNoPIN
	unlockNoKey
	unlockFailed
)

// ParseUnlockAnswer reads the answer to an UnlockRequest, without its length:
// for how long the PIN is remembered. The error is a WrongPINError or a LockedOutError, ErrNoPIN, ErrNoKey,
// ErrNotOwner, or says what else went wrong.
func ParseUnlockAnswer(answer []byte) (life time.Duration, err error) {
	w, err := ownerAnswer(answer, extUnlockKey)
	if err != nil {
		return 0, err
	}
	outcome, tries, span, text := w.byte(), int(int32(w.uint32())), seconds(w.uint32()), w.text()
	if err := w.end(); err != nil {
		return 0, err
	}
	switch outcome {
	case unlockDone:
		return span, nil
	case unlockWrong:
		return 0, &WrongPINError{tries}
	case unlockLockedOut:
		return 0, &LockedOutError{span}
	case unlockNoPIN:
		return 0, ErrNoPIN
	case unlockNoKey:
		return 0, ErrNoKey
	}
	return 0, errors.New(text)
}

// marshalUnlock is the inverse of ParseUnlockAnswer.
func marshalUnlock(life time.Duration, err error) []byte {
	outcome, tries, span, text := byte(unlockDone), -1, life, ""
	var wrong *WrongPINError
	var locked *LockedOutError
	switch {
	case err == nil:
	case errors.As(err, &wrong):
		outcome, tries = unlockWrong, wrong.TriesLeft
	case errors.As(err, &locked):
		outcome, span = unlockLockedOut, locked.Wait
	case errors.Is(err, ErrNoPIN):
		outcome = unlockNoPIN
	case errors.Is(err, ErrNoKey):
		outcome = unlockNoKey
	default:
		outcome, text = unlockFailed, err.Error()
	}
	b := binary.BigEndian.AppendUint32([]byte{outcome}, uint32(int32(tries)))
	return appendString(binary.BigEndian.AppendUint32(b, inSeconds(span)), text)
}

// ForgetRequest asks to forget all PINs and all consent that was given for a
// time. It is the request's message, without its length.
func ForgetRequest() []byte { return appendString([]byte{msgExtension}, extForgetPINs) }

// ParseForgetAnswer reads the answer to a ForgetRequest, without its length:
// how many PINs were forgotten.
func ParseForgetAnswer(answer []byte) (pins int, err error) {
	w, err := ownerAnswer(answer, extForgetPINs)
	if err != nil {
		return 0, err
	}
	pins = int(w.uint32())
	return pins, w.end()
}

// Refusal is a request that was refused, and why.
type Refusal struct {
	Time        time.Time // in seconds
	Request     string    // "sign", …
	Key         string    // its name; "" where there was none
	Fingerprint string    // SHA256:…; "" where there was none
	Cause       string    // see the constants of package agent
	Detail      string    // more about it; may be ""
	PID         int       // of who asked; -1: not known
	Chain       []string  // the names of the processes that led to it, as [Peer.Chain] has them
}

// RefusalsRequest asks why the last requests were refused. It is the request's
// message, without its length.
func RefusalsRequest() []byte { return appendString([]byte{msgExtension}, extRefusals) }

// ParseRefusals reads the answer to a RefusalsRequest, without its length: the
// refusals in the order in which they happened.
func ParseRefusals(answer []byte) (all []Refusal, err error) {
	w, err := ownerAnswer(answer, extRefusals)
	if err != nil {
		return nil, err
	}
	for !w.done() {
		all = append(all, Refusal{
			Time:    time.Unix(int64(w.uint64()), 0),
			Request: w.text(), Key: w.text(), Fingerprint: w.text(), Cause: w.text(), Detail: w.text(),
			PID: int(int32(w.uint32())), Chain: w.texts(),
		})
	}
	return all, w.end()
}

func (r *Refusal) marshal(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time.Unix()))
	for _, text := range []string{r.Request, r.Key, r.Fingerprint, r.Cause, r.Detail} {
		b = appendString(b, text)
	}
	var chain []byte
	for _, name := range r.Chain {
		chain = appendString(chain, name)
	}
	return appendString(binary.BigEndian.AppendUint32(b, uint32(int32(r.PID))), string(chain))
}

// ownerAnswer reads the beginning of an answer.
func ownerAnswer(answer []byte, extension string) (*wire, error) {
	if len(answer) == 1 && answer[0] == msgFailure {
		return nil, ErrNotOwner
	}
	w := &wire{rest: answer}
	if number, name := w.byte(), w.text(); w.err != nil || number != msgExtensionResponse || name != extension {
		return nil, errNotUnderstood
	}
	return w, nil
}

var errNotUnderstood = errors.New("the agent's answer cannot be understood")

// end says whether everything was there, and nothing else.
func (w *wire) end() error {
	if w.err != nil || len(w.rest) > 0 {
		return errNotUnderstood
	}
	return nil
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// seconds is a duration as it is sent; the largest number is Forever.
func seconds(n uint32) time.Duration {
	if n == math.MaxUint32 {
		return Forever
	}
	return time.Duration(n) * time.Second
}

// inSeconds rounds up: a time that is not over is not 0.
func inSeconds(d time.Duration) uint32 {
	n := (max(d, 0)-1)/time.Second + 1
	if d <= 0 {
		return 0
	}
	return uint32(min(n, math.MaxUint32))
}
