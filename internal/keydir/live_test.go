package keydir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

func TestAppearChangeVanish(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	b.want()
	one, two := newKey(t), newKey(t)

	b.write("id.tpm", one.pem)
	b.want("id.tpm")
	e := b.only()
	if string(e.Public.Marshal()) != string(one.public.Marshal()) || e.Key.Parent != keyfile.ParentOwner || e.Path != b.path("id.tpm") {
		t.Errorf("entry %+v is not the key that was written", e)
	}
	b.write("id.tpm", two.pem) // in place
	if got := b.only(); got == e || string(got.Public.Marshal()) != string(two.public.Marshal()) {
		t.Error("the key written in place is not listed")
	}
	must(t, os.Rename(b.path("id.tpm"), b.path("renamed")))
	b.want("renamed")
	must(t, os.Remove(b.path("renamed")))
	b.want()
	b.wantReports()
}

func TestOwnWriter(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	one, two := newKey(t), newKey(t)
	must(t, keyfile.Create(b.path("id.tpm"), one.pem, 0o600))
	b.want("id.tpm")
	must(t, keyfile.Replace(b.path("id.tpm"), two.pem, 0o600))
	if string(b.only().Public.Marshal()) != string(two.public.Marshal()) {
		t.Error("the key that replaced another is not listed")
	}
	b.wantReports()
}

func TestNothingChanges(t *testing.T) {
	b := start(t, t.TempDir())
	b.write("a", newKey(t).pem)
	k := newKey(t)
	b.write("b", k.pem)
	before := b.Entries()
	if after := b.Entries(); &after[0] != &before[0] {
		t.Error("the slice changed although no file did")
	}
	// Irrelevant changes do not count.
	b.write("config", []byte("Host *\n"))
	b.write("b", k.pem)
	now := time.Now()
	must(t, os.Chtimes(b.path("a"), now, now))
	if after := b.Entries(); &after[0] != &before[0] {
		t.Error("the slice changed although no key did")
	}
	b.Rescan()
	if after := b.Entries(); &after[0] != &before[0] {
		t.Error("the slice changed in a rescan that found nothing")
	}
	// Only a changed key gets a new entry.
	b.write("b", newKey(t).pem)
	if after := b.Entries(); after[0] != before[0] || after[1] == before[1] {
		t.Error("entry 1, and no other, must be new")
	}
	allocs := testing.AllocsPerRun(100, func() { b.Entries() })
	if allocs > 4 { // path + "/." and its zero-terminated copy
		t.Errorf("%v allocations in a call that finds nothing", allocs)
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	first, second := t.TempDir(), t.TempDir()
	for _, path := range []string{second + "/a", first + "/z", first + "/B", second + "/0", first + "/a"} {
		write(t, path, newKey(t).pem)
	}
	x, err := Open([]string{first, second, first + "/."}, nil)
	must(t, err)
	defer x.Close()
	var got []string
	for _, e := range x.Entries() {
		got = append(got, e.Path)
	}
	want := []string{first + "/B", first + "/a", first + "/z", second + "/0", second + "/a"}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("order is %v, want %v", got, want)
	}
}

