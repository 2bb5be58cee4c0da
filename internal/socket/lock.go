package socket

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A lock is held by the one process that may judge, remove and make a socket.
// It is an flock, so it ends with the process however that ends; the pid in
// the file is only there to be named.
type lock struct {
	file *os.File
	path string // absolute
}

// lockTries bounds how often the lock file may be replaced under our hands.
// Each time means that another process has come and gone.
const lockTries = 100

// takeLock takes the lock beside the socket, or returns an *InUseError that
// names its holder.
func takeLock(socket string) (*lock, error) {
	path, err := filepath.Abs(socket + ".lock")
	if err != nil {
		return nil, err
	}
	for range lockTries {
		f, err := openLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock socket %s: %w", socket, err)
		}
		err = flock(f)
		if errors.Is(err, unix.EWOULDBLOCK) {
			defer f.Close()
			return nil, &InUseError{Path: socket, PID: holder(socket, f)}
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		// The last holder removes the file with the lock held. Whoever had it
		// open by then has locked a file that nobody else will ever see.
		if !names(path, f) {
			f.Close()
			continue
		}
		writePID(f)
		return &lock{f, path}, nil
	}
	return nil, fmt.Errorf("lock socket %s: %s is replaced again and again", socket, path)
}

// openLock opens the lock file or makes it, 0600 whatever the umask. In a
// directory such as /tmp another user may have put something there first:
// a link is not followed, a FIFO does not block, and his file is refused.
func openLock(path string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if uid := int(fi.Sys().(*syscall.Stat_t).Uid); !fi.Mode().IsRegular() || uid != os.Geteuid() {
		f.Close()
		return nil, fmt.Errorf("%s (%v, uid %d) is not a lock file of ours", path, fi.Mode(), uid)
	}
	if fi.Mode().Perm() != 0o600 {
		if err := f.Chmod(0o600); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// names says whether path is still the file that f has open.
func names(path string, f *os.File) bool {
	there, err := os.Lstat(path)
	if err != nil {
		return false
	}
	open, err := f.Stat()
	return err == nil && os.SameFile(there, open)
}

// writePID leaves the file empty when the disk is full: the lock is good
// without it, only the message of a second start names nobody then.
func writePID(f *os.File) {
	if f.Truncate(0) == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
}

// holder names the process that holds the lock: the kernel knows it as soon
// as it listens; before that there is only what it wrote into the file.
func holder(socket string, f *os.File) int {
	if p := probe(socket); p.state == live && p.pid != 0 {
		return p.pid
	}
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// release removes the lock file and lets the lock go, in this order. The
// unlock is explicit because a child that is just being started may hold a
// copy of the descriptor until its exec.
func (l *lock) release() error {
	var removeErr error
	if names(l.path, l.file) {
		removeErr = os.Remove(l.path)
	}
	if errors.Is(removeErr, fs.ErrNotExist) {
		removeErr = nil
	}
	return errors.Join(removeErr, unix.Flock(int(l.file.Fd()), unix.LOCK_UN), l.file.Close())
}
