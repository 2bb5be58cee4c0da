package keydir

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchMask selects the events of a directory that matter. Opening and reading
// a file cause none of them.
const watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF |
	unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// writingMask selects the events after which a writer may still be at work.
// (IN_ATTRIB comes in between if the mode is set before the content.)
const writingMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB

// A watch is an inotify descriptor with one directory on it. Each directory has
// its own, because two paths of one directory would share a watch.
type watch struct {
	fd  int
	buf []byte
}

// A system has the system calls that tests replace.
type system struct {
	now      func() time.Time
	newWatch func(dir *os.File) (*watch, error)
}

func host() system { return system{time.Now, newWatch} }

// remote reports whether other machines may change the directory without an
// event. FUSE counts because of sshfs.
func remote(dir *os.File) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return true
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.V9FS_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC,
		unix.CEPH_SUPER_MAGIC, unix.CODA_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC,
		0x01161970 /* GFS2 */, 0x786f4256 /* vboxsf */, 0x0bd00bd0 /* Lustre */ :
		return true
	}
	return false
}

// newWatch watches an open directory, whose path may lead elsewhere by now. It
// returns nil if there would not be an event for each change.
func newWatch(dir *os.File) (*watch, error) {
	if remote(dir) {
		return nil, nil
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, explainInotify(err, "fs.inotify.max_user_instances")
	}
	if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), watchMask); err != nil {
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

// changes are the events that the kernel has queued since the last call.
type changes struct {
	names map[string]bool // of files; true: the writer is done
	all   bool            // look at everything: events were lost, or will be
}

// maxReads bounds one drain in case events come faster than they are read.
const maxReads = 256

// drain empties the queue without waiting. It allocates nothing if there is
// nothing.
func (w *watch) drain() (ch changes) {
	for range maxReads {
		n, err := unix.Read(w.fd, w.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return ch
		case err != nil || n == 0:
			ch.all = true
			return ch
		}
		ch.parse(w.buf[:n])
	}
	ch.all = true
	return ch
}

// parse adds the events in buf, which are structs inotify_event (inotify(7)).
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
	if name == "" { // an overflow, or an event of the directory itself
		ch.all = true
		return
	}
	if ch.names == nil {
		ch.names = make(map[string]bool)
	}
	// The last event counts, because a file may be closed and opened again. A
	// change of its mode says nothing about the writer.
	ch.names[name] = mask&writingMask == 0 || mask&unix.IN_ATTRIB != 0 && ch.names[name]
}
