// Package socket gives the agent its listening socket: one that only its
// owner can reach, that one process holds at a time, and whose connections
// know who is at the other end.
//
// Three walls stand before the agent: the directory (nobody else may write
// it), the mode of the socket (0600 from the moment it exists) and the uid of
// the peer, asked from the kernel before a byte is read.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPath is the longest socket path in bytes: sun_path has 108 and the last
// one is for the terminating zero that most programs expect.
const maxPath = 107

// A Listener is a listening unix socket whose connections come from this
// user or root only.
type Listener struct {
	// Refused, when not nil, is called with the uid of each peer that was
	// turned away. Set it before the first Accept; it is called in Accept's
	// goroutine.
	Refused func(uid int)

	unix  *net.UnixListener
	path  string // "" when inherited: not ours to remove
	inode inode
	lock  *lock
	dir   string // made for the socket alone; "": none was

	close    sync.Once
	closeErr error
}

// Listen makes a socket at path, mode 0600, and listens on it. Missing
// directories above it are made with 0700. A socket left behind by a dead
// process is replaced; a live one gives an *InUseError, and anything that is
// not a socket is left alone and is an error.
func Listen(path string) (*Listener, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	// Absolute, so that Close finds it after a chdir. The kernel gets the path
	// as the user wrote it, which may be the only one that is short enough.
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := prepareDir(filepath.Dir(abs)); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lk, err := takeLock(path)
	if err != nil {
		return nil, err
	}
	l, err := listenLocked(path, abs)
	if err != nil {
		return nil, errors.Join(err, lk.release())
	}
	l.lock = lk
	return l, nil
}

// checkPath refuses what the kernel cannot bind, and abstract names: those
// have no mode and no directory, so anybody could connect, or be there first.
func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("listen: the socket path is empty")
	case strings.HasPrefix(path, "@") || strings.ContainsRune(path, 0):
		return fmt.Errorf("listen on %q: not a path in the file system", path)
	case strings.HasSuffix(path, "/"):
		return fmt.Errorf("listen on %s: that is a directory", path)
	case len(path) > maxPath:
		return fmt.Errorf("listen on %s: the path is %d bytes long, a socket's path can have %d at most", path, len(path), maxPath)
	}
	return nil
}

// listenLocked does what may only be done by the holder of the lock: judge
// what is at path, remove it when it is dead, and take its place.
func listenLocked(path, abs string) (*Listener, error) {
	if err := makeWay(path); err != nil {
		return nil, err
	}
	ul, err := bind(path)
	if err != nil {
		return nil, err
	}
	ino, err := finish(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), os.Remove(abs), ul.Close())
	}
	return &Listener{unix: ul, path: abs, inode: ino}, nil
}

// bind binds and listens. Linux gives the new file the mode of the socket's
// own inode less the umask, so an fchmod of the descriptor before bind leaves
// no moment in which the file is open to others; neither the umask, which
// belongs to the whole process, nor a temporary name is needed.
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
	ul.SetUnlinkOnClose(false) // Close looks first whether it is still ours
	return ul, nil
}

// finish gives the owner the bits that a strict umask took away and returns
// the identity of the new socket.
func finish(path string) (inode, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return inode{}, err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return inode{}, errors.New("something else took its place")
	}
	if fi.Mode().Perm() != 0o600 {
		if err := os.Chmod(path, 0o600); err != nil {
			return inode{}, err
		}
	}
	return inodeOf(fi), nil
}

// Accept waits for a connection of this user or root; its type is *Conn.
// Others are closed without a byte read or written. Errors are the ones of
// the system call: whoever loops over Accept has to pause on EMFILE.
func (l *Listener) Accept() (net.Conn, error) {
	own := os.Geteuid()
	for {
		c, err := l.unix.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := credentials(c)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ask the kernel for the peer of a connection: %w", err), c.Close())
		}
		if uid := int(cred.Uid); uid != own && uid != 0 {
			c.Close()
			if l.Refused != nil {
				l.Refused(uid)
			}
			continue
		}
		return newConn(c, cred), nil
	}
}

// Addr is the address of the socket.
func (l *Listener) Addr() net.Addr { return l.unix.Addr() }

// Close stops listening and removes the socket, when it is one that Listen
// made and still the same file. Connections stay open.
func (l *Listener) Close() error {
	l.close.Do(func() {
		var errs []error
		// Removed while the listener is open, for until then the kernel cannot
		// give its inode number to another file.
		if l.path != "" {
			errs = append(errs, removeIf(l.path, l.inode))
		}
		errs = append(errs, l.unix.Close())
		if l.lock != nil {
			errs = append(errs, l.lock.release())
		}
		if l.dir != "" {
			errs = append(errs, removeEmpty(l.dir))
		}
		l.closeErr = errors.Join(errs...)
	})
	return l.closeErr
}

func credentials(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, credErr)
}

// An inode tells whether a path still names the file it named before.
type inode struct{ dev, ino uint64 }

func inodeOf(fi fs.FileInfo) inode {
	st := fi.Sys().(*syscall.Stat_t)
	return inode{uint64(st.Dev), st.Ino}
}

// removeIf removes path as long as it names the given file. That it is gone
// or replaced is no error.
func removeIf(path string, want inode) error {
	fi, err := os.Lstat(path)
	if err != nil || inodeOf(fi) != want {
		return ignoreMissing(err)
	}
	return ignoreMissing(os.Remove(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
