package agent

import (
	"context"
	"net"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// toHost returns a hop to a host with these keys.
func toHost(user, name string, keys ...ssh.Signer) restrict.Hop {
	h := restrict.Hop{User: user, Host: name}
	for _, k := range keys {
		h.Keys = append(h.Keys, restrict.HostKey{Key: k.PublicKey()})
	}
	return h
}

// byAuthority returns a hop to a host whose key one of these authorities has
// certified.
func byAuthority(user, name string, cas ...ssh.Signer) restrict.Hop {
	h := toHost(user, name, cas...)
	for i := range h.Keys {
		h.Keys[i].CA = true
	}
	return h
}

// direct returns a destination that is reached from this machine.
func direct(to restrict.Hop) restrict.Destination { return restrict.Destination{To: to} }

// onward returns a destination that is reached from another host.
func onward(from, to restrict.Hop) restrict.Destination {
	from.User = ""
	return restrict.Destination{From: from, To: to}
}

// upstreamAt returns the upstream agent on a socket.
func upstreamAt(path string) upstream.Agent {
	return upstream.Agent{Name: filepath.Base(filepath.Dir(path)), Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
}

// listOf returns an answer to a list request.
func listOf(keys ...upstream.Listed) []byte {
	b := []byte{wire.MsgIdentitiesAnswer, 0, 0, byte(len(keys) >> 8), byte(len(keys))}
	for _, k := range keys {
		b = wire.AppendString(wire.AppendString(b, k.Blob), k.Comment)
	}
	return wire.Frame(b)
}
