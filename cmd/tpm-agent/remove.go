package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

type removeOptions struct {
	socket string
	all    bool
}

func newRemoveCmd(g *global) *cobra.Command {
	var o removeOptions
	cmd := &cobra.Command{
		Use:   "remove FILE|FINGERPRINT...",
		Short: "Remove keys from the running agent",
		Long: `Removes keys from the running agent. No file is deleted.

Name a key by its key file, its .pub or -cert.pub file, or its fingerprint. A
key in a watched directory is offered again after SIGHUP or a restart of the
agent.`,
		Example: `  tpm-agent remove ~/.ssh/id_ecdsa.tpm
  tpm-agent remove SHA256:4lxxT6rzKZ1+rzaCGhsgTvq3uc9cRJNVYTCLZT0bIr8
  tpm-agent remove --all`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.all && len(args) > 0:
				return usage("--all leaves no place for %q", args[0])
			case !o.all && len(args) == 0:
				return withHint(usage("the key is missing"), "tpm-agent remove FILE, or --all for all keys")
			}
			return nil
		},
		ValidArgsFunction: completeKeys(g.sys, &o.socket),
		RunE:              func(cmd *cobra.Command, args []string) error { return runRemove(cmd, g.sys, o, args) },
	}
	f := cmd.Flags()
	agentFlag(cmd, &o.socket)
	f.BoolVar(&o.all, "all", false, "remove all keys")
	return cmd
}

// stays is what a removal does not do.
const stays = "Key files stay on the disk; those in a directory that the agent watches are offered again after SIGHUP or a new start."

func runRemove(cmd *cobra.Command, sys system, o removeOptions, names []string) error {
	ctx, done := interrupting(cmd)
	defer done()
	c, err := dialAgent(ctx, sys, o.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if o.all {
		return removeAll(ctx, c, sys.stderr)
	}
	return removeSome(ctx, c, sys.stderr, names)
}

func removeAll(ctx context.Context, c *client, stderr io.Writer) error {
	c.patient(ctx)
	if err := c.ordinary().RemoveAll(); err != nil {
		return withHint(c.failed(ctx, err), lockedHint)
	}
	fmt.Fprintln(stderr, "All identities removed.")
	fmt.Fprintln(stderr, stays)
	return nil
}

const lockedHint = "an agent that is locked (ssh-add -x) shows no keys and removes none: ssh-add -X unlocks it"

// removeSome removes what it can, and fails if there is a key that it could
// not.
func removeSome(ctx context.Context, c *client, stderr io.Writer, names []string) error {
	keys, err := c.keys(ctx)
	if err != nil {
		return err
	}
	var errs []error
	removed := false
	for _, name := range names {
		id, err := nameKey(name)
		if err == nil {
			err = removeKey(ctx, c, stderr, keys, name, id)
		}
		removed = removed || err == nil
		errs = append(errs, err)
	}
	if removed {
		fmt.Fprintln(stderr, stays)
	}
	return errors.Join(errs...)
}

// removeKey removes the key of that fingerprint and its certificates.
func removeKey(ctx context.Context, c *client, stderr io.Writer, keys []*sshagent.Key, name, fingerprint string) error {
	found := slices.DeleteFunc(slices.Clone(keys), func(k *sshagent.Key) bool { return fingerprintOf(k) != fingerprint })
	if len(found) == 0 {
		return withHint(fmt.Errorf("removing %s: the agent at %s has no such key", plain(name), plain(c.path)), lockedHint)
	}
	for _, key := range found {
		c.patient(ctx)
		if err := c.ordinary().Remove(key); err != nil {
			return fmt.Errorf("removing %s: %w", plain(name), c.failed(ctx, err))
		}
		fmt.Fprintf(stderr, "Identity removed: %s %s (%s)\n", plain(name), plain(key.Type()), plain(key.Comment))
	}
	return nil
}

// fingerprintOf is that of the plain key, which a certificate shares with the
// key that it certifies.
func fingerprintOf(k *sshagent.Key) string {
	public, err := ssh.ParsePublicKey(k.Blob)
	if err != nil {
		return ssh.FingerprintSHA256(k) // of a type that is not known here
	}
	return plainFingerprint(public)
}

func plainFingerprint(public ssh.PublicKey) string {
	if cert, ok := public.(*ssh.Certificate); ok {
		public = cert.Key
	}
	return ssh.FingerprintSHA256(public)
}

// nameKey is the fingerprint that a user means.
func nameKey(name string) (string, error) {
	if hash, ok := strings.CutPrefix(name, "SHA256:"); ok {
		return "SHA256:" + strings.TrimRight(hash, "="), nil
	}
	public, err := publicOf(name)
	if err != nil {
		return "", err
	}
	return plainFingerprint(public), nil
}

// publicOf is the public key of a key file, or what a .pub file has: a public
// key or a certificate.
func publicOf(name string) (ssh.PublicKey, error) {
	_, public, err := readKey(name)
	if errors.Is(err, keyfile.ErrNoKey) {
		if public, ok := readPublicKey(name); ok {
			return public, nil
		}
		return nil, withHint(err, "name the key file, its .pub file or its fingerprint (SHA256:...); ssh-add -l lists what the agent has")
	}
	return public, err
}

// readPublicKey reads a .pub file, which may be that of a certificate.
func readPublicKey(path string) (ssh.PublicKey, bool) {
	data, err := readSmall(path)
	if err != nil {
		return nil, false
	}
	line, _, _ := bytes.Cut(bytes.TrimLeft(data, " \t\r\n"), []byte("\n"))
	public, _, _, _, err := ssh.ParseAuthorizedKey(line)
	return public, err == nil
}
