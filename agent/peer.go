package agent

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
)

// Peer is the process at the other end of a connection.
type Peer struct {
	PID, UID int // -1: not known
}

// peerOf asks the connection, if it can be asked.
func peerOf(nc net.Conn) Peer {
	if c, ok := nc.(interface{ Peer() (pid, uid int) }); ok {
		pid, uid := c.Peer()
		return Peer{pid, uid}
	}
	return Peer{-1, -1}
}

// Program is the name of the peer's program, or "" when that is not known or
// the process has gone. It is read anew at every call. The process chose it:
// good to tell a user who is asking, not to decide by.
func (p Peer) Program() string {
	if p.PID <= 0 {
		return ""
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(name), "\n")
}

// LogValue makes a group of pid and program.
func (p Peer) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("pid", p.PID), slog.String("program", p.Program()))
}
