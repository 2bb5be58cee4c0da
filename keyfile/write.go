package keyfile

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// tempPrefix begins the name of every temporary file.
const tempPrefix = ".tpm-agent-new-"

// IsTemporary says whether name, without directory, is that of a file which
// Create or Replace is writing, or which a killed process has left behind.
func IsTemporary(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// Create makes the file path with data in it and the mode perm, whatever the
// umask. It never replaces anything, links included (fs.ErrExist). The file
// appears whole and lasting or, on an error, not at all. A process killed on
// the way leaves a temporary file at worst; see IsTemporary. The one exception
// are file systems without hard links, where a kill can leave a part.
// All errors are *fs.PathError.
func Create(path string, data []byte, perm fs.FileMode) error {
	if err := create(path, data, perm, os.Link); err != nil {
		return pathError("create", path, err)
	}
	return nil
}

// create is Create with the call that makes a hard link, which some file
// systems do not have.
func create(path string, data []byte, perm fs.FileMode, link func(old, new string) error) error {
	// The link below decides; this spares the disk a file for nothing.
	if _, err := os.Lstat(path); err == nil {
		return syscall.EEXIST
	}
	dir := filepath.Dir(path)
	temp, err := writeTemp(dir, data, perm, nil)
	if err != nil {
		return err
	}
	// A rename would replace; a link does not, and brings the file in whole.
	err = link(temp, path)
	if noLinks(err) {
		err = writeNew(path, data, perm, nil)
	}
	removeErr := os.Remove(temp)
	if err != nil {
		return err
	}
	if err := errors.Join(removeErr, syncDir(dir)); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}

// noLinks says whether err means a file system that has no hard links.
func noLinks(err error) bool {
	switch cause(err) {
	case syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK, syscall.EXDEV:
		return true
	}
	return false
}

// Replace puts data in place of the file path, or makes it: whoever opens the
// file sees the old content or the new one, whole, and so does the next boot.
// The mode becomes perm; the owner stays, also where root writes. Through a
// symbolic link the target is replaced.
// All errors are *fs.PathError.
func Replace(path string, data []byte, perm fs.FileMode) error {
	if err := replace(path, data, perm); err != nil {
		return pathError("replace", path, err)
	}
	return nil
}

func replace(path string, data []byte, perm fs.FileMode) error {
	target, old, err := replaceTarget(path)
	if err != nil {
		return err
	}
	dir := filepath.Dir(target)
	temp, err := writeTemp(dir, data, perm, old)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, target); err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(dir)
}

// replaceTarget follows symbolic links to the file that is to be replaced,
// which must be a regular one or not be there yet.
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

// writeTemp writes data to a new file in dir, synchronised, and returns its
// path. It is for the owner of old, unless that is nil.
func writeTemp(dir string, data []byte, perm fs.FileMode, old fs.FileInfo) (string, error) {
	path := filepath.Join(dir, tempPrefix+rand.Text())
	return path, writeNew(path, data, perm, old)
}

// writeNew writes a file that must not exist. On an error it is gone again.
func writeNew(path string, data []byte, perm fs.FileMode, old fs.FileInfo) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm&0o600)
	if err != nil {
		return err
	}
	if err := fill(f, data, perm, old); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}

// fill writes data to a new file, synchronised, and closes it.
func fill(f *os.File, data []byte, perm fs.FileMode, old fs.FileInfo) error {
	_, err := f.Write(data)
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
	return err
}

// setOwner gives f to the owner and the group of old: a key that root changes for
// somebody would be of no use to them otherwise.
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

// setMode gives f the mode perm. A file system without modes may refuse, which
// is no harm as long as it lets nobody do more than was asked for.
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

// syncDir makes the names in dir lasting. Some file systems cannot, which they
// say with EINVAL.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return syncOpen(d)
}

func syncOpen(d *os.File) error {
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
