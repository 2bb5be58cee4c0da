package keydir

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noEvents makes inotify fail for lack of descriptors.
func noEvents(s *system) {
	s.newWatch = func(*os.File) (*watch, error) {
		return nil, explainInotify(unix.EMFILE, "fs.inotify.max_user_instances")
	}
}

// network puts the directory on a network file system.
func network(s *system) { s.newWatch = func(*os.File) (*watch, error) { return nil, nil } }

func TestWithoutEvents(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*system){"no inotify": noEvents, "network": network} {
		t.Run(name, func(t *testing.T) {
			b := start(t, t.TempDir(), change)
			one, two := newKey(t), newKey(t)
			b.want()
			b.take()
			b.write("id", one.pem)
			b.want("id")
			b.write("id", two.pem)
			if string(b.only().Public.Marshal()) != string(two.public.Marshal()) {
				t.Error("the key written in place is not listed")
			}
			before := b.Entries()
			if after := b.Entries(); &after[0] != &before[0] {
				t.Error("the slice is another though nothing has changed")
			}
			must(t, os.Rename(b.path("id"), b.path("other")))
			b.want("other")
			must(t, os.RemoveAll(b.dir))
			b.want()
			b.wantReports("no such file")
			must(t, os.Mkdir(b.dir, 0o700))
			b.write("back", one.pem)
			b.want("back")
		})
	}
}

// TestSameTime checks that a file is read again if it was changed twice within
// one tick of the file system's clock.
func TestSameTime(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir(), noEvents)
	b.write("id", newKey(t).pem)
	b.want("id")
	k := newKey(t)
	b.write("id", k.pem)
	now, err := stampOf(b.path("id"))
	must(t, err)
	b.dirs[0].files["id"].stamp = now
	if string(b.only().Public.Marshal()) != string(k.public.Marshal()) {
		t.Error("the second change is not seen")
	}
}

func TestInotifyLimit(t *testing.T) {
	t.Parallel()
	fail := true
	b := start(t, t.TempDir(), func(s *system) {
		s.newWatch = func(dir *os.File) (*watch, error) {
			if fail {
				return nil, explainInotify(unix.ENOSPC, "fs.inotify.max_user_watches")
			}
			return newWatch(dir)
		}
	})
	b.wantReports("no space left on device (the limit is sysctl fs.inotify.max_user_watches)")
	b.Rescan()
	b.clock.pass(time.Hour)
	b.wantReports() // reported once
	if len(b.Problems()) != 1 {
		t.Errorf("problems are %v", b.Problems())
	}
	fail = false
	b.Entries()
	b.write("id", newKey(t).pem)
	b.want("id")
	b.write("id", []byte("no key any more"))
	b.want() // at once, because there are events again
	if len(b.Problems()) != 0 {
		t.Errorf("problems are %v", b.Problems())
	}
}

// TestDescriptorLimit runs out of descriptors while the index is in use.
func TestDescriptorLimit(t *testing.T) {
	b := start(t, t.TempDir())
	b.write("id", newKey(t).pem)
	b.want("id")
	e := b.only()
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}))
	now := time.Now()
	chtimesErr := os.Chtimes(b.path("id"), now, now)
	during := b.Entries()
	b.Rescan()
	again := b.Entries()
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, chtimesErr)
	if len(during) != 1 || during[0] != e || len(again) != 1 || again[0] != e {
		t.Error("the key was lost while there was no descriptor to read it")
	}
	b.write("more", newKey(t).pem)
	b.want("id", "more")
	b.wantReports()
}
