package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// makeDir makes dir, and what is missing above it, with mode 0700.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o700) // a strict umask takes bits away
}

// lockPatience is the longest wait for other processes that use a directory.
const lockPatience = 5 * time.Second

// lockDir checks dir and locks it until the result is closed. Only the holder
// of the lock may decide that a socket in dir is stale, remove it, and bind.
// The lock is never held for longer than that, so a short wait is enough.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil {
		err = checkDir(dir, fi)
	}
	if err == nil {
		err = flock(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkDir refuses a directory in which another user could replace the socket
// and receive our clients' requests.
func checkDir(dir string, fi fs.FileInfo) error {
	if uid := owner(fi); uid != os.Geteuid() && uid != 0 {
		return fmt.Errorf("directory %s belongs to uid %d, which could replace the socket", dir, uid)
	}
	// In a sticky directory, such as /tmp, others can add files, but they cannot
	// rename or remove ours.
	if perm := fi.Mode().Perm(); perm&0o022 != 0 && fi.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %s has mode %04o: others could replace the socket (chmod go-w %s)", dir, perm, dir)
	}
	return nil
}

func flock(f *os.File) error {
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			// Some file systems, such as NFS, cannot lock a directory. There,
			// two agents that start at the same moment may disturb each other.
			return nil
		case time.Since(start) > lockPatience:
			return fmt.Errorf("another process has locked directory %s", f.Name())
		}
	}
}

func owner(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }
