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
  tpm-agent add -h gate.example.org -h 'gate.example.org>me@inner.example.org' work.tpm`,
		Args: someArgs("the key file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.pinTTL = given(cmd, "pin-ttl")
			return runAdd(cmd, g.sys, o, args)
		},
	}
	f := cmd.Flags()
	agentFlag(cmd, &o.socket)
	f.StringVarP(&o.lifetime, "lifetime", "t", "", "forget the key after this `TIME`: seconds, or 90m, 8h, 2w (default: what the agent was told, else never)")
	f.BoolVarP(&o.confirm, "confirm", "c", false, "ask before each use of the key")
	f.StringArrayVarP(&o.destinations, "destination", "h", nil, "use the key only for this `[FROM>][USER@]HOST`; may be given several times")
	f.StringArrayVarP(&o.hostKeys, "hostkeys", "H", nil, "`FILE` with keys of hosts, for -h; may be given several times (default: ssh's known_hosts files)")
	f.String("pin-ttl", "", "remember the key's PIN, once it was typed, for this `TIME`: 15m, 8h, session or off (default as the agent's --pin-ttl says)")
	f.Bool("help", false, "help for add") // -h is ssh-add's
	mustComplete(cmd, "destination")
	mustComplete(cmd, "lifetime")
	mustComplete(cmd, "pin-ttl", "15m", "8h", "session", "off")
	return cmd
}

const addHelp = `Adds key files to the agent that runs: keys that are in none of its directories,
or that are to be used under conditions. The files' contents are sent, so the
agent need not be able to read them. The public key's comment and a certificate
beside the file (NAME.pub, NAME-cert.pub) go with it. Nothing is written: the
agent forgets the keys when it ends, on SIGUSR1 and with tpm-agent remove.

A key that the agent has in a directory is added too, and its conditions then
hold instead; removed, it is gone altogether until the agent is started anew or
gets SIGHUP.

The conditions are those of ssh-add(1). With -t the key is forgotten after a
time. With -c the user is asked before each use. With -h it can be used only for
the hosts named:

  HOST, USER@HOST        when logging in there from this machine
  FROM>HOST              when going on from FROM, with ssh -A, to HOST
  FROM>USER@HOST         the same, as USER only

Each hop needs an -h of its own, and USER may have the wildcards * and ?. The
keys of the hosts are taken from ssh's known_hosts files, or those given with
-H; a port other than 22 is written [HOST]:PORT. The client's ssh, and the
servers on the way, have to be OpenSSH 8.9 or newer.

With --pin-ttl the agent remembers the PIN of the key for a time after it was
typed for a signature, whatever the agent was told of other keys; "session" is
until something makes it forget (tpm-agent help unlock says what), and "off" not
at all.

The agent takes key files from processes on this machine only, not over
forwarded connections.`

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
