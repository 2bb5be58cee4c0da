package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/knownhosts"
)

// hostKeyFiles are the known_hosts files to look into: those asked for, else
// those of ssh.
func (s system) hostKeyFiles(asked []string) ([]string, error) {
	dir, err := s.sshDir()
	if err != nil {
		return nil, err
	}
	if len(asked) == 0 {
		return []string{
			filepath.Join(dir, "known_hosts"), filepath.Join(dir, "known_hosts2"),
			"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2",
		}, nil
	}
	var files []string
	for _, file := range asked {
		if file == "" {
			return nil, usage("--hostkeys: the name is empty")
		}
		if below, ok := strings.CutPrefix(file, "~/"); ok { // as ssh-add has it
			file = filepath.Join(filepath.Dir(dir), below)
		}
		files = append(files, file)
	}
	return files, nil
}

// parseDestinations reads destination constraints as ssh-add's -h has them.
func parseDestinations(specs, hostKeys []string) ([]agent.Destination, error) {
	var list []agent.Destination
	for _, spec := range specs {
		d, err := parseDestination(spec, hostKeys)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

// parseDestination reads [USER@]HOST, which is reached from here, or
// HOST>[USER@]HOST, which is reached from there.
func parseDestination(spec string, hostKeys []string) (d agent.Destination, err error) {
	from, to, hops := strings.Cut(spec, ">")
	switch {
	case !hops:
		to = spec
	case strings.Contains(from, "@"):
		return d, usage("-h %s: there is a user before the >: only the last host can have one", plain(spec))
	case strings.Contains(to, ">"):
		return d, withHint(usage("-h %s: more than one >", plain(spec)), "one -h for each hop: -h A -h 'A>B' -h 'B>C'")
	default:
		if d.From, err = parseHop(spec, from, hostKeys); err != nil {
			return d, err
		}
	}
	d.To, err = parseHop(spec, to, hostKeys)
	return d, err
}

// parseHop reads [USER@]HOST and looks up the host's keys.
func parseHop(spec, text string, hostKeys []string) (agent.Hop, error) {
	hop := agent.Hop{Host: text}
	if at := strings.LastIndex(text, "@"); at >= 0 {
		hop.User, hop.Host = text[:at], text[at+1:]
	}
	if strings.HasPrefix(hop.Host, "[") && strings.HasSuffix(hop.Host, "]") {
		hop.Host = hop.Host[1 : len(hop.Host)-1]
	}
	if hop.Host == "" {
		return hop, usage("-h %q: a host is missing", plain(spec))
	}
	keys, err := knownhosts.Lookup(hostKeys, hop.Host)
	for _, key := range keys {
		hop.Keys = append(hop.Keys, agent.HostKey{Key: key.Public, CA: key.CA})
	}
	var unknown *knownhosts.NotFoundError
	if errors.As(err, &unknown) {
		return hop, withHint(fmt.Errorf("-h %s: %w", plain(spec), err),
			"connect to it once with ssh, which shows its key and keeps it, or use ssh-keyscan; a port is written [HOST]:PORT")
	}
	return hop, err
}
