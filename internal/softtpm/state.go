package softtpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StateDir returns the directory of the user's software TPM:
// $XDG_STATE_HOME/tpm-agent/swtpm, by default ~/.local/state/tpm-agent/swtpm. It
// ignores a relative XDG_STATE_HOME, as the specification demands.
func StateDir() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("the software TPM's state: %w", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "tpm-agent", "swtpm"), nil
}

// prepareDir makes dir if it is missing, and makes sure that only we can use dir and
// its parent.
func prepareDir(dir string) error {
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
		if err := ownDir(d); err != nil {
			return err
		}
	}
	return nil
}

// ownDir refuses a directory that other users can write to, because they may have
// made what is in it. It closes one that they can only read, and corrects what the
// umask took away.
func ownDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to the user %d, not to %d", dir, st.Uid, os.Geteuid())
	case st.Mode&0o022 != 0:
		return fmt.Errorf("other users can write to %s (mode %04o): check what is in it, then run chmod 700 on it", dir, st.Mode&0o7777)
	case st.Mode&0o777 != 0o700:
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// ErrBusy says that the software TPM is in use, by another process or by this one,
// and was not released in time.
var ErrBusy = errors.New("is in use")

// turnTime bounds the wait for the software TPM.
const turnTime = 30 * time.Second

// acquire waits for the lock of dir's software TPM. The lock is held until the last
// descriptor of the file that acquire returns is closed. The process id in the file
// is for error messages only.
func acquire(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			f.Truncate(0)
			f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
			return f, nil
		case unix.EWOULDBLOCK, unix.EINTR:
		default:
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			defer f.Close()
			return nil, fmt.Errorf("the software TPM in %s %w: %s has it: %w", dir, ErrBusy, holder(f), ctx.Err())
		}
	}
}

// holder names the process that has the lock, according to its file.
func holder(f *os.File) string {
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return "the process " + pid
	}
	return "another process"
}
