package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

type unlockOptions struct {
	socket  string
	ttl     string
	pinFrom string
}

func newUnlockCmd(g *global) *cobra.Command {
	var o unlockOptions
	cmd := &cobra.Command{
		Use:   "unlock FILE|FINGERPRINT...",
		Short: "Give the agent the PIN of a key in advance",
		Long:  unlockHelp,
		Example: `  tpm-agent unlock ~/.ssh/id_ecdsa.tpm
  tpm-agent unlock --ttl 8h SHA256:4lxxT6rzKZ1+rzaCGhsgTvq3uc9cRJNVYTCLZT0bIr8
  tpm-agent unlock --pin-from file:$HOME/.pin work.tpm`,
		Args:              someArgs("the key"),
		ValidArgsFunction: completeKeys(g.sys, &o.socket),
		RunE:              func(cmd *cobra.Command, args []string) error { return runUnlock(cmd, g.sys, o, args) },
	}
	f := cmd.Flags()
	agentFlag(cmd, &o.socket)
	f.StringVar(&o.ttl, "ttl", "", "remember the PIN for this `TIME`: 15m, 8h, or session\n(default: the agent's --pin-ttl, or else session)")
	f.StringVar(&o.pinFrom, "pin-from", "", "take the PIN from `SOURCE`, without asking:\n"+pinSources)
	mustComplete(cmd, "ttl", "15m", "1h", "8h", "session")
	mustComplete(cmd, "pin-from", "fd:0", "file:", "credential:")
	return cmd
}

const unlockHelp = `Gives the running agent the PIN of a key in advance, for programs that have no
terminal and no desktop to ask on.

Name the key by its key file, its .pub or -cert.pub file, or its fingerprint.
The agent then remembers the PIN; --ttl says for how long. Details: tpm-agent
man unlock.`

// unlocking is one run of unlock.
type unlocking struct {
	sys    system
	socket string
	client *client
	ttl    time.Duration // 0: as the agent says
	life   time.Duration // for how long the last PIN is remembered
	given  []byte        // the PIN, with --pin-from
	keys   []*sshagent.Key
}

func runUnlock(cmd *cobra.Command, sys system, o unlockOptions, names []string) (err error) {
	u := &unlocking{sys: sys, socket: o.socket}
	if cmd.Flags().Changed("ttl") {
		if u.ttl, err = parsePINLife(o.ttl); err != nil {
			return usage("--ttl: %w", err)
		}
	}
	var source *pinSource
	if cmd.Flags().Changed("pin-from") {
		if source, err = sys.parsePINSource(o.pinFrom); err != nil {
			return fmt.Errorf("--pin-from: %w", err)
		}
	}
	if err := harden(); err != nil { // a PIN is to come
		return err
	}
	ctx, done := interrupting(cmd)
	defer done()
	if source != nil {
		if u.given, _, err = source.read(ctx); err != nil {
			return err
		}
		defer clear(u.given)
	}
	if u.client, err = dialAgent(ctx, sys, o.socket); err != nil {
		return err
	}
	defer u.client.Close()
	return u.all(ctx, names)
}

// all unlocks what it can, and fails if there is a key that it could not.
func (u *unlocking) all(ctx context.Context, names []string) error {
	var errs []error
	for _, name := range names {
		err := u.one(ctx, name)
		errs = append(errs, err)
		if errors.Is(err, agent.ErrNotOwner) || errors.Is(err, agent.ErrRefused) || ctx.Err() != nil {
			break // it will be so for all
		}
	}
	return errors.Join(errs...)
}

// one unlocks a key, unless there is nothing to unlock.
func (u *unlocking) one(ctx context.Context, name string) error {
	blob, err := u.blob(ctx, name)
	if err != nil {
		return err
	}
	status, err := u.status(ctx, blob)
	switch {
	case errors.Is(err, agent.ErrNoPIN):
		fmt.Fprintf(u.sys.stderr, "%s needs no PIN.\n", plain(name))
		return nil
	case err != nil:
		return u.failed(ctx, name, blob, err)
	case status.TriesLeft == 0:
		return u.failed(ctx, name, blob, &agent.LockedOutError{Wait: status.Wait})
	}
	if status.Remembered {
		fmt.Fprintf(u.sys.stderr, "The agent remembers the PIN of %s already; this one takes its place.\n", plain(name))
	}
	t := &pinTries{unlocking: u, name: name, blob: blob, left: status.TriesLeft}
	defer func() { t.wrong.wipe() }()
	if err := t.run(ctx); err != nil {
		return u.failed(ctx, name, blob, err)
	}
	u.report(name)
	return nil
}

