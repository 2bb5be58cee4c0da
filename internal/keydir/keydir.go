// Package keydir keeps an index of the TPM key files in some directories, as
// they are at the moment of each call.
//
// It has no goroutine and no timer. The kernel queues an inotify event when a
// file changes, and Entries reads that queue before it answers. So each call
// sees what was changed before it, and a call costs a few system calls if
// nothing changed. Where inotify is not available, or does not notice changes
// (network file systems), each call compares the metadata of all files.
package keydir

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// ErrDuplicate is wrapped by the Problem of a file whose key an earlier file
// has, too. Nothing is broken; the later file is left out.
var ErrDuplicate = errors.New("the same key as in another file")

// An Entry is one key. It never changes: a file that does gets a new one.
type Entry struct {
	Path         string // of the key file
	Key          *keyfile.TPMKey
	Public       ssh.PublicKey
	Comment      string             // for display: one line, no control characters, never empty
	Certificates []*ssh.Certificate // for this key; may have expired
}

// A Problem says why a file or a directory cannot be used. Err does not repeat
// the path.
type Problem struct {
	Path string
	Err  error
}

// String puts the path before the error.
func (p Problem) String() string { return fmt.Sprintf("%s: %v", p.Path, p.Err) }

// An Index knows the keys in its directories. It is safe for concurrent use.
type Index struct {
	report func(Problem)

	mu       sync.Mutex // held while the disk is read, never while report runs
	dirs     []*directory
	entries  []*Entry
	problems []Problem
	reported map[string]bool
	closed   bool
}

// Open reads the key files in dirs. A directory that does not exist is a
// Problem until it does. Open, Entries, Problems and Rescan call report, which
// may be nil, once for each Problem, and again if it comes back or the file has
// a different one.
func Open(dirs []string, report func(Problem)) (*Index, error) {
	return open(dirs, report, host())
}

func open(dirs []string, report func(Problem), sys system) (*Index, error) {
	x := &Index{report: report}
	for _, path := range dirs {
		if path == "" {
			return nil, errors.New("open key directory: the path is empty")
		}
		abs, err := filepath.Abs(path) // so that a chdir does not change it
		if err != nil {
			return nil, fmt.Errorf("open key directory %s: %w", path, err)
		}
		if !slices.ContainsFunc(x.dirs, func(d *directory) bool { return d.path == abs }) {
			x.dirs = append(x.dirs, newDirectory(abs, sys))
		}
	}
	x.update((*directory).reload)
	return x, nil
}

// Entries returns the keys that are on the disk now, by directory in the order
// given to Open, then by file name. If two files have the same key, the first
// counts. Do not modify the slice. It and its entries stay the same until
// something changes.
func (x *Index) Entries() []*Entry {
	entries, _ := x.update((*directory).sync)
	return entries
}

// Problems returns what is wrong now, in the order of Entries. Do not modify
// the slice.
func (x *Index) Problems() []Problem {
	_, problems := x.update((*directory).sync)
	return problems
}

// Rescan reads every file again.
func (x *Index) Rescan() { x.update((*directory).reload) }

// Close gives the descriptors back. After that the index does not change.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	var errs []error
	for _, d := range x.dirs {
		errs = append(errs, d.unwatch())
	}
	return errors.Join(errs...)
}

// update applies f, which reports changes, to each directory and returns the
// result. It reports new problems after it has released the mutex, so report
// may call the index.
func (x *Index) update(f func(*directory) bool) ([]*Entry, []Problem) {
	x.mu.Lock()
	changed := false
	for _, d := range x.dirs {
		changed = !x.closed && f(d) || changed
	}
	var fresh []Problem
	if changed {
		fresh = x.assemble()
	}
	entries, problems := x.entries, x.problems
	x.mu.Unlock()
	for _, p := range fresh {
		if x.report != nil {
			x.report(p)
		}
	}
	return entries, problems
}
