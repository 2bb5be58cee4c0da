package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of the private directories of ListenTemp.
const tempPrefix = "tpm-agent."

// ListenOwn is Listen for a socket that belongs to this process alone,
// agent.PID.sock in dir.
func ListenOwn(dir string) (*Listener, error) {
	return Listen(filepath.Join(dir, fmt.Sprintf("agent.%d.sock", os.Getpid())))
}

// ListenTemp is ListenOwn in a new private directory below temp, such as /tmp.
// Close removes the directory.
func ListenTemp(temp string) (*Listener, error) {
	dir, err := os.MkdirTemp(temp, tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a directory for the socket: %w", err)
	}
	l, err := ListenOwn(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	l.dir = dir
	return l, nil
}

// CleanStale removes the sockets that ListenOwn made in dir for processes that
// were killed since, and returns their paths. Live sockets stay, as does
// everything that has a different name or owner or is not a socket.
func CleanStale(dir string) (removed []string, err error) {
	lock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove old sockets: %w", err)
	}
	defer lock.Close()
	entries, err := lock.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("remove old sockets: %w", err)
	}
	own := regexp.MustCompile(`^agent\.[1-9][0-9]*\.sock$`)
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		fi, err := entry.Info()
		if err != nil || !own.MatchString(entry.Name()) || fi.Mode().Type() != fs.ModeSocket || owner(fi) != os.Geteuid() {
			continue
		}
		if checkStale(path) == nil && os.Remove(path) == nil {
			removed = append(removed, path)
		}
	}
	return removed, nil
}

// CleanStaleTemp does the same for the private directories that ListenTemp
// made below temp. An empty one may belong to a process that is about to
// listen, so only those that held a stale socket are removed.
func CleanStaleTemp(temp string) (removed []string, err error) {
	entries, err := os.ReadDir(temp)
	if err != nil {
		return nil, fmt.Errorf("remove old sockets: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		fi, err := entry.Info()
		if err != nil || !strings.HasPrefix(entry.Name(), tempPrefix) || fi.Mode() != fs.ModeDir|0o700 || owner(fi) != os.Geteuid() {
			continue
		}
		dir := filepath.Join(temp, entry.Name())
		gone, err := CleanStale(dir)
		if len(gone) > 0 {
			err = errors.Join(err, removeEmpty(dir))
		}
		removed = append(removed, gone...)
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// removeEmpty removes a directory unless there is a file in it.
func removeEmpty(dir string) error {
	if err := os.Remove(dir); !errors.Is(err, unix.ENOTEMPTY) {
		return ignoreMissing(err)
	}
	return nil
}
