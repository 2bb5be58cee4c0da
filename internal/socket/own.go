package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ownName is the name of a socket that belongs to one process, or of the lock
// beside it.
const ownName = `^agent\.[1-9][0-9]*\.sock(\.lock)?$`

// tempPrefix begins the names of the private directories of ListenTemp.
const tempPrefix = "tpm-agent."

// ownPatience is how long a socket of this process's own may seem to be in use.
const ownPatience = 2 * time.Second

// ListenOwn is Listen for a socket that only this process uses, agent.PID.sock
// in dir.
func ListenOwn(dir string) (*Listener, error) {
	path := filepath.Join(dir, fmt.Sprintf("agent.%d.sock", os.Getpid()))
	// CleanStale in another process may be looking at what a dead process of
	// the same number left behind, or at the lock that is just being made. It
	// has the lock for an instant only.
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		l, err := Listen(path)
		if inUse := (*InUseError)(nil); !errors.As(err, &inUse) || time.Since(start) > ownPatience {
			return l, err
		}
	}
}

// ListenTemp is ListenOwn in a new directory below temp, such as /tmp, that
// nobody else can enter. Close removes it.
func ListenTemp(temp string) (*Listener, error) {
	dir, err := os.MkdirTemp(temp, tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("making a directory for the socket: %w", err)
	}
	l, err := ListenOwn(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	l.dir = dir
	return l, nil
}

// CleanStale removes what ListenOwn made in dir and its process, killed,
// could not remove. It returns the paths of the sockets that are gone. What
// is in use stays, and so does everything that has another name, is no socket
// or belongs to somebody else. No dir is no error.
func CleanStale(dir string) (removed []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for old sockets: %w", err)
	}
	ours := regexp.MustCompile(ownName)
	seen := make(map[string]bool)
	var errs []error
	for _, entry := range entries {
		// A lock whose socket is gone is found by its own name.
		name := strings.TrimSuffix(entry.Name(), ".lock")
		if !ours.MatchString(entry.Name()) || seen[name] {
			continue
		}
		seen[name] = true
		gone, err := removeStale(filepath.Join(dir, name))
		if gone {
			removed = append(removed, filepath.Join(dir, name))
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// removeStale removes the socket and its lock if nobody has them.
func removeStale(path string) (gone bool, err error) {
	before, err := os.Lstat(path)
	if err == nil && (before.Mode().Type() != fs.ModeSocket || !owned(before)) {
		return false, nil
	}
	lk, err := takeLock(path)
	if inUse := (*InUseError)(nil); errors.As(err, &inUse) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("removing an old socket: %w", err)
	}
	defer func() { err = errors.Join(err, lk.release()) }()
	// Looked at anew, for until now it could change.
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Type() != fs.ModeSocket || !owned(fi) || probe(path).state != stale {
		return false, ignoreMissing(err)
	}
	if err := os.Remove(path); err != nil {
		return false, ignoreMissing(err)
	}
	return true, nil
}

// CleanStaleTemp does the same for the private directories that ListenTemp
// made below temp.
func CleanStaleTemp(temp string) (removed []string, err error) {
	fi, err := os.Stat(temp)
	if err == nil {
		err = checkDir(temp, fi)
	}
	if err != nil {
		return nil, fmt.Errorf("looking for old sockets: %w", err)
	}
	entries, err := os.ReadDir(temp)
	if err != nil {
		return nil, fmt.Errorf("looking for old sockets: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), tempPrefix) {
			continue
		}
		gone, err := removeStaleDir(filepath.Join(temp, entry.Name()))
		removed = append(removed, gone...)
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// removeStaleDir removes a private directory whose socket is stale. An empty
// one may belong to a process that is about to listen, and one with something
// else in it is no longer only ours: both stay.
func removeStaleDir(dir string) (removed []string, err error) {
	fi, err := os.Lstat(dir)
	if err != nil || fi.Mode() != fs.ModeDir|0o700 || !owned(fi) {
		return nil, ignoreMissing(err)
	}
	removed, err = CleanStale(dir)
	if err != nil || len(removed) == 0 {
		return removed, err
	}
	return removed, removeEmpty(dir)
}

// removeEmpty removes a private directory. That somebody put something into it
// is no error.
func removeEmpty(dir string) error {
	if err := os.Remove(dir); !errors.Is(err, unix.ENOTEMPTY) {
		return ignoreMissing(err)
	}
	return nil
}

// owned says whether a file is this user's.
func owned(fi fs.FileInfo) bool { return int(fi.Sys().(*syscall.Stat_t).Uid) == os.Geteuid() }
