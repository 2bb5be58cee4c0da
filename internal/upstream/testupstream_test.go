package upstream

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// at returns the upstream on a socket.
func at(path string) Agent {
	return Agent{Name: filepath.Base(filepath.Dir(path)), Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
}

// relayTo returns a client's Relay to upstreams on sockets, and the log.
func relayTo(t testing.TB, paths ...string) (*Relay, *sshtest.Log) {
	t.Helper()
	list := make([]Agent, len(paths))
	for i, p := range paths {
		list[i] = at(p)
	}
	u, log := upstreamsOf(list...)
	return newRelay(t, u), log
}

func upstreamsOf(list ...Agent) (*Agents, *sshtest.Log) {
	log := new(sshtest.Log)
	return New(list, slog.New(slog.NewTextHandler(log, nil))), log
}

func newRelay(t testing.TB, u *Agents) *Relay {
	r := u.Relay()
	t.Cleanup(r.Close)
	return r
}

// listOf returns the answer to a list request, with blobs and comments in turn.
func listOf(keys ...string) []byte {
	b := []byte{wire.MsgIdentitiesAnswer, 0, 0, 0, byte(len(keys) / 2)}
	for _, s := range keys {
		b = wire.AppendString(b, s)
	}
	return wire.Frame(b)
}

// bindOf returns a session-bind request.
func bindOf(host ssh.Signer, sessionID string, forwarding bool) []byte {
	return sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(host, sessionID, forwarding))
}

// names returns the comments of keys.
func names(keys []Listed) string {
	var b []byte
	for _, k := range keys {
		b = append(append(b, k.Comment...), ' ')
	}
	return string(bytes.TrimSpace(b))
}
