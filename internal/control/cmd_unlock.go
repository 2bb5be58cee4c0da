package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/pinsource"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// UnlockOptions are the options of unlock.
type UnlockOptions struct {
	Socket  string
	TTL     *string
	PINFrom *string
}

// unlocking is one run of unlock.
type unlocking struct {
	sys    *term.System
	ask    *term.Asker
	socket string
	client *Client
	ttl    time.Duration // 0: as the agent says
	life   time.Duration // for how long the last PIN is remembered
	given  []byte        // the PIN, with --pin-from
	keys   []*sshagent.Key
}

// Unlock gives the agent the PINs of keys ahead of their use.
func Unlock(ctx context.Context, sys *term.System, o UnlockOptions, names []string) (err error) {
	u := &unlocking{sys: sys, ask: term.OnTerminal(sys), socket: o.Socket}
	if o.TTL != nil {
		if u.ttl, err = term.ParsePINLife(*o.TTL, false); err != nil {
			return term.Usage("--ttl: %w", err)
		}
	}
	var source *pinsource.Source
	if o.PINFrom != nil {
		if source, err = pinsource.Parse(sys, *o.PINFrom); err != nil {
			return fmt.Errorf("--pin-from: %w", err)
		}
	}
	if err := pinsource.Harden(); err != nil { // a PIN will come
		return err
	}
	if source != nil {
		if u.given, _, err = source.Read(ctx); err != nil {
			return err
		}
		defer clear(u.given)
	}
	if u.client, err = Dial(ctx, sys, o.Socket); err != nil {
		return err
	}
	defer u.client.Close()
	var errs []error
	for _, name := range names {
		err := u.unlock(ctx, name)
		errs = append(errs, err)
		if errors.Is(err, ErrNotOwner) || errors.Is(err, ask.ErrRefused) || ctx.Err() != nil {
			break // it will be so for all
		}
	}
	return errors.Join(errs...)
}

// unlock unlocks a key, unless there is nothing to unlock.
func (u *unlocking) unlock(ctx context.Context, name string) error {
	blob, err := u.blob(ctx, name)
	if err != nil {
		return err
	}
	d := &unlockingKey{unlocking: u, name: name, blob: blob}
	status, err := d.status(ctx)
	if errors.Is(err, consent.ErrNoPIN) {
		u.ask.Say("%s needs no PIN.", term.Plain(name))
		return nil
	}
	if err != nil {
		return d.explain(ctx, err)
	}
	if status.Remembered && status.TriesLeft != 0 {
		u.ask.Say("The agent remembers the PIN of %s already; this one takes its place.", term.Plain(name))
	}
	d.left = consent.Lockout{Tries: status.TriesLeft, Wait: status.Wait}
	pin, err := consent.AskPIN(ctx, d.dialog())
	if err != nil {
		return d.explain(ctx, err)
	}
	clear(pin)
	u.ask.Say("The PIN of %s is right.", term.Plain(name))
	u.ask.Say("The agent remembers it %s.", term.PINLife(u.life))
	u.ask.Say("tpm-agent lock, ssh-add -x, SIGUSR1, suspend and screen lock make it forget.")
	return nil
}

// blob returns the public key of the key that a user means. The agent is asked only
// for a fingerprint, and over a connection of its own: see [Client].
func (u *unlocking) blob(ctx context.Context, name string) ([]byte, error) {
	if !strings.HasPrefix(name, "SHA256:") {
		public, err := publicOf(name)
		if err != nil {
			return nil, err
		}
		return public.Marshal(), nil
	}
	fingerprint, err := fingerprintNamed(name)
	if err == nil && u.keys == nil {
		u.keys, err = u.list(ctx)
	}
	if err != nil {
		return nil, err
	}
	for _, key := range u.keys {
		if FingerprintOf(key) == fingerprint {
			return key.Blob, nil
		}
	}
	return nil, term.Hint(fmt.Errorf("unlocking %s: the agent at %s has no such key", term.Plain(name), term.Plain(u.client.path)),
		"ssh-add -l lists what it has; one that is locked (ssh-add -x) shows nothing: ssh-add -X unlocks it")
}

