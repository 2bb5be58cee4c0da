package softtpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StateDir returns the directory of the user's software TPM:
// $XDG_STATE_HOME/tpm-agent/swtpm, by default ~/.local/state/tpm-agent/swtpm.
// A relative XDG_STATE_HOME counts as none, as its specification says.
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

// prepareDir makes dir and its parents as far as they are missing, and makes
// sure that dir and its parent are ours alone.
func prepareDir(dir string) error {
	if err := makeDirs(dir); err != nil {
		return err
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := ownDir(d); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs is os.MkdirAll with the mode 0700 whatever the umask.
func makeDirs(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDirs(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // what it is, is looked at by ownDir, or by the next Mkdir
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// ownDir refuses a directory that others can write, as whatever is in it may be
// theirs, and closes one that they can only read.
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
		return fmt.Errorf("others can write to %s (mode %04o): look into it, then chmod 700 it", dir, st.Mode&0o7777)
	case st.Mode&0o055 != 0:
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// turnTime bounds the wait for the software TPM.
const turnTime = 30 * time.Second

// ErrBusy says that another process, or another part of this one, has the
// software TPM and did not let go of it in time.
var ErrBusy = errors.New("is in use")

// acquire waits for the lock of dir's software TPM. Whoever has a descriptor of
// the file that it returns has the lock, until the last one is closed. The
// kernel serves those who wait in the order in which they came.
func acquire(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	// Nothing ends a flock that waits. It is left behind when ctx ends before
	// it, and lets go of the lock as soon as it has it.
	locked := make(chan error)
	go func() {
		err := flock(f)
		select {
		case locked <- err:
		case <-ctx.Done():
			f.Close()
		}
	}()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		sign(f)
		return f, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the software TPM in %s %w: %s has it: %w", dir, ErrBusy, holder(dir), ctx.Err())
	}
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			return os.NewSyscallError("flock", err)
		}
	}
}

// sign writes who has the lock into its file. That is for error messages only;
// the lock is the kernel's.
func sign(f *os.File) {
	f.Truncate(0)
	f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
}

// holder names the process that has the lock, as far as its file says.
func holder(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "lock"))
	pid := strings.TrimSpace(string(b))
	if err != nil || pid == "" {
		return "another process"
	}
	return "the process " + pid
}
