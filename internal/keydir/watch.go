package keydir

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The events of a directory that matter. Opening and reading are not among
// them, so that looking at a file gives no event.
const watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF |
	unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// After these a file may still be in the hands of its writer. (IN_ATTRIB comes
// between, when the mode is set before the content.)
const writingMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB

// A watch is an inotify descriptor with one directory on it. Each directory
// has its own, so that one directory by two names gives no clash.
type watch struct {
	fd  int
	buf []byte
}

func newWatch(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, explainInotify(err, "fs.inotify.max_user_instances")
	}
	if _, err := unix.InotifyAddWatch(fd, path, watchMask); err != nil {
		unix.Close(fd)
		return nil, explainInotify(err, "fs.inotify.max_user_watches")
	}
	return &watch{fd, make([]byte, 16<<10)}, nil
}

func explainInotify(err error, limit string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EMFILE) {
		return fmt.Errorf("%w (the limit is sysctl %s)", err, limit)
	}
	return err
}

func (w *watch) close() error { return unix.Close(w.fd) }

// changes are what the kernel has queued since the last time.
type changes struct {
	// names of files, each with whether its writer is done with it
	names map[string]bool
	all   bool // events were lost, or the directory itself changed
	ended bool // there will be no more events
}

// maxReads bounds one drain against somebody who writes faster than we read.
// When it is reached everything is looked at, so nothing is missed.
const maxReads = 256

// drain empties the queue. It does not wait. Nothing is allocated when there
// is nothing.
func (w *watch) drain() (ch changes) {
	for range maxReads {
		n, err := unix.Read(w.fd, w.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return ch
		case err != nil || n == 0:
			ch.ended = true
			return ch
		}
		ch.parse(w.buf[:n])
	}
	ch.all = true
	return ch
}

// parse adds the events in buf: struct inotify_event, one after another, as
// in inotify(7). The kernel writes whole ones only.
func (ch *changes) parse(buf []byte) {
	for len(buf) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(buf[4:])
		size := binary.NativeEndian.Uint32(buf[12:])
		buf = buf[unix.SizeofInotifyEvent:]
		size = min(size, uint32(len(buf)))
		name, _, _ := bytes.Cut(buf[:size], []byte{0})
		buf = buf[size:]
		ch.add(mask, string(name))
	}
}

func (ch *changes) add(mask uint32, name string) {
	switch {
	case mask&(unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
		ch.ended = true
	case mask&unix.IN_Q_OVERFLOW != 0 || name == "":
		ch.all = true
	default:
		if ch.names == nil {
			ch.names = make(map[string]bool)
		}
		// The last event counts: a file may be closed and then opened again. A
		// change of its mode says nothing about the writer.
		done := mask&writingMask == 0 || mask&unix.IN_ATTRIB != 0 && ch.names[name]
		ch.names[name] = done
	}
}
