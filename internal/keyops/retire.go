package keyops

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/term"
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
func retiredDir(s *term.System) (string, error) {
	state := s.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := s.Home()
		if err != nil {
			return "", fmt.Errorf("finding a place for the old key: %w", err)
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "tpm-agent", "retired"), nil
}

// retiredName returns the name of the old key in there, at the n-th try, from 1.
func (o *oldKey) retiredName(now time.Time, n int) string {
	name := filepath.Base(o.path) + "." + now.Format(time.DateOnly)
	if n > 1 {
		name += "." + strconv.Itoa(n)
	}
	return name
}

// keep puts the old key into dir, whole and lasting, under a name that is free.
// It also stays where it was. On the same file system it gets a second name, so
// that there is no other copy; else it is copied, and the copy read back.
func (o *oldKey) keep(dir string, now time.Time) (r retired, err error) {
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
		return r, err
	}
	for n := 1; n == 1 || errors.Is(err, fs.ErrExist); n++ {
		r.path, r.copied = filepath.Join(dir, o.retiredName(now, n)), false
		if err = os.Link(o.path, r.path); err != nil && !errors.Is(err, fs.ErrExist) {
			r.copied, err = true, keyfile.Create(r.path, o.data, 0o600)
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

// retire moves the old key into dir. If there is a file to replace it, that is put
// in its place: killed at any moment, it leaves the one or the other there, whole.
func (o *oldKey) retire(dir string, now time.Time, file []byte) (retired, error) {
	r, err := o.keep(dir, now)
	if err != nil {
		return r, err
	}
	err = same(o.path, o.data)
	switch {
	case err != nil:
	case file != nil:
		err = keyfile.Replace(o.path, file, 0o600)
	default:
		err = os.Remove(o.path)
	}
	switch {
	case err == nil:
		return r, lasting(filepath.Dir(o.path))
	case file != nil && same(o.path, file) == nil:
		return r, err // it is there, but may not last
	}
	return r, errors.Join(err, os.Remove(r.path))
}

// same checks that a file has the content that it had.
func same(path string, data []byte) error {
	now, err := os.ReadFile(path)
	defer clear(now)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, data) {
		return fmt.Errorf("%s was changed meanwhile", term.Plain(path))
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

// farewell returns where the old key is, and what it is worth.
func (o *oldKey) farewell(gone retired, attic string) string {
	var b strings.Builder
	where := o.path
	if gone.path != "" {
		where = gone.path
		fmt.Fprintf(&b, "The old private key was moved to %s\n", term.Plain(where))
	} else {
		fmt.Fprintf(&b, "The old private key is still in %s\n", term.Plain(where))
	}
	switch {
	case o.wrapped:
		b.WriteString("Only this TPM can open it; its wrapper may still have the key in clear.\n")
	case o.encrypted:
		b.WriteString("Anyone who reads it and finds its passphrase has the key: the TPM protects only the copy.\n")
	default:
		b.WriteString("Anyone who reads it has the key: the TPM protects only the copy.\n")
	}
	switch {
	case gone.path == "":
		b.WriteString("To move it to where ssh does not look, once you have logged in with the new one:\n")
		fmt.Fprintf(&b, "  mkdir -p -m 700 %s\n", term.Quote(attic))
		fmt.Fprintf(&b, "  mv -n %s %s\n", term.Quote(o.path), term.Quote(filepath.Join(attic, o.retiredName(time.Now(), 1))))
	case gone.copied:
		b.WriteString("It was copied there from another file system, whose disk may still have its octets.\n")
		fallthrough
	default:
		fmt.Fprintf(&b, "To destroy it: shred -u %s\n", term.Quote(where))
	}
	return b.String()
}
