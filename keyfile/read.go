package keyfile

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
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