// blob is the public key of the key that a user means. Only for a fingerprint
// has the agent to be asked for it.
func (u *unlocking) blob(ctx context.Context, name string) ([]byte, error) {
	if !strings.HasPrefix(name, "SHA256:") {
		public, err := publicOf(name)
		if err != nil {
			return nil, err
		}
		return public.Marshal(), nil
	}
	fingerprint, err := nameKey(name)
	if err != nil {
		return nil, err
	}
	if err := u.list(ctx); err != nil {
		return nil, err
	}
	for _, key := range u.keys {
		if fingerprintOf(key) == fingerprint {
			return key.Blob, nil
		}
	}
	return nil, withHint(fmt.Errorf("unlocking %s: the agent at %s has no such key", plain(name), plain(u.client.path)), "%s",
		"ssh-add -l lists what it has; one that is locked (ssh-add -x) shows nothing: ssh-add -X unlocks it")
}

// list asks over a connection of its own: see client.
func (u *unlocking) list(ctx context.Context) error {
	if u.keys != nil {
		return nil
	}
	c, err := dialAgent(ctx, u.sys, u.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	u.keys, err = c.keys(ctx)
	return err
}

// status is what the agent knows of the key. That it needs no PIN is ErrNoPIN,
// and certain: what the file says of that is a hint, so the key itself is asked
// by an empty PIN, which is none.
func (u *unlocking) status(ctx context.Context, blob []byte) (agent.KeyStatus, error) {
	s, err := u.askStatus(ctx, blob)
	switch {
	case err != nil || s.NeedsPIN:
		return s, err
	case s.TriesLeft == 0 || s.TriesLeft == 1:
		return s, agent.ErrNoPIN // to be certain is not worth the last try
	}
	if err := u.give(ctx, blob, nil); errors.Is(err, agent.ErrNoPIN) || errors.Is(err, agent.ErrNoKey) {
		return s, err
	}
	return u.askStatus(ctx, blob)
}

func (u *unlocking) askStatus(ctx context.Context, blob []byte) (agent.KeyStatus, error) {
	answer, err := u.client.askTPM(ctx, (&agent.StatusRequest{Blob: blob}).Marshal())
	if err != nil {
		return agent.KeyStatus{}, err
	}
	return agent.ParseStatusAnswer(answer)
}

// wait is how long a lockout lasts; 0 if that is not known.
func (u *unlocking) wait(ctx context.Context, blob []byte) time.Duration {
	s, err := u.askStatus(ctx, blob)
	if err != nil {
		return 0
	}
	return s.Wait
}

// give has the agent try a PIN.
func (u *unlocking) give(ctx context.Context, blob, pin []byte) error {
	message := (&agent.UnlockRequest{Blob: blob, PIN: pin, TTL: u.ttl}).Marshal()
	defer clear(message)
	answer, err := u.client.askTPM(ctx, message)
	if err != nil {
		return err
	}
	u.life, err = agent.ParseUnlockAnswer(answer)
	return err
}

// failed explains why a key was not unlocked.
func (u *unlocking) failed(ctx context.Context, name string, blob []byte, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	failed := fmt.Errorf("unlocking %s: %w", plain(name), err)
	var locked *agent.LockedOutError
	var wrong *agent.WrongPINError
	switch {
	case errors.As(err, &wrong) && wrong.TriesLeft == 0:
		return withHint(fmt.Errorf("unlocking %s: wrong PIN, and the TPM has locked itself", plain(name)), "%s", lockoutHint(u.wait(ctx, blob)))
	case errors.Is(err, agent.ErrNotOwner):
		return withHint(fmt.Errorf("unlocking %s at %s: %w", plain(name), plain(u.client.path), err), "%s", notOwnerHint)
	case errors.As(err, &locked):
		return withHint(failed, "%s", lockoutHint(locked.Wait))
	case errors.Is(err, agent.ErrNoKey):
		return withHint(failed, "ssh-add -l lists what the agent has; tpm-agent add FILE gives it a key")
	}
	return failed
}

// lockoutHint is the way out of a lockout.
func lockoutHint(wait time.Duration) string {
	const out = "keys without a PIN go on working. The owner of the TPM can end it at once: tpm2_dictionarylockout --clear-lockout"
	if wait > 0 {
		return "wait " + prompt.Duration(wait) + ", which gives one try back; " + out
	}
	return "the TPM takes PINs again after a while; " + out
}

// report says for how long the agent remembers.
func (u *unlocking) report(name string) {
	fmt.Fprintf(u.sys.stderr, "The PIN of %s is right.\n", plain(name))
	fmt.Fprintf(u.sys.stderr, "The agent remembers it %s.\n", pinLifeWords(u.life))
	fmt.Fprintln(u.sys.stderr, "tpm-agent lock, ssh-add -x, SIGUSR1, suspend and screen lock make it forget.")
}