func (u *unlocking) list(ctx context.Context) ([]*sshagent.Key, error) {
	c, err := Dial(ctx, u.sys, u.socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Keys(ctx)
}

// unlockingKey is the part of it that is about one key.
type unlockingKey struct {
	*unlocking
	name string
	blob []byte
	left consent.Lockout
}

// dialog returns the dialog about the key's PIN.
func (d *unlockingKey) dialog() *term.PINDialog {
	return &term.PINDialog{
		Asker: d.ask, Name: d.name, Question: "Enter PIN", Given: d.given,
		Hint: "--pin-from fd:0 takes the PIN from standard input, --pin-from file:PATH from a file",
		Unasked: term.Hint(errors.New("one try is left before the TPM locks itself, and that is not spent unasked"),
			"without --pin-from you are asked: tpm-agent unlock %s", term.Quote(d.name)),
		Left: func(context.Context) (consent.Lockout, error) { return d.left, nil },
		TryPIN: func(ctx context.Context, pin []byte) error {
			err := d.give(ctx, pin)
			var wrong *consent.WrongPINError
			if errors.As(err, &wrong) {
				d.left.Tries = wrong.Left
			}
			return err
		},
	}
}

// status returns what the agent knows of the key, or ErrNoPIN. The file may be wrong
// about that, so the key itself is asked with an empty PIN.
func (d *unlockingKey) status(ctx context.Context) (keyStatus, error) {
	s, err := d.askStatus(ctx)
	switch {
	case err != nil || s.NeedsPIN:
		return s, err
	case s.TriesLeft == 0 || s.TriesLeft == 1:
		return s, consent.ErrNoPIN // to be certain is not worth the last try
	}
	if err := d.give(ctx, nil); errors.Is(err, consent.ErrNoPIN) || errors.Is(err, agent.ErrNoKey) {
		return s, err
	}
	return d.askStatus(ctx)
}

func (d *unlockingKey) askStatus(ctx context.Context) (keyStatus, error) {
	answer, err := d.client.exchange(ctx, statusRequest(d.blob), tpmPatience)
	if err != nil {
		return keyStatus{}, err
	}
	return parseStatusAnswer(answer)
}

// give has the agent try a PIN.
func (d *unlockingKey) give(ctx context.Context, pin []byte) error {
	message := unlockRequest(d.blob, pin, d.ttl)
	defer clear(message)
	answer, err := d.client.exchange(ctx, message, tpmPatience)
	if err != nil {
		return err
	}
	d.life, err = parseUnlockAnswer(answer)
	return err
}

// explain says why a key was not unlocked.
func (d *unlockingKey) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	failed := fmt.Errorf("unlocking %s: %w", term.Plain(d.name), err)
	var locked *consent.LockedOutError
	var wrong *consent.WrongPINError
	switch {
	case errors.As(err, &wrong) && wrong.Left == 0:
		s, _ := d.askStatus(ctx)
		return term.Hint(fmt.Errorf("unlocking %s: wrong PIN, and the TPM has locked itself", term.Plain(d.name)), "%s", lockoutHint(s.Wait))
	case errors.Is(err, ErrNotOwner):
		return term.Hint(fmt.Errorf("unlocking %s at %s: %w", term.Plain(d.name), term.Plain(d.client.path), err), notOwnerHint)
	case errors.As(err, &locked):
		return term.Hint(failed, "%s", lockoutHint(locked.Wait))
	case errors.Is(err, agent.ErrNoKey):
		return term.Hint(failed, "ssh-add -l lists what the agent has; tpm-agent add FILE gives it a key")
	}
	return failed
}

// lockoutHint is the way out of a lockout.
func lockoutHint(wait time.Duration) string {
	const out = "keys without a PIN keep working. The owner of the TPM can end it at once: tpm2_dictionarylockout --clear-lockout"
	if wait > 0 {
		return "wait " + prompt.Duration(wait) + ", which gives one try back; " + out
	}
	return "the TPM takes PINs again after a while; " + out
}
