package agent

import (
	"log/slog"
	"net"

	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// Peer is [peer.Peer].
type Peer = peer.Peer

// peerOf asks the connection, if it can be asked.
func peerOf(nc net.Conn) Peer {
	if c, ok := nc.(interface{ Peer() (pid, uid int) }); ok {
		pid, uid := c.Peer()
		return Peer{PID: pid, UID: uid}
	}
	return Peer{PID: -1, UID: -1}
}

// asker is a peer with its name of some moment, for it may be gone later.
type asker struct {
	Peer
	program string
}

func (c *conn) asker() asker { return asker{c.peer, c.peer.Program} }

// LogValue is as that of Peer.
func (by asker) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("pid", by.PID), slog.String("program", by.program))
}
