// Package socket makes the agent's listening socket. Only its owner can
// connect, only one process holds it, and each connection knows its peer.
//
// Three checks protect the agent: no other user can write to the directory, the
// socket has mode 0600 from the moment it exists, and the kernel names the
// peer's uid before a byte is read.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPath is the longest socket path in bytes: sun_path has 108, and most
// programs expect a terminating zero.
const maxPath = 107

// A Listener is a listening unix socket whose connections come from this
// user or root only.
type Listener struct {
	// Refused, if it is not nil, is called with the uid of each peer that is
	// turned away. Set it before the first Accept, whose goroutine calls it.
	Refused func(uid int)

	unix *net.UnixListener
	path string      // absolute; "" if the socket is not ours to remove
	file fs.FileInfo // what was made at path
	dir  string      // a directory to remove with the socket, or ""

	close sync.Once
}

// An InUseError reports that a living process listens on the socket.
type InUseError struct {
	Path string
	PID  int // 0 if it is unknown
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("socket %s is in use by another process", e.Path)
	}
	return fmt.Sprintf("socket %s is in use by process %d", e.Path, e.PID)
}

// Listen makes a socket at path, with mode 0600, and listens on it. It makes
// missing directories with mode 0700. It replaces the socket of a dead process.
// If a living one listens there it returns an *InUseError, and it refuses to
// replace anything that is not a socket.
func Listen(path string) (*Listener, error) {
	l, err := listenAt(path)
	if _, inUse := errors.AsType[*InUseError](err); err != nil && !inUse {
		err = fmt.Errorf("listen on %q: %w", path, err)
	}
	return l, err
}

func listenAt(path string) (*Listener, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	// Close must find the socket after a chdir. The kernel gets the path as the
	// user wrote it, which may be the only one that is short enough.
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(abs)
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := makeWay(path); err != nil {
		return nil, err
	}
	ul, err := bind(path)
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, 0o600) // a strict umask takes bits from the owner, too
	fi, statErr := os.Lstat(path)
	if err := errors.Join(err, statErr); err != nil {
		return nil, errors.Join(err, os.Remove(abs), ul.Close())
	}
	return &Listener{unix: ul, path: abs, file: fi}, nil
}

// checkPath refuses paths that the kernel cannot bind, and abstract names:
// those have no mode and no directory, so anyone could connect or be first.
func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("the path is empty")
	case path[0] == '@' || path[0] == 0:
		return errors.New("not a path in the file system")
	case len(path) > maxPath:
		return fmt.Errorf("the path is %d bytes long, a socket's path can have %d at most", len(path), maxPath)
	}
	return nil
}

// makeWay removes a stale socket at path and refuses everything else.
func makeWay(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return ignoreMissing(err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("the file there is not a socket (%v), so it stays", fi.Mode())
	}
	if err := checkStale(path); err != nil {
		return err
	}
	return ignoreMissing(os.Remove(path))
}

// checkStale returns an error, which may be an *InUseError, unless the socket
// at path is that of a dead process.
func checkStale(path string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case err == nil:
		inUse := &InUseError{Path: path}
		if f, err := c.File(); err == nil {
			if cred, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				inUse.PID = int(cred.Pid) // the process that called listen
			}
			f.Close()
		}
		c.Close()
		return inUse
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EPROTOTYPE):
		return &InUseError{Path: path} // its queue is full, or it is not a stream
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("cannot tell whether the socket there is in use: %w", err)
}

// bind binds and listens. Linux gives the new file the mode of the socket's
// own inode less the umask, so fchmod before bind leaves no moment in which
// others can connect. Setting the umask would affect the whole process.
func bind(path string) (*net.UnixListener, error) {
	narrow := func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}
	lc := net.ListenConfig{Control: narrow}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false) // Close checks first that the file is still ours
	return ul, nil
}

// Addr returns the address of the socket.
func (l *Listener) Addr() net.Addr { return l.unix.Addr() }

// Close stops listening. It removes the socket if Listen made it and no other
// file has replaced it. Connections stay open. Only the first call does anything.
func (l *Listener) Close() (err error) {
	l.close.Do(func() {
		// The file is removed while the listener is open: until it is closed the
		// kernel cannot give its inode number to a new file.
		if fi, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(fi, l.file) {
			err = ignoreMissing(os.Remove(l.path))
		}
		err = errors.Join(err, l.unix.Close())
		if l.dir != "" {
			_ = os.Remove(l.dir) // it stays if there is a file in it
		}
	})
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
