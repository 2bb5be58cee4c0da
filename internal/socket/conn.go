package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Accept waits for a connection of this user or root; its type is *Conn. It
// closes other connections without reading or writing. Errors are those of the
// system call, so callers must pause on EMFILE.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.unix.AcceptUnix()
		if err != nil {
			return nil, err
		}
		var cred *unix.Ucred
		var credErr error
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			})
		}
		if err := errors.Join(err, credErr); err != nil {
			return nil, errors.Join(fmt.Errorf("find the peer of a connection: %w", err), c.Close())
		}
		if uid := int(cred.Uid); uid == os.Geteuid() || uid == 0 {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
			return &Conn{UnixConn: c, pid: int(cred.Pid), uid: uid, program: strings.TrimSuffix(string(name), "\n")}, nil
		}
		c.Close()
		if l.Refused != nil {
			l.Refused(int(cred.Uid))
		}
	}
}

// A Conn is a connection that knows its peer, and whether the peer has passed
// a file descriptor.
type Conn struct {
	*net.UnixConn
	pid, uid int
	program  string
	local    atomic.Bool
}

// Peer returns the process and the user that made the connection. The
// descriptor may have been passed on since. The pid is 0 if the process lives
// in a namespace that we cannot see. program is the name of its program when it
// connected, "" if that is unknown; a process chooses its name.
func (c *Conn) Peer() (pid, uid int, program string) { return c.pid, c.uid, c.program }

// Local reports whether a file descriptor came with what was read so far. Only
// a process on this machine that has the socket itself can pass one, because a
// forwarded connection carries nothing but bytes. Few clients pass one, so
// false proves nothing.
func (c *Conn) Local() bool { return c.local.Load() }

// controlSize is the room for ancillary data in bytes. One descriptor needs
// 24. Before it come the messages that a service manager may have asked the
// kernel to add (credentials, a descriptor of the peer's process). The kernel
// drops the descriptors that find no room.
const controlSize = 128

// Read reads as net.UnixConn does. It closes all descriptors that are passed.
func (c *Conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return c.UnixConn.Read(b) // recvmsg would take a byte
	}
	var control [controlSize]byte
	n, size, _, _, err := c.ReadMsgUnix(b, control[:])
	if size > 0 && closePassed(control[:size]) {
		c.local.Store(true)
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // not wrapped, as callers of an io.Reader expect
	}
	return max(n, 0), err // recvmsg returns -1 with an error
}

// closePassed closes the descriptors in control messages, and reports whether
// the peer has passed one.
func closePassed(control []byte) (passed bool) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return passed
		}
		control = rest
		if header.Level != unix.SOL_SOCKET || header.Type != unix.SCM_RIGHTS && header.Type != unix.SCM_PIDFD {
			continue
		}
		for ; len(data) >= 4; data = data[4:] {
			// Instead of a descriptor that it cannot give, the kernel writes a
			// negative error number.
			if fd := int32(binary.NativeEndian.Uint32(data)); fd >= 0 {
				unix.Close(int(fd))
				passed = passed || header.Type == unix.SCM_RIGHTS
			}
		}
	}
	return passed
}
