package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ReadFile reads the key file at path, through symbolic links. It never blocks
// on what is not a regular file, nor reads more than a key file may have. A
// file that is no key file at all gives ErrNoKey at the cost of reading it, at
// most 64 KiB. All errors are *fs.PathError.
func ReadFile(path string) (*TPMKey, error) {
	k, err := readKey(path)
	if err != nil {
		return nil, pathError("read key file", path, err)
	}
	return k, nil
}

func readKey(path string) (*TPMKey, error) {
	data, err := readRegular(path, maxFile+1)
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		if !hasBlock(data) {
			return nil, fmt.Errorf("%w in a file this long", ErrNoKey)
		}
		return nil, fmt.Errorf("%w: longer than %d octets", ErrFormat, maxFile)
	}
	return Parse(data)
}

// ReadRegular returns the first limit octets of the regular file at path,
// through symbolic links, or all of it if there are fewer. It never blocks on
// what is not a regular file: the error wraps ErrNotRegular then. All errors are
// *fs.PathError.
func ReadRegular(path string, limit int64) ([]byte, error) {
	data, err := readRegular(path, limit)
	if err != nil {
		return nil, pathError("read", path, err)
	}
	return data, nil
}

func readRegular(path string, limit int64) ([]byte, error) {
	// To open a device can have an effect of its own, so look first; and look
	// again at what was opened, in case it has been exchanged in between.
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
	return readAtMost(f, min(info.Size(), limit-1), limit)
}

// readAtMost reads up to limit octets. The size is a hint: the file may be
// growing.
func readAtMost(f *os.File, size, limit int64) ([]byte, error) {
	data := make([]byte, 0, size+1)
	r := io.LimitReader(f, limit)
	for {
		n, err := r.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if err == io.EOF {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
	}
}

// explainLink adds where a symbolic link points that leads nowhere, because
// the file that does not exist is then not the one that was named.
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

// pathError says what was done to which path, once.
func pathError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: path, Err: cause(err)}
}

// cause takes the words of package os off an error, for they tell of steps and
// temporary files that the user did not ask for.
func cause(err error) error {
	var p *fs.PathError
	var l *os.LinkError
	var s *os.SyscallError
	switch {
	case errors.As(err, &p) && error(p) == err:
		return p.Err
	case errors.As(err, &l) && error(l) == err:
		return l.Err
	case errors.As(err, &s) && error(s) == err:
		return s.Err
	}
	return err
}
