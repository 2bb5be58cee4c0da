package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// oldKey is a private key file whose key has gone into the TPM.
type oldKey struct {
	path      string
	data      []byte // as it was read
	encrypted bool   // with a passphrase
	wrapped   bool   // for this TPM, elsewhere
}

// retired is where an old key file was put.
type retired struct {
	path   string
	copied bool // from another file system; else it is the file itself
}

// retiredDir is where old private keys go: ssh does not look there.
func (s system) retiredDir() (string, error) {
	state := s.getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := s.home()
		if err != nil {
			return "", fmt.Errorf("finding a place for the old key: %w", err)
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "tpm-agent", "retired"), nil
}

// retiredName is what the old key is called in there, at its n-th try, from 1.
func (o *oldKey) retiredName(now time.Time, n int) string {
	name := filepath.Base(o.path) + "." + now.Format(time.DateOnly)
	if n > 1 {
		name += "." + strconv.Itoa(n)
	}
	return name
}

// keep puts the old key into dir, whole and lasting, under a name that is free.
// It also stays where it was. On the same file system it is given a second name,
// so that no other copy comes to be; else it is copied, and the copy read back.
func (o *oldKey) keep(dir string, now time.Time) (r retired, err error) {
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
		return r, err
	}
	for n := 1; ; n++ {
		r.path = filepath.Join(dir, o.retiredName(now, n))
		r.copied, err = o.put(r.path)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return r, err
	}
	// The directories may be as new as what is in them.
	state := filepath.Dir(dir)
	if err := errors.Join(same(r.path, o.data), lasting(r.path, dir, state, filepath.Dir(state))); err != nil {
		return r, errors.Join(err, os.Remove(r.path))
	}
	return r, nil
}

// put makes path the old key, by a second name or else by a copy.
func (o *oldKey) put(path string) (copied bool, err error) {
	err = os.Link(o.path, path)
	for _, cannot := range []error{syscall.EXDEV, syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK} {
		if errors.Is(err, cannot) {
			return true, keyfile.Create(path, o.data, 0o600)
		}
	}
	return false, err
}

// retire takes the old key away from where it was.
func (o *oldKey) retire(dir string, now time.Time) (retired, error) {
	r, err := o.keep(dir, now)
	if err != nil {
		return r, err
	}
	err = same(o.path, o.data)
	if err == nil {
		err = os.Remove(o.path)
	}
	if err != nil {
		return r, errors.Join(err, os.Remove(r.path))
	}
	return r, lasting(filepath.Dir(o.path))
}

// replaceBy puts a key file where the old key was, which is kept in dir before.
// Killed at any moment, it leaves the one or the other there, whole.
func (o *oldKey) replaceBy(file []byte, dir string, now time.Time) (retired, error) {
	r, err := o.keep(dir, now)
	if err != nil {
		return r, err
	}
	err = same(o.path, o.data)
	if err == nil {
		err = keyfile.Replace(o.path, file, 0o600)
	}
	if err != nil && same(o.path, file) != nil {
		return r, errors.Join(err, os.Remove(r.path))
	}
	return r, err
}

// same checks that a file has the content that it had.
func same(path string, data []byte) error {
	now, err := os.ReadFile(path)
	defer clear(now)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, data) {
		return fmt.Errorf("%s was changed meanwhile", plain(path))
	}
	return nil
}

// lasting brings files and directories to the disk. Some file systems cannot do
// that with directories, which they say with EINVAL; and not every directory
// above may be read.
func lasting(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil && !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
	return nil
}
