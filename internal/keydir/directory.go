package keydir

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// comparePause is the time between two comparisons of all files, where
	// events do not tell.
	comparePause = time.Second
	// rewatchPause is the time after which inotify is tried again.
	rewatchPause = time.Minute
	// quietTime is how long a file without an end must have rested before it
	// is taken as finished though nobody closed it.
	quietTime = 2 * time.Second
	// maxLinks is the number of symbolic links that are followed at each call.
	// More of them are followed once in comparePause.
	maxLinks = 256
)

// A directory mirrors the files of one directory on the disk.
type directory struct {
	path string // absolute
	sys  system

	files    map[string]*file
	order    []string             // the names in files, sorted; nil after they changed
	links    map[string]bool      // names in files: events do not tell of their targets
	held     map[string]time.Time // names whose writer is not done, with the time of the last event
	watch    *watch               // nil: compare
	watchErr error                // why watch is nil
	watched  time.Time            // when that was tried
	remote   bool
	stamp    stamp // of the directory when it was last listed; zero: must be opened
	compared time.Time
	followed time.Time
	err      error // why there is nothing to list
}

// A file is a name in a directory and what was last read there.
type file struct {
	stamp   stamp
	fresh   bool // the stamp proves nothing yet
	content *content

	// made by link from the files beside it
	parts    parts
	entry    *Entry
	findings []finding
}

func newDirectory(path string, sys system) *directory {
	return &directory{
		path: path, sys: sys,
		files: make(map[string]*file), links: make(map[string]bool), held: make(map[string]time.Time),
	}
}

func (d *directory) join(name string) string { return filepath.Join(d.path, name) }

// sync brings d up to date and says whether anything changed that matters.
// When nothing did it costs one stat, one read of the event queue and a stat
// for each symbolic link.
func (d *directory) sync() bool {
	// Events do not tell that the path leads elsewhere now: a directory above
	// was renamed, a link retargeted, something mounted. The dot at the end
	// makes it fail for what is no directory or must not be searched.
	now, err := statStamp(d.path + "/.")
	switch {
	case err != nil:
		return d.lose(err)
	case !now.sameFile(d.stamp), d.err != nil:
		return d.open(compare)
	}
	changed := false
	if d.watch != nil {
		ch := d.watch.drain()
		if ch.ended {
			return d.open(compare)
		}
		changed = d.apply(ch)
	}
	changed = d.follow() || changed
	changed = d.review() || changed
	if d.watch == nil || d.remote {
		changed = d.poll(now) || changed
	}
	return changed
}

// reload looks into every file again.
func (d *directory) reload() bool { return d.open(closed) }

// open starts over with what is at the path now; e is for each file.
func (d *directory) open(e evidence) bool {
	d.unwatch()
	f, err := os.OpenFile(d.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		d.stamp = stamp{} // try again, and keep the keys until then
		return false
	}
	if err != nil {
		return d.lose(plain(err))
	}
	defer f.Close()
	d.remote = d.sys.remote(f)
	watchChanged := d.rewatch()
	// The watch went on before the listing, so what comes in between is queued.
	// That both are about one directory shows when it is the same afterwards.
	listed := d.list(f, e)
	if d.err == nil {
		if now, err := statStamp(d.path + "/."); err != nil || !now.sameFile(d.stamp) {
			d.stamp = stamp{}
		}
	}
	return listed || watchChanged
}

// rewatch puts a new watch on the path and says whether it came out otherwise
// than last time.
func (d *directory) rewatch() bool {
	before := errorText(d.watchErr)
	d.watch, d.watchErr = d.sys.newWatch(d.path)
	if errors.Is(d.watchErr, fs.ErrNotExist) {
		d.watchErr = nil // just gone: the next call says so
	}
	d.watched = d.sys.now()
	return errorText(d.watchErr) != before
}

func (d *directory) unwatch() error {
	if d.watch == nil {
		return nil
	}
	err := d.watch.close()
	d.watch = nil
	return err
}

// lose forgets everything because of err, which is an Errno.
func (d *directory) lose(err error) bool {
	d.unwatch()
	changed := len(d.files) > 0 || d.watchErr != nil || errorText(err) != errorText(d.err)
	clear(d.files)
	clear(d.links)
	clear(d.held)
	d.order = nil
	d.stamp, d.err, d.watchErr = stamp{}, err, nil
	return changed
}

