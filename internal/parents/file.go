package parents

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// maxFile bounds what is read, in octets: maxKeys take half of it.
const maxFile = 1 << 20

// Read returns the memory of a directory. The Memory is there even if there is
// an error, which says why it is empty; that there is no file yet is none.
func Read(dir string) (*Memory, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return new(Memory), err
	}
	defer root.Close()
	return read(root)
}

func read(root *os.Root) (*Memory, error) {
	text, err := readText(root)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return parse(text), err
}

// errNotOurs is for what lies in the place of the memory and is not to be
// trusted, nor to be replaced.
var errNotOurs = errors.New("not a regular file of yours")

// readText reads the file if it is a regular one of ours or root's, and no
// symbolic link. It waits for nobody.
func readText(root *os.Root) ([]byte, error) {
	info, err := root.Lstat(FileName)
	if err != nil {
		return nil, err
	}
	if !trusted(info) {
		return nil, notOurs(root)
	}
	f, err := root.OpenFile(FileName, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil || !os.SameFile(info, now) {
		return nil, errors.Join(err, notOurs(root))
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		return nil, nil // garbage
	}
	return text, err
}

func notOurs(root *os.Root) error {
	return fmt.Errorf("%s in %s: %w", FileName, root.Name(), errNotOurs)
}

func trusted(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().IsRegular() && (stat.Uid == 0 || int(stat.Uid) == os.Geteuid())
}

// Update changes the memory of a directory with change, which reports whether
// there is anything to write, and may be called twice. Others who write at the
// same time lose nothing. A directory that cannot be written to is an error,
// and no reason not to go on.
func Update(dir string, change func(*Memory) bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	m, err := read(root)
	if err != nil || !change(m) {
		return err
	}
	unlock, err := lock(root, patience)
	if err != nil {
		return err
	}
	defer unlock()
	if m, err = read(root); err != nil || !change(m) {
		return err
	}
	return keyfile.ReplaceIn(root, FileName, m.marshal(), 0o600)
}

// patience is the longest wait for others who write.
const patience = 5 * time.Second

// lock waits for its turn to write. The lock is on the directory: that on the
// file would go with it when it is replaced. Where the file system has none, the
// last one to write wins.
func lock(root *os.Root, patience time.Duration) (unlock func(), err error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return func() { dir.Close() }, nil
		}
		if time.Since(start) >= patience {
			break
		}
	}
	dir.Close()
	return nil, fmt.Errorf("waiting for others who write in %s: %w", root.Name(), err)
}
