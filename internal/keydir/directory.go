package keydir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// quietTime is how long an unfinished file must rest before it counts as
// finished although its writer has not closed it.
const quietTime = 2 * time.Second

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

// A directory mirrors the files of one directory on the disk.
type directory struct {
	path string // absolute
	sys  system

	files map[string]*file
	// again has the names to look at in each call, because there may be no
	// event: symbolic links, with a zero time, and files whose writer is not
	// done, with the time of the last event.
	again    map[string]time.Time
	watch    *watch // nil: compare all files in each call
	watchErr error  // why there is none
	stamp    stamp  // of the directory when it was last listed; zero: list it again
	err      error  // why there is nothing to list
}

// A file is a name in a directory and what was last read there.
type file struct {
	stamp   stamp
	fresh   bool // an equal stamp proves nothing yet
	content *content

	// made by link
	entry    *Entry
	findings []finding
}

func newDirectory(path string, sys system) *directory {
	return &directory{path: path, sys: sys, files: make(map[string]*file), again: make(map[string]time.Time)}
}

func (d *directory) join(name string) string { return filepath.Join(d.path, name) }

// sync brings d up to date and reports whether anything relevant changed. If
// nothing did, it costs one stat, one read of the event queue and a stat for
// each symbolic link.
func (d *directory) sync() bool {
	// There are no events when the path leads elsewhere: a directory above was
	// renamed, a link changed, something was mounted. The dot makes stat fail
	// unless the path is a directory that may be searched.
	now, err := statStamp(d.path + "/.")
	if err != nil {
		return d.lose(plain(err))
	}
	var ch changes
	if d.watch != nil {
		ch = d.watch.drain()
	}
	if !now.sameFile(d.stamp) || d.err != nil || ch.all || d.watch == nil {
		return d.open(compare)
	}
	changed := false
	for name, done := range ch.names {
		e := writing
		if done {
			e = closed
		}
		changed = d.refresh(name, e) || changed
	}
	for name, since := range d.again {
		switch {
		case since.IsZero():
			changed = d.refresh(name, compare) || changed
		case d.sys.now().Sub(since) >= quietTime:
			changed = d.refresh(name, closed) || changed
		}
	}
	return changed
}

// reload reads every file again.
func (d *directory) reload() bool { return d.open(closed) }

// open watches and lists the directory at the path. Each file gets the evidence.
func (d *directory) open(e evidence) bool {
	d.unwatch()
	f, err := os.OpenFile(d.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		d.stamp = stamp{} // keep the keys, and try again in the next call
		return false
	}
	if err != nil {
		return d.lose(plain(err))
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return d.lose(plain(err))
	}
	before := errorText(d.watchErr)
	d.watch, d.watchErr = d.sys.newWatch(f)
	changed := d.err != nil || errorText(d.watchErr) != before
	// Changes from here on are queued as events.
	entries, err := f.ReadDir(-1)
	if err != nil {
		return d.lose(plain(err))
	}
	d.stamp, d.err = newStamp(fi), nil
	there := make(map[string]bool, len(entries))
	for _, entry := range entries {
		there[entry.Name()] = true
		changed = d.refresh(entry.Name(), e) || changed
	}
	for name := range d.files {
		if !there[name] {
			changed = d.forget(name) || changed
		}
	}
	return changed
}

// unwatch gives the inotify descriptor back.
func (d *directory) unwatch() error {
	if d.watch == nil {
		return nil
	}
	err := d.watch.close()
	d.watch = nil
	return err
}

// lose forgets everything because of err.
func (d *directory) lose(err error) bool {
	d.unwatch()
	changed := len(d.files) > 0 || d.watchErr != nil || errorText(err) != errorText(d.err)
	clear(d.files)
	clear(d.again)
	d.stamp, d.err, d.watchErr = stamp{}, err, nil
	return changed
}

// evidence tells what the agent knows about a file before it looks at it.
type evidence int

const (
	compare evidence = iota // nothing: compare its stamp
	writing                 // it changed, and may be half written
	closed                  // it changed, and is finished
)

// refresh looks at one file, reads it if necessary, and reports whether
// anything relevant changed.
func (d *directory) refresh(name string, e evidence) bool {
	if strings.HasPrefix(name, ".") {
		return false // temporary files, ours and those of editors
	}
	now, err := stampOf(d.join(name))
	if err != nil {
		return d.forget(name)
	}
	old := d.files[name]
	if e == compare && old != nil && !old.fresh && now == old.stamp {
		return false
	}
	// The stamp is older than the content, so a change in between shows later.
	f := &file{stamp: now, fresh: now.fresh(d.sys.now()), content: read(d.join(name))}
	if errors.Is(f.content.err, fs.ErrNotExist) && !now.link {
		return d.forget(name)
	}
	delete(d.again, name)
	switch {
	case f.content.kind == kindUnknown:
		d.again[name] = time.Time{}
		return false
	case e == writing && !now.link && f.content.unfinished(old): // what was known stays
		d.again[name] = d.sys.now()
		return false
	case now.link:
		d.again[name] = time.Time{}
	}
	if old != nil && old.content.same(f.content) {
		old.stamp, old.fresh = f.stamp, f.fresh
		return false
	}
	d.files[name] = f
	return true
}

func (d *directory) forget(name string) bool {
	_, known := d.files[name]
	delete(d.files, name)
	delete(d.again, name)
	return known
}

// findings are about the directory itself.
func (d *directory) findings() (list []finding) {
	if d.err != nil {
		list = append(list, finding{Problem: Problem{d.path, d.err}})
	}
	if d.watchErr != nil {
		err := fmt.Errorf("no events from inotify, so all files are compared for each request: %w", d.watchErr)
		list = append(list, finding{Problem: Problem{d.path, err}})
	}
	return list
}

// plain returns the system call's error without the words of package os.
func plain(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
