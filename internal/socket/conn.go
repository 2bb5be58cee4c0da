package socket

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Conn is a connection that knows its peer, and whether the peer has passed
// a file descriptor.
type Conn struct {
	*net.UnixConn
	pid, uid int
	local    atomic.Bool
}

// Peer returns the process and the user that made the connection. The
// descriptor may have been passed on since. The pid is 0 if the process lives
// in a namespace that we cannot see.
func (c *Conn) Peer() (pid, uid int) { return c.pid, c.uid }

func peer(c *net.UnixConn) (pid, uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, 0, err
	}
	return int(cred.Pid), int(cred.Uid), nil
}

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
