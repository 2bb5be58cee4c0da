package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// An InUseError says that a living process has the socket.
type InUseError struct {
	Path string
	PID  int // 0 when it cannot be known
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("socket %s is in use by another process", e.Path)
	}
	return fmt.Sprintf("socket %s is in use by process %d", e.Path, e.PID)
}

// makeWay removes the socket that a dead process left at path. It leaves
// everything else and says what it is.
func makeWay(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	kind := fi.Mode().Type()
	if kind != fs.ModeSocket && kind != fs.ModeSymlink {
		return fmt.Errorf("listen on %s: there is something that is not a socket (%v), and it stays", path, fi.Mode())
	}
	switch p := probe(path); {
	case p.state == live:
		return &InUseError{Path: path, PID: p.pid}
	case kind == fs.ModeSymlink:
		return fmt.Errorf("listen on %s: there is a symbolic link, and it stays", path)
	case p.state == unknown:
		return fmt.Errorf("listen on %s: cannot tell whether the socket there is in use: %w", path, p.err)
	}
	if err := removeIf(path, inodeOf(fi)); err != nil {
		return fmt.Errorf("listen: stale socket: %w", err)
	}
	return nil
}

type state int

const (
	unknown state = iota
	live
	stale
)

type probed struct {
	state state
	pid   int
	err   error // why unknown
}

// probe connects to path without waiting and without sending anything.
func probe(path string) probed {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return probed{err: err}
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	switch {
	case err == nil:
		// For a connecting socket these are the credentials of the process
		// that called listen.
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return probed{state: live}
		}
		return probed{state: live, pid: int(cred.Pid)}
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EPROTOTYPE):
		// A full queue, or a datagram socket: somebody has it open.
		return probed{state: live}
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return probed{state: stale}
	}
	return probed{err: err}
}
