package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// prepareDir makes dir, and what is missing above it, with 0700, and refuses
// a directory in which another user could put a socket of his own in place of
// ours: clients would hand him their requests.
func prepareDir(dir string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return checkDir(dir, fi)
}

func makeDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil // made beside us by another start, or a dangling link: Stat will say
	}
	if err != nil {
		return err
	}
	// The umask can only have made it narrower. Under 0077 this does nothing;
	// under 0777 nothing could be made below it otherwise.
	return os.Chmod(dir, 0o700)
}

func checkDir(dir string, fi fs.FileInfo) error {
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	owner := int(fi.Sys().(*syscall.Stat_t).Uid)
	if owner != os.Geteuid() && owner != 0 {
		return fmt.Errorf("directory %s belongs to uid %d: it could replace the socket", dir, owner)
	}
	// In a sticky directory, such as /tmp, others can add files but not rename
	// or remove ours.
	if perm := fi.Mode().Perm(); perm&0o022 != 0 && fi.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %s has mode %04o: others could replace the socket (chmod go-w %s)", dir, perm, dir)
	}
	return nil
}
