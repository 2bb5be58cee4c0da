// Package peer identifies the peer at the other end of a connection.
package peer

import (
	"fmt"
	"log/slog"
	"strings"
	"syscall"
)

// Peer is the process at the other end of a connection.
type Peer struct {
	PID, UID int // -1: not known
}

// Program is the name of the peer's program, or "" when that is not known or
// the process has gone. It is read anew at every call. The process chose it:
// good to tell a user who is asking, not to decide by.
func (p Peer) Program() string {
	if p.PID <= 0 {
		return ""
	}
	// Three system calls, where os.ReadFile takes ten: a client waits.
	fd, err := syscall.Open(fmt.Sprintf("/proc/%d/comm", p.PID), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer syscall.Close(fd)
	var name [64]byte // of which the kernel fills 16 at most
	n, err := syscall.Read(fd, name[:])
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(name[:n]), "\n")
}

// LogValue makes a group of pid and program.
func (p Peer) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("pid", p.PID), slog.String("program", p.Program()))
}
