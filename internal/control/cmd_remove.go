package control

import (
	"context"
	"errors"
	"fmt"

	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// RemoveOptions are the options of remove.
type RemoveOptions struct {
	Socket string
	All    bool
}

// Remove removes keys from the agent.
func Remove(ctx context.Context, sys *term.System, o RemoveOptions, names []string) error {
	switch {
	case o.All && len(names) > 0:
		return term.Usage("--all leaves no place for %q", names[0])
	case !o.All && len(names) == 0:
		return term.Hint(term.Usage("the key is missing"), "tpm-agent remove FILE, or --all for all keys")
	}
	c, err := Dial(ctx, sys, o.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	removed := false
	if o.All {
		if err := c.ordinary(ctx).RemoveAll(); err != nil {
			return term.Hint(c.failed(ctx, err), lockedHint)
		}
		removed = true
		fmt.Fprintln(sys.Stderr, "All identities removed.")
	} else {
		removed, err = c.remove(ctx, sys, names)
	}
	if removed {
		fmt.Fprintln(sys.Stderr, "Key files stay on the disk; those in a directory that the agent watches are offered again after SIGHUP or a restart.")
	}
	return err
}

// remove removes what it can, and fails if there is a key that it could not.
func (c *Client) remove(ctx context.Context, sys *term.System, names []string) (removed bool, err error) {
	keys, err := c.Keys(ctx)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, name := range names {
		fingerprint, err := fingerprintNamed(name)
		if err == nil {
			err = c.removeKey(ctx, sys, keys, name, fingerprint)
		}
		removed = removed || err == nil
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// removeKey removes the key of that fingerprint and its certificates.
func (c *Client) removeKey(ctx context.Context, sys *term.System, keys []*sshagent.Key, name, fingerprint string) error {
	found := false
	for _, key := range keys {
		if FingerprintOf(key) != fingerprint {
			continue
		}
		found = true
		if err := c.ordinary(ctx).Remove(key); err != nil {
			return fmt.Errorf("removing %s: %w", term.Plain(name), c.failed(ctx, err))
		}
		fmt.Fprintf(sys.Stderr, "Identity removed: %s %s (%s)\n", term.Plain(name), term.Plain(key.Type()), term.Plain(key.Comment))
	}
	if !found {
		return term.Hint(fmt.Errorf("removing %s: the agent at %s has no such key", term.Plain(name), term.Plain(c.path)), lockedHint)
	}
	return nil
}
