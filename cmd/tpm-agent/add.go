package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
)

type addOptions struct {
	socket       string
	lifetime     string
	confirm      bool
	destinations []string
	hostKeys     []string
	pinTTL       *string
}

func newAddCmd(g *global) *cobra.Command {
	var o addOptions
	cmd := &cobra.Command{
		Use:   "add FILE...",
		Short: "Add key files to the running agent",
		Long:  addHelp,
		Example: `  tpm-agent add /media/stick/work.tpm
  tpm-agent add -t 8h -c work.tpm
  tpm-agent add --pin-ttl 15m work.tpm
  tpm-agent add -h gate.example -h 'gate.example>me@inner.example' work.tpm`,
		Args: someArgs("the key file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.pinTTL = given(cmd, "pin-ttl")
			return runAdd(cmd, g.sys, o, args)
		},
	}
	f := cmd.Flags()
	agentFlag(cmd, &o.socket)
	f.StringVarP(&o.lifetime, "lifetime", "t", "", "forget the key after this `TIME`: 90 (seconds), 10m,\n8h, 2w (default: as serve -t says)")
	f.BoolVarP(&o.confirm, "confirm", "c", false, "ask before each use of the key")
	f.StringArrayVarP(&o.destinations, "destination", "h", nil, "use the key only for this `HOST`, or as shown above\n(repeatable)")
	f.StringArrayVarP(&o.hostKeys, "hostkeys", "H", nil, "`FILE` with host keys, for -h (default: ssh's\nknown_hosts files; repeatable)")
	f.String("pin-ttl", "", "remember the key's PIN for this `TIME`: 15m, 8h,\nsession or off (default: as serve --pin-ttl says)")
	f.Bool("help", false, "help for add") // -h is ssh-add's
	mustComplete(cmd, "destination")
	mustComplete(cmd, "lifetime")
	mustComplete(cmd, "pin-ttl", "15m", "8h", "session", "off")
	return cmd
}

const addHelp = `Adds key files to the running agent, from any directory or with conditions.
For -h, give each hop an option of its own:

  HOST, USER@HOST             log in there from this machine
  FROM>HOST, FROM>USER@HOST   go on from FROM to HOST, with ssh -A

Details: tpm-agent man add.`

// runAdd adds what it can, and fails if there is a file that it could not.
func runAdd(cmd *cobra.Command, sys system, o addOptions, files []string) error {
	limits, err := o.limits(sys)
	if err != nil {
		return err
	}
	ctx, done := interrupting(cmd)
	defer done()
	c, err := dialAgent(ctx, sys, o.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	for _, file := range files {
		err := addFile(ctx, c, sys.stderr, limits, file)
		errs = append(errs, err)
		if errors.Is(err, agent.ErrNoKeyFiles) || ctx.Err() != nil {
			break // it will be so for all
		}
	}
	return errors.Join(errs...)
}

// limits are the constraints of all keys that are added.
func (o addOptions) limits(sys system) (k agent.KeyFileRequest, err error) {
	k.Confirm = o.confirm
	if o.lifetime != "" {
		d, err := parseLifetime(o.lifetime)
		if err != nil {
			return k, &usageError{fmt.Errorf("-t: %w", err)}
		}
		if seconds := uint32(d / time.Second); seconds > 0 { // ssh-add takes 0 for none, too
			k.Lifetime = &seconds
		}
	}
	if o.pinTTL != nil {
		life, err := parseKeyPINLife(*o.pinTTL)
		if err != nil {
			return k, usage("--pin-ttl: %w", err)
		}
		k.PINLife = &life
	}
	files, err := sys.hostKeyFiles(o.hostKeys)
	if err != nil {
		return k, err
	}
	k.Destinations, err = parseDestinations(o.destinations, files)
	return k, err
}

func addFile(ctx context.Context, c *client, stderr io.Writer, limits agent.KeyFileRequest, path string) error {
	entry, problems, err := keydir.ReadEntry(path)
	if err != nil {
		err = naming(path, err)
		if beside, ok := keyFileBeside(path); ok {
			err = withHint(err, "tpm-agent add %s", shQuote(beside))
		}
		return err
	}
	for _, p := range problems {
		fmt.Fprintf(stderr, "tpm-agent: %s: %s\n", plain(p.Path), oneLine(p.Err.Error()))
	}
	content, err := readSmall(path)
	if err != nil {
		return naming(path, err)
	}
	request := limits
	request.Name, request.Comment, request.Content = entry.Path, entry.Comment, content
	request.Certificates = validCertificates(stderr, entry, time.Now())
	answer, err := c.askHere(ctx, request.Marshal())
	if err != nil {
		return err
	}
	if err := agent.ParseKeyFileAnswer(answer); err != nil {
		return notAdded(c, path, err)
	}
	reportAdded(stderr, path, &request)
	return nil
}

// notAdded explains an agent's refusal.
func notAdded(c *client, path string, err error) error {
	err = fmt.Errorf("adding %s to the agent at %s: %w", plain(path), plain(c.path), err)
	if errors.Is(err, agent.ErrNoKeyFiles) {
		return withHint(err, "is it tpm-agent? (--socket PATH chooses another.) One that is locked takes none (ssh-add -X unlocks it), nor one that is reached through ssh -A")
	}
	return err
}

// validCertificates leaves out those that have expired, which no agent offers.
func validCertificates(stderr io.Writer, entry *keydir.Entry, now time.Time) (valid []*ssh.Certificate) {
	for _, cert := range entry.Certificates {
		if cert.ValidBefore != ssh.CertTimeInfinity && uint64(now.Unix()) >= cert.ValidBefore {
			fmt.Fprintf(stderr, "tpm-agent: %s: its certificate %q has expired and is not added\n", plain(entry.Path), plain(cert.KeyId))
			continue
		}
		valid = append(valid, cert)
	}
	return valid
}

// reportAdded says what ssh-add says.
func reportAdded(stderr io.Writer, path string, k *agent.KeyFileRequest) {
	fmt.Fprintf(stderr, "Identity added: %s (%s)\n", plain(path), plain(k.Comment))
	for _, cert := range k.Certificates {
		fmt.Fprintf(stderr, "Certificate added: %s (%s)\n", plain(path), plain(cert.KeyId))
	}
	if k.Lifetime != nil {
		fmt.Fprintf(stderr, "Lifetime set to %d seconds\n", *k.Lifetime)
	}
	if k.Confirm {
		fmt.Fprintln(stderr, "The user must confirm each use of the key")
	}
	if k.PINLife != nil {
		fmt.Fprintf(stderr, "Its PIN, once typed, is remembered %s\n", pinLifeWords(*k.PINLife))
	}
}
