package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
)

// maxSocketPath is the longest path that a unix socket can have, in octets.
const maxSocketPath = 107

// upstreams makes the other agents of their sockets. A socket need not be there
// yet.
func upstreams(paths []string) ([]agent.Upstream, error) {
	var list []agent.Upstream
	for _, path := range paths {
		switch {
		case path == "":
			return nil, usage("--upstream: the path is empty")
		case strings.HasPrefix(path, "~"):
			return nil, withHint(usage("--upstream %s: nobody has replaced the ~", path), "write the whole path, or ./%s", path)
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if len(path) > maxSocketPath {
			return nil, usage("--upstream %s: the path is %d bytes long, a socket's path can have %d at most", path, len(path), maxSocketPath)
		}
		if !slices.ContainsFunc(list, func(u agent.Upstream) bool { return u.Name == path }) {
			list = append(list, upstream(path))
		}
	}
	return list, nil
}

func upstream(path string) agent.Upstream {
	return agent.Upstream{Name: path, Dial: func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", path)
	}}
}

// refuseOwn refuses an agent that would be its own upstream: each of its
// requests would come back to it for ever.
func refuseOwn(list []agent.Upstream, own string) error {
	own, err := filepath.Abs(own)
	if err != nil {
		return err
	}
	ours, err := os.Stat(own)
	for _, u := range list {
		theirs, theirErr := os.Stat(u.Name)
		if u.Name == own || err == nil && theirErr == nil && os.SameFile(ours, theirs) {
			return usage("--upstream %s: that is the socket of this agent itself", u.Name)
		}
	}
	return nil
}
