package keydir

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A stamp tells whether a file is likely to be as it was.
type stamp struct {
	dev, ino     uint64
	mode         uint32
	size         int64
	mtime, ctime int64 // nanoseconds
	link         bool  // the name is a symbolic link; the rest is of its target
	err          error // an Errno: why the target cannot be known
}

// stampOf stats path, and the target of a symbolic link. The error is that of
// the name itself.
func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Lstat(path, &st) }); err != nil {
		return stamp{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return newStamp(&st), nil
	}
	s, err := statStamp(path)
	s.link, s.err = true, err
	return s, nil
}

func statStamp(path string) (stamp, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
		return stamp{}, err
	}
	return newStamp(&st), nil
}

func newStamp(st *unix.Stat_t) stamp {
	return stamp{
		dev: st.Dev, ino: st.Ino, mode: st.Mode, size: st.Size,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

// sameFile says whether two stamps are of one file, changed or not.
func (s stamp) sameFile(t stamp) bool { return s.dev == t.dev && s.ino == t.ino }

// fresh says whether the file was changed so shortly before now that a second
// change may have got the same time. The clock of a file has steps of some
// milliseconds at least, of two seconds on old ones.
func (s stamp) fresh(now time.Time) bool {
	return s.err == nil && now.UnixNano()-s.ctime < int64(2*time.Second)
}

// retry repeats what a signal interrupted: some file systems allow that.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// system is what tests replace.
type system struct {
	now      func() time.Time
	newWatch func(path string) (*watch, error)
	// remote says whether others may change the directory without this
	// kernel's knowledge.
	remote func(dir *os.File) bool
}

func host() system { return system{time.Now, newWatch, remote} }

// remote goes by the magic numbers of statfs(2). FUSE is among them because
// sshfs and the like are.
func remote(dir *os.File) bool {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(dir.Fd()), &st) }); err != nil {
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
