package keyfile

import (
	"crypto/rand"
	"io/fs"
	"os"
)

// ReplaceIn is Replace for the file name in an open directory, and follows no
// links: neither does the directory's name matter any more, nor is the target
// of a symbolic link touched; the link itself is replaced. It is for files that
// are written without having been asked for, in directories in which others may
// have laid something out. All errors are *fs.PathError.
func ReplaceIn(dir *os.Root, name string, data []byte, perm fs.FileMode) error {
	if err := replaceIn(dir, name, data, perm); err != nil {
		return pathError("replace", name, err)
	}
	return nil
}

func replaceIn(dir *os.Root, name string, data []byte, perm fs.FileMode) error {
	temp := tempPrefix + rand.Text()
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm&0o600)
	if err != nil {
		return err
	}
	if err := fill(f, data, perm, nil); err != nil {
		dir.Remove(temp)
		return err
	}
	if err := dir.Rename(temp, name); err != nil {
		dir.Remove(temp)
		return err
	}
	return syncRoot(dir)
}

// syncRoot is syncDir for an open directory.
func syncRoot(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return syncOpen(d)
}
