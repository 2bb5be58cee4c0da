package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
		return nil, fmt.Errorf("making a directory for the socket: %w", err)
	}
	l, err := ListenOwn(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	l.dir = dir
	return l, nil
}

// CleanStale removes the sockets of killed processes that ListenOwn made in dir
// or ListenTemp below it, and returns their paths. Live sockets stay, as does
// everything that has a different name or owner or is not a socket.
func CleanStale(dir string) (removed []string, err error) {
	removed, err = cleanDir(dir)
	errs := []error{err}
	private, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	for _, dir := range private {
		if fi, err := os.Lstat(dir); err != nil || fi.Mode() != fs.ModeDir|0o700 || owner(fi) != os.Geteuid() {
			continue
		}
		gone, err := cleanDir(dir)
		if len(gone) > 0 { // an empty one may belong to a process that is about to listen
			_ = os.Remove(dir) // it stays if there is a file in it
		}
		removed, errs = append(removed, gone...), append(errs, err)
	}
	return removed, errors.Join(errs...)
}

func cleanDir(dir string) (removed []string, err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	defer lock.Close()
	entries, err := lock.ReadDir(-1)
	if err != nil {
		return nil, err
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
