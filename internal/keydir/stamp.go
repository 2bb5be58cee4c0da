package keydir

import (
	"io/fs"
	"os"
	"syscall"
	"time"
)

// A stamp is equal to an earlier one if the file is probably unchanged.
type stamp struct {
	dev, ino     uint64
	mode         uint32
	size         int64
	mtime, ctime int64 // nanoseconds
	link         bool  // the name is a symbolic link; the rest is about its target
	err          error // an Errno: why the target is not accessible
}

// stampOf stats path, and the target of a symbolic link.
func stampOf(path string) (stamp, error) {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Type() != fs.ModeSymlink {
		return newStamp(fi), err
	}
	s, err := statStamp(path)
	s.link, s.err = true, plain(err)
	return s, nil
}

func statStamp(path string) (stamp, error) {
	fi, err := os.Stat(path)
	return newStamp(fi), err
}

func newStamp(fi fs.FileInfo) stamp {
	if fi == nil {
		return stamp{}
	}
	st := fi.Sys().(*syscall.Stat_t)
	return stamp{
		dev: st.Dev, ino: st.Ino, mode: st.Mode, size: st.Size,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

// sameFile reports whether two stamps are of one file, changed or not.
func (s stamp) sameFile(t stamp) bool { return s.dev == t.dev && s.ino == t.ino }

// fresh reports whether the file changed so shortly before now that a second
// change may have got the same time: some file systems count in steps of two
// seconds.
func (s stamp) fresh(now time.Time) bool {
	return s.err == nil && now.UnixNano()-s.ctime < int64(2*time.Second)
}

// A system is what tests replace.
type system struct {
	now      func() time.Time
	newWatch func(dir *os.File) (*watch, error)
}

func host() system { return system{time.Now, newWatch} }
