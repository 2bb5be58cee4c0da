package keyfile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ReadFile reads the key file at path, through symbolic links. It never blocks on a file
// that is not a regular one, and reads at most 64 KiB. A file that is no key file gives
// [ErrNoKey]. All errors are *fs.PathError; they wrap the errors of [Parse].
func ReadFile(path string) (*TPMKey, error) {
	data, err := readRegular(path, maxFile+1)
	if err != nil {
		return nil, pathError("read key file", path, err)
	}
	if len(data) > maxFile && !bytes.Contains(data, []byte(pemBegin)) {
		return nil, pathError("read key file", path, fmt.Errorf("%w in a file this long", ErrNoKey))
	}
	k, err := Parse(data)
	return k, pathError("read key file", path, err)
}

// ReadRegular returns the first limit octets of the regular file at path, or all of it
// if there are fewer. It follows symbolic links. It never blocks: for a file that is not
// a regular one the error wraps [ErrNotRegular]. All errors are *fs.PathError.
func ReadRegular(path string, limit int64) ([]byte, error) {
	data, err := readRegular(path, limit)
	return data, pathError("read", path, err)
}

func readRegular(path string, limit int64) ([]byte, error) {
	// Opening a device can have an effect, so look first. Look again at the open
	// file, because it may have been exchanged in between.
	info, err := os.Stat(path)
	if err != nil {
		return nil, explainLink(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(info.Mode())
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, explainLink(path, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(info.Mode())
	}
	// The size is a hint: the file may be growing.
	var data bytes.Buffer
	data.Grow(int(min(info.Size(), limit)) + bytes.MinRead)
	_, err = data.ReadFrom(io.LimitReader(f, limit))
	return data.Bytes(), err
}

// explainLink adds the target of a symbolic link to err. If the target does not exist,
// the file in the error is not the one that the user named.
func explainLink(path string, err error) error {
	target, linkErr := os.Readlink(path)
	if linkErr != nil {
		return err
	}
	return fmt.Errorf("symbolic link to %q: %w", target, cause(err))
}

func notRegular(mode fs.FileMode) error {
	kind := "device"
	switch {
	case mode.IsDir():
		kind = "directory"
	case mode&fs.ModeNamedPipe != 0:
		kind = "FIFO"
	case mode&fs.ModeSocket != 0:
		kind = "socket"
	}
	return fmt.Errorf("%w but a %s", ErrNotRegular, kind)
}

// pathError says once what was done to which path. It returns nil for nil.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: cause(err)}
}

// cause removes what package os added to an error: it names steps and temporary files
// that the user did not ask for.
func cause(err error) error {
	switch e := err.(type) {
	case *fs.PathError:
		return e.Err
	case *os.LinkError:
		return e.Err
	case *os.SyscallError:
		return e.Err
	}
	return err
}

// tempPrefix begins the name of every temporary file.
const tempPrefix = ".tpm-agent-new-"

// IsTemporary reports whether name, without directory, is that of a temporary file,
// which [Create] or [Replace] is writing or a killed process has left behind.
func IsTemporary(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// Create writes data to the new file path with the mode perm, whatever the umask. It
// never replaces anything, symbolic links included (fs.ErrExist). The file appears
// complete and on disk or, after an error, not at all. A killed process leaves at most
// a temporary file; see [IsTemporary]. The exception are file systems without hard
// links, where it can leave a part of the file. All errors are *fs.PathError.
func Create(path string, data []byte, perm fs.FileMode) error {
	return pathError("create", path, create(path, data, perm, (*os.Root).Link))
}

// create is Create with the function that makes a hard link, which some file systems do
// not have.
func create(path string, data []byte, perm fs.FileMode, link func(dir *os.Root, old, new string) error) error {
	return inDirectory(path, func(dir *os.Root, name string) error {
		// The link below decides. This check avoids a temporary file.
		if _, err := dir.Lstat(name); err == nil {
			return syscall.EEXIST
		}
		temp := tempPrefix + rand.Text()
		if err := writeNew(dir, temp, data, perm, nil); err != nil {
			return err
		}
		// A rename would replace a file; a link does not.
		err := link(dir, temp, name)
		switch errno, _ := errors.AsType[syscall.Errno](err); errno {
		case syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK, syscall.EXDEV: // no hard links
			err = writeNew(dir, name, data, perm, nil)
		}
		removeErr := dir.Remove(temp)
		if err != nil {
			return err
		}
		if err := errors.Join(removeErr, syncDir(dir)); err != nil {
			dir.Remove(name)
			return err
		}
		return nil
	})
}

// Replace replaces the content of the file path by data, or creates the file. A reader,
// also after a crash, sees either the old content or the new one. The mode becomes perm;
// the owner stays the same, even if root writes. If path is a symbolic link, its target
// is replaced. All errors are *fs.PathError.
func Replace(path string, data []byte, perm fs.FileMode) error {
	target, old, err := replaceTarget(path)
	if err == nil {
		err = inDirectory(target, func(dir *os.Root, name string) error {
			temp := tempPrefix + rand.Text()
			if err := writeNew(dir, temp, data, perm, old); err != nil {
				return err
			}
			if err := dir.Rename(temp, name); err != nil {
				dir.Remove(temp)
				return err
			}
			return syncDir(dir)
		})
	}
	return pathError("replace", path, err)
}

// replaceTarget follows symbolic links to the file that will be replaced. It must be a
// regular file, or not exist yet.
func replaceTarget(path string) (target string, old fs.FileInfo, err error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return path, nil, nil
	}
	target, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", nil, explainLink(path, err)
	}
	old, err = os.Lstat(target)
	if err != nil {
		return "", nil, err
	}
	if !old.Mode().IsRegular() {
		return "", nil, notRegular(old.Mode())
	}
	return target, old, nil
}

// inDirectory calls fn with the directory of path, open, and the name of path in it.
func inDirectory(path string, fn func(dir *os.Root, name string) error) error {
	parent, name := filepath.Split(path)
	if name == "" {
		return syscall.EISDIR
	}
	if parent == "" {
		parent = "."
	}
	dir, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer dir.Close()
	return fn(dir, name)
}

// writeNew writes data to a file that must not exist, and syncs it. Its owner is that of
// old, unless old is nil. After an error the file is gone.
func writeNew(dir *os.Root, name string, data []byte, perm fs.FileMode, old fs.FileInfo) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm&0o600)
	if err != nil {
		return err
	}
	err = fill(f, data, perm, old)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		dir.Remove(name)
	}
	return err
}

// fill writes data to f and syncs it, and gives f the mode perm. A file system without
// modes may refuse that, which is harmless unless it lets other users do more than perm
// does. If root writes, f gets the owner and the group of old: otherwise a user could
// not use a key that root has changed.
func fill(f *os.File, data []byte, perm fs.FileMode, old fs.FileInfo) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	modeErr := f.Chmod(perm)
	info, err := f.Stat()
	if modeErr != nil && (err != nil || info.Mode().Perm()&^perm&0o077 != 0) {
		return modeErr
	}
	if err != nil {
		return err
	}
	if old != nil && os.Geteuid() == 0 {
		now, known := info.Sys().(*syscall.Stat_t)
		want, also := old.Sys().(*syscall.Stat_t)
		if known && also && (now.Uid != want.Uid || now.Gid != want.Gid) {
			if err := f.Chown(int(want.Uid), int(want.Gid)); err != nil {
				return err
			}
		}
	}
	return f.Sync()
}

// syncDir writes the names in dir to disk. Some file systems cannot, and fail with EINVAL.
func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
