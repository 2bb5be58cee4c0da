package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/knownhosts"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// AddOptions are the options of add.
type AddOptions struct {
	Socket       string
	Lifetime     string
	Confirm      bool
	Destinations []string
	HostKeys     []string
	PINTTL       *string
}

// Add adds key files to the agent. It adds what it can, and fails if there is a file
// that it could not.
func Add(ctx context.Context, sys *term.System, o AddOptions, files []string) error {
	limits, err := o.limits(sys)
	if err != nil {
		return err
	}
	c, err := Dial(ctx, sys, o.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	for _, file := range files {
		err := c.add(ctx, sys.Stderr, limits, file)
		errs = append(errs, err)
		if errors.Is(err, errNoKeyFiles) || ctx.Err() != nil {
			break // it will be so for all
		}
	}
	return errors.Join(errs...)
}

// limits returns the constraints of all keys that are added.
func (o AddOptions) limits(sys *term.System) (k keyFileRequest, err error) {
	k.Confirm = o.Confirm
	if o.Lifetime != "" {
		d, err := term.ParseLifetime(o.Lifetime)
		if err != nil {
			return k, term.Usage("-t: %w", err)
		}
		if seconds := uint32(d / time.Second); seconds > 0 { // ssh-add takes 0 for none, too
			k.Lifetime = &seconds
		}
	}
	if o.PINTTL != nil {
		life, err := term.ParsePINLife(*o.PINTTL, true)
		if err != nil {
			return k, term.Usage("--pin-ttl: %w", err)
		}
		k.PINLife = &life
	}
	files, err := sys.KnownHosts(o.HostKeys)
	for _, spec := range o.Destinations {
		var d restrict.Destination
		if err == nil {
			d, err = parseDestination(spec, files)
		}
		k.Destinations = append(k.Destinations, d)
	}
	return k, err
}

// parseDestination reads a destination as ssh-add's -h has it: [USER@]HOST, which
// is reached from here, or HOST>[USER@]HOST, which is reached from there.
func parseDestination(spec string, hostKeys []string) (d restrict.Destination, err error) {
	from, to, hops := strings.Cut(spec, ">")
	switch {
	case !hops:
		to = spec
	case strings.Contains(from, "@"):
		return d, term.Usage("-h %s: there is a user before the >: only the last host can have one", term.Plain(spec))
	case strings.Contains(to, ">"):
		return d, term.Hint(term.Usage("-h %s: more than one >", term.Plain(spec)), "one -h for each hop: -h A -h 'A>B' -h 'B>C'")
	default:
		if d.From, err = parseHop(spec, from, hostKeys); err != nil {
			return d, err
		}
	}
	d.To, err = parseHop(spec, to, hostKeys)
	return d, err
}

// parseHop reads [USER@]HOST and looks up the host's keys.
func parseHop(spec, text string, hostKeys []string) (restrict.Hop, error) {
	hop := restrict.Hop{Host: text}
	if at := strings.LastIndex(text, "@"); at >= 0 {
		hop.User, hop.Host = text[:at], text[at+1:]
	}
	if strings.HasPrefix(hop.Host, "[") && strings.HasSuffix(hop.Host, "]") {
		hop.Host = hop.Host[1 : len(hop.Host)-1]
	}
	if hop.Host == "" {
		return hop, term.Usage("-h %q: a host is missing", term.Plain(spec))
	}
	keys, err := knownhosts.Lookup(hostKeys, hop.Host)
	for _, key := range keys {
		hop.Keys = append(hop.Keys, restrict.HostKey{Key: key.Public, CA: key.CA})
	}
	var unknown *knownhosts.NotFoundError
	if errors.As(err, &unknown) {
		return hop, term.Hint(fmt.Errorf("-h %s: %w", term.Plain(spec), err),
			"connect to it once with ssh, which shows its key and keeps it, or use ssh-keyscan; a port is written [HOST]:PORT")
	}
	return hop, err
}

// add sends one key file, and reports what ssh-add reports.
func (c *Client) add(ctx context.Context, stderr io.Writer, request keyFileRequest, path string) error {
	entry, problems, err := keydir.ReadEntry(path)
	if err != nil {
		err = inspect.Naming(path, err)
		if beside, ok := inspect.KeyFileBeside(path); ok {
			err = term.Hint(err, "tpm-agent add %s", term.Quote(beside))
		}
		return err
	}
	for _, p := range problems {
		fmt.Fprintf(stderr, "tpm-agent: %s: %s\n", term.Plain(p.Path), term.OneLine(p.Err.Error()))
	}
	content, err := inspect.ReadSmall(path)
	if err != nil {
		return inspect.Naming(path, err)
	}
	request.Name, request.Comment, request.Content = entry.Path, entry.Comment, content
	for _, cert := range entry.Certificates {
		if cert.ValidBefore != ssh.CertTimeInfinity && uint64(time.Now().Unix()) >= cert.ValidBefore {
			fmt.Fprintf(stderr, "tpm-agent: %s: its certificate %q has expired and is not added\n", term.Plain(entry.Path), term.Plain(cert.KeyId))
			continue
		}
		request.Certificates = append(request.Certificates, cert)
	}
	answer, err := c.exchange(ctx, request.marshal(), agentPatience)
	if err != nil {
		return err
	}
	if err := parseKeyFileAnswer(answer); err != nil {
		err = fmt.Errorf("adding %s to the agent at %s: %w", term.Plain(path), term.Plain(c.path), err)
		if errors.Is(err, errNoKeyFiles) {
			return term.Hint(err, notOwnerHint)
		}
		return err
	}
	reportAdded(stderr, path, &request)
	return nil
}

// reportAdded reports what ssh-add reports.
func reportAdded(stderr io.Writer, path string, request *keyFileRequest) {
	fmt.Fprintf(stderr, "Identity added: %s (%s)\n", term.Plain(path), term.Plain(request.Comment))
	for _, cert := range request.Certificates {
		fmt.Fprintf(stderr, "Certificate added: %s (%s)\n", term.Plain(path), term.Plain(cert.KeyId))
	}
	if request.Lifetime != nil {
		fmt.Fprintf(stderr, "Lifetime set to %d seconds\n", *request.Lifetime)
	}
	if request.Confirm {
		fmt.Fprintln(stderr, "The user must confirm each use of the key")
	}
	if request.PINLife != nil {
		fmt.Fprintf(stderr, "Its PIN, once typed, is remembered %s\n", term.PINLife(*request.PINLife))
	}
}