// list compares the names in the open directory f with those that are known,
// and looks at each.
func (d *directory) list(f *os.File, e evidence) bool {
	d.compared = d.sys.now()
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return d.lose(err)
	}
	entries, err := f.ReadDir(-1)
	if err != nil {
		return d.lose(plain(err))
	}
	changed := d.err != nil
	d.stamp, d.err = newStamp(&st), nil
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

// apply follows the events.
func (d *directory) apply(ch changes) bool {
	changed := false
	if ch.all {
		return d.relist()
	}
	for name, done := range ch.names {
		e := writing
		if done {
			e = closed
		}
		changed = d.refresh(name, e) || changed
	}
	return changed
}

// relist compares everything.
func (d *directory) relist() bool {
	f, err := os.OpenFile(d.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		d.stamp = stamp{}
		return d.open(compare)
	}
	defer f.Close()
	return d.list(f, compare)
}

// poll compares everything when the directory has changed, or after a pause.
func (d *directory) poll(now stamp) bool {
	t := d.sys.now()
	if now == d.stamp && t.Sub(d.compared) < comparePause {
		return false
	}
	if d.watch == nil && t.Sub(d.watched) >= rewatchPause {
		return d.open(compare)
	}
	return d.relist()
}

// follow looks where the symbolic links lead now.
func (d *directory) follow() bool {
	if len(d.links) == 0 {
		return false
	}
	t := d.sys.now()
	if len(d.links) > maxLinks && t.Sub(d.followed) < comparePause {
		return false
	}
	d.followed = t
	changed := false
	for name := range d.links {
		changed = d.refresh(name, compare) || changed
	}
	return changed
}

// review takes the files that have rested for quietTime as finished.
func (d *directory) review() bool {
	changed := false
	for name, since := range d.held {
		if d.sys.now().Sub(since) >= quietTime {
			changed = d.refresh(name, closed) || changed
		}
	}
	return changed
}

// evidence is what is known about a file before it is looked at.
type evidence int

const (
	compare evidence = iota // nothing: its stamp tells
	writing                 // it changes, and may be half written
	closed                  // it has changed, and is finished
)

// refresh looks at one file, reads it if need be, and says whether anything
// changed that matters.
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
	if now.link && e == writing {
		e = closed // a link comes whole
	}
	// The stamp is older than the content: a change in between shows later.
	f := &file{stamp: now, fresh: now.fresh(d.sys.now()), content: read(d.join(name))}
	if errors.Is(f.content.err, fs.ErrNotExist) && !d.exists(name) {
		return d.forget(name)
	}
	if d.hold(name, f.content, old, e) {
		return false
	}
	delete(d.held, name)
	if now.link {
		d.links[name] = true
	} else {
		delete(d.links, name)
	}
	if old != nil && old.content.same(f.content) {
		old.stamp, old.fresh = f.stamp, f.fresh
		return false
	}
	if old == nil {
		d.order = nil
	}
	d.files[name] = f
	return true
}

// hold says whether what was read must wait: the writer is not done, or there
// was no means to read. What was known of the file stays until then.
func (d *directory) hold(name string, c *content, old *file, e evidence) bool {
	var before *content
	if old != nil {
		before = old.content
	}
	switch {
	case c.kind == kindUnknown:
		d.held[name] = time.Time{} // again at the next call
	case e == writing && c.unfinished(before):
		d.held[name] = d.sys.now()
	default:
		return false
	}
	return true
}

// exists tells a dangling link from a file that was removed this moment.
func (d *directory) exists(name string) bool {
	_, err := stampOf(d.join(name))
	return err == nil
}

func (d *directory) forget(name string) bool {
	_, known := d.files[name]
	if known {
		d.order = nil
	}
	delete(d.files, name)
	delete(d.links, name)
	delete(d.held, name)
	return known
}

// names returns the names of the files in order.
func (d *directory) names() []string {
	if d.order == nil {
		d.order = slices.Sorted(maps.Keys(d.files))
	}
	return d.order
}

// findings are about the directory itself.
func (d *directory) findings() (list []finding) {
	if d.err != nil {
		list = append(list, finding{Problem: Problem{d.path, d.err}})
	}
	if d.watchErr != nil {
		err := fmt.Errorf("no events from inotify, changes are looked for once a second: %w", d.watchErr)
		list = append(list, finding{Problem: Problem{d.path, err}})
	}
	return list
}

// plain takes the words of package os off an error of a system call.
func plain(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
