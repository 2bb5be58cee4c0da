package keyfile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// tempPrefix begins the name of every temporary file.
const tempPrefix = ".tpm-agent-new-"

// IsTemporary reports whether name, without directory, is that of a temporary file,
// which [Create] or [Replace] is writing or a killed process has left behind.
func IsTemporary(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// MarshalInto is [TPMKey.Marshal] for a key that replaces the one in the content of a
// file. It keeps the text around the block.
func (k *TPMKey) MarshalInto(file []byte) ([]byte, error) {
	block, err := k.Marshal()
	if err != nil {
		return nil, err
	}
	_, start, end, err := decodePEM(file)
	if err != nil {
		return nil, fmt.Errorf("write key file: %w", err)
	}
	data := append(append(bytes.Clone(file[:start]), block...), file[end:]...)
	if len(data) > maxFile {
		return nil, fmt.Errorf("write key file: %w: %d octets, at most %d are allowed", ErrFormat, len(data), maxFile)
	}
	return data, nil
}

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
		temp, err := writeTemp(dir, data, perm, nil)
		if err != nil {
			return err
		}
		// A rename would replace a file; a link does not.
		err = link(dir, temp, name)
		switch cause(err) {
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
		err = inDirectory(target, func(dir *os.Root, name string) error { return replaceIn(dir, name, data, perm, old) })
	}
	return pathError("replace", path, err)
}

// ReplaceIn is [Replace] for the file name in an open directory. It follows no symbolic
// links: a link called name is itself replaced. Use it for files that the user did not
// ask for, in directories where other users may have put something. All errors are
// *fs.PathError.
func ReplaceIn(dir *os.Root, name string, data []byte, perm fs.FileMode) error {
	return pathError("replace", name, replaceIn(dir, name, data, perm, nil))
}

func replaceIn(dir *os.Root, name string, data []byte, perm fs.FileMode, old fs.FileInfo) error {
	temp, err := writeTemp(dir, data, perm, old)
	if err != nil {
		return err
	}
	if err := dir.Rename(temp, name); err != nil {
		dir.Remove(temp)
		return err
	}
	return syncDir(dir)
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

// writeTemp writes data to a new temporary file and returns its name.
func writeTemp(dir *os.Root, data []byte, perm fs.FileMode, old fs.FileInfo) (string, error) {
	name := tempPrefix + rand.Text()
	return name, writeNew(dir, name, data, perm, old)
}

// writeNew writes data to a file that must not exist, and syncs it. Its owner is that of
// old, unless old is nil. After an error the file is gone.
func writeNew(dir *os.Root, name string, data []byte, perm fs.FileMode, old fs.FileInfo) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm&0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = setMode(f, perm)
	}
	if err == nil && old != nil && os.Geteuid() == 0 {
		err = setOwner(f, old)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		dir.Remove(name)
	}
	return err
}

// setOwner gives f to the owner and the group of old. Otherwise a user could not use a
// key that root has changed.
func setOwner(f *os.File, old fs.FileInfo) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	now, known := info.Sys().(*syscall.Stat_t)
	want, also := old.Sys().(*syscall.Stat_t)
	if !known || !also || now.Uid == want.Uid && now.Gid == want.Gid {
		return nil
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}

// setMode gives f the mode perm. A file system without modes may refuse. This is
// harmless unless it lets other users do more than perm does.
func setMode(f *os.File, perm fs.FileMode) error {
	err := f.Chmod(perm)
	if err == nil {
		return nil
	}
	info, statErr := f.Stat()
	if statErr != nil || info.Mode().Perm()&^perm&0o077 != 0 {
		return err
	}
	return nil
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