// TestHalfWritten checks that a file is not reported as broken while it is being
// written, and that the previous key stays until then.
func TestHalfWritten(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	one, two := newKey(t), newKey(t)
	f, err := os.Create(b.path("id.tpm"))
	must(t, err)
	b.want()
	f.Write(one.pem[:100])
	b.want()
	b.wantReports()
	f.Write(one.pem[100:])
	b.want("id.tpm")
	must(t, f.Close())

	f, err = os.OpenFile(b.path("id.tpm"), os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	b.want("id.tpm")
	f.Write(two.pem[:100])
	b.want("id.tpm")
	b.wantReports()
	must(t, f.Close()) // nothing more will come
	b.want()
	b.wantReports("id.tpm: malformed")
}

// TestNeverClosed damages files without an event when that is finished.
func TestNeverClosed(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	k := newKey(t)
	b.write("id.tpm", k.pem)
	b.want("id.tpm")
	must(t, unix.Truncate(b.path("id.tpm"), 100))
	b.want("id.tpm")
	b.clock.pass(quietTime)
	b.want()
	b.wantReports("id.tpm: malformed")

	outside := filepath.Join(t.TempDir(), "damaged")
	write(t, outside, k.pem[:100])
	must(t, os.Link(outside, b.path("linked")))
	b.wantReports()
	b.clock.pass(quietTime)
	b.wantReports("linked: malformed")
	b.clock.pass(time.Hour)
	b.wantReports()
}

func TestHardLink(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	outside := filepath.Join(t.TempDir(), "key")
	write(t, outside, newKey(t).pem)
	must(t, os.Link(outside, b.path("id")))
	b.want("id")
}

func TestSymlinks(t *testing.T) {
	t.Parallel()
	b, far := start(t, t.TempDir()), t.TempDir()
	one, two := newKey(t), newKey(t)
	write(t, far+"/one", one.pem)
	write(t, far+"/two", two.pem)
	must(t, os.Symlink(far+"/one", b.path("id")))
	b.want("id")
	e := b.only()

	// Nothing happens in the directory itself from here on.
	write(t, far+"/one", two.pem)
	if got := b.only(); got == e || string(got.Public.Marshal()) != string(two.public.Marshal()) {
		t.Error("the target was written in place, and the old key is listed")
	}
	must(t, os.Remove(far+"/one"))
	b.want()
	b.wantReports("no such file")
	write(t, far+"/new", one.pem)
	must(t, os.Rename(far+"/new", far+"/one"))
	b.want("id")
	must(t, keyfile.Replace(b.path("id"), two.pem, 0o600)) // replaces the target
	if string(b.only().Public.Marshal()) != string(two.public.Marshal()) {
		t.Error("the target was replaced, and the old key is listed")
	}
	must(t, os.Rename(far, far+".away"))
	b.want()
	must(t, os.Rename(far+".away", far))
	b.want("id")
	must(t, os.Remove(b.path("id")))
	b.want()
}

func TestDirectoryComesAndGoes(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := parent + "/above/keys"
	b := start(t, dir)
	b.want()
	b.wantReports("keys: no such file")
	b.wantReports()
	if p := b.Problems(); len(p) != 1 || !errors.Is(p[0].Err, fs.ErrNotExist) {
		t.Errorf("problems are %v", p)
	}
	must(t, os.MkdirAll(dir, 0o700))
	b.want()
	k := newKey(t)
	b.write("id", k.pem)
	b.want("id")
	if p := b.Problems(); len(p) != 0 {
		t.Errorf("problems are %v", p)
	}
	must(t, os.RemoveAll(dir))
	b.want()
	b.wantReports("keys: no such file")
	must(t, os.Mkdir(dir, 0o700))
	b.write("again", k.pem)
	b.want("again")
	// A directory above is renamed, which causes no event here.
	must(t, os.Rename(parent+"/above", parent+"/elsewhere"))
	b.want()
	must(t, os.MkdirAll(dir, 0o700))
	b.write("third", k.pem)
	b.want("third")
	write(t, parent+"/elsewhere/keys/stray", newKey(t).pem)
	b.want("third")
	// Replaced between two calls.
	must(t, os.Rename(dir, dir+".old"))
	must(t, os.Mkdir(dir, 0o700))
	b.write("fourth", k.pem)
	b.want("fourth")
	must(t, os.RemoveAll(dir))
	write(t, dir, k.pem)
	b.want()
	b.take()
	b.wantReports()
	if p := b.Problems(); len(p) != 1 || !errors.Is(p[0].Err, unix.ENOTDIR) {
		t.Errorf("problems are %v", p)
	}
}

func TestDirectoryIsSymlink(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	for _, name := range []string{"one", "two"} {
		must(t, os.Mkdir(parent+"/"+name, 0o700))
		write(t, parent+"/"+name+"/"+name, newKey(t).pem)
	}
	must(t, os.Symlink("one", parent+"/keys"))
	b := start(t, parent+"/keys")
	b.want("one")
	must(t, os.Symlink("two", parent+"/next"))
	must(t, os.Rename(parent+"/next", parent+"/keys"))
	b.want("two")
	write(t, parent+"/two/more", newKey(t).pem)
	b.want("more", "two")
}

// TestOverflow makes more events than the kernel keeps.
func TestOverflow(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	k := newKey(t)
	b.write("stays", k.pem)
	e := b.only()
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	limit := 0
	for _, c := range strings.TrimSpace(string(text)) {
		limit = limit*10 + int(c-'0')
	}
	var files [2]*os.File // alternating, so that the kernel merges no events
	for i := range files {
		files[i], err = os.Create(b.path(fmt.Sprint("other", i)))
		must(t, err)
		defer files[i].Close()
	}
	for range limit/2 + 1 {
		must(t, files[0].Chmod(0o600))
		must(t, files[1].Chmod(0o600))
	}
	b.write("late", newKey(t).pem)
	b.want("late", "stays")
	if b.Entries()[1] != e {
		t.Error("an unchanged key has a new entry")
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir())
	keys := []testKey{newKey(t), newKey(t), newKey(t)}
	var wg sync.WaitGroup
	for i, k := range keys {
		name := string(rune('a' + i))
		wg.Go(func() {
			for range 50 {
				must(t, keyfile.Replace(b.path(name), k.pem, 0o600))
				found := false
				for _, e := range b.Entries() {
					found = found || e.Path == b.path(name)
				}
				if !found {
					t.Errorf("%s is missing in the call after it was written", name)
				}
				b.Problems()
				must(t, os.Remove(b.path(name)))
				for _, e := range b.Entries() {
					if e.Path == b.path(name) {
						t.Errorf("%s is listed in the call after it was removed", name)
					}
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			b.Rescan()
		}
	})
	wg.Wait()
	b.want()
	b.wantReports()
}

func TestClose(t *testing.T) {
	before := descriptors(t)
	dir := t.TempDir()
	write(t, dir+"/id", newKey(t).pem)
	x, err := Open([]string{dir, t.TempDir(), dir + "/missing"}, nil)
	must(t, err)
	x.Rescan()
	must(t, os.RemoveAll(dir))
	x.Entries()
	must(t, os.Mkdir(dir, 0o700))
	write(t, dir+"/id", newKey(t).pem)
	if len(x.Entries()) != 1 {
		t.Error("the key that came back is not listed")
	}
	must(t, x.Close())
	must(t, x.Close())
	x.Rescan()
	if len(x.Entries()) != 1 {
		t.Error("a closed index lost its keys")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d", after, before)
	}
	if _, err := Open([]string{""}, nil); err == nil {
		t.Error("an empty path is accepted")
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}
