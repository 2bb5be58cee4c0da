package socket

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Conn is a connection that knows its peer, and whether that has passed a
// file descriptor.
type Conn struct {
	*net.UnixConn
	pid, uid int
	local    atomic.Bool
}

func newConn(c *net.UnixConn, cred *unix.Ucred) *Conn {
	return &Conn{UnixConn: c, pid: int(cred.Pid), uid: int(cred.Uid)}
}

// Peer returns the process and the user that made the connection, as they
// were when it was made: the descriptor may have been handed on since. The
// pid is 0 when the process lives in a namespace that cannot be seen.
func (c *Conn) Peer() (pid, uid int) { return c.pid, c.uid }

// Local reports whether a file descriptor came along with what was read so
// far. Only a process on this machine that has the socket itself can pass one;
// a connection that is forwarded carries bytes and nothing else. The converse
// does not hold: hardly any client passes one.
func (c *Conn) Local() bool { return c.local.Load() }

// controlSize is the room for ancillary data in bytes. One descriptor needs
// 24; what a service manager may have asked the kernel to add on a socket of
// its own (credentials, a descriptor of the peer's process) comes before it.
// Of descriptors that find no room the kernel lets go by itself.
const controlSize = 128

// Read reads as net.UnixConn does. Descriptors that are passed are closed at
// once: nothing is done with them.
func (c *Conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return c.UnixConn.Read(b) // recvmsg would take a byte
	}
	var control [controlSize]byte
	n, size, _, _, err := c.ReadMsgUnix(b, control[:])
	if size > 0 && closePassed(control[:size]) {
		c.local.Store(true)
	}
	if err != nil {
		n = max(n, 0) // recvmsg's own is -1
		if errors.Is(err, io.EOF) {
			err = io.EOF // bare, as io.Reader wants it
		}
	}
	return n, err
}

// closePassed closes the descriptors in control messages, and reports whether
// the peer has passed one. When there was no room for all (MSG_CTRUNC) the last
// message lists those that this process has got, and the kernel has let go of
// the others.
func closePassed(control []byte) (passed bool) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return passed
		}
		control = rest
		switch {
		case header.Level != unix.SOL_SOCKET:
		case header.Type == unix.SCM_RIGHTS:
			passed = closeEach(data) || passed
		case header.Type == unix.SCM_PIDFD: // from the kernel, see controlSize
			closeEach(data)
		}
	}
	return passed
}

// closeEach closes the descriptors in data. The kernel writes an error number
// where it had none to give.
func closeEach(data []byte) (closed bool) {
	for ; len(data) >= 4; data = data[4:] {
		if fd := int32(binary.NativeEndian.Uint32(data)); fd >= 0 {
			unix.Close(int(fd))
			closed = true
		}
	}
	return closed
}
