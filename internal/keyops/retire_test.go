package keyops

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// day is a time in the names of retired files.
var day = time.Date(2026, 11, 21, 1, 2, 3, 0, time.UTC)

// oldFile is an old private key in a directory of its own.
func oldFile(t *testing.T, content string) *oldKey {
	t.Helper()
	o := &oldKey{path: filepath.Join(t.TempDir(), "id_rsa"), data: []byte(content)}
	if err := os.WriteFile(o.path, o.data, 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s has %q, want %q: %v", path, got, want, err)
	}
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", path, err)
	}
}

// TestRetire: the file itself is moved, with its date, and nothing that is
// there is overwritten.
func TestRetire(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "retired")
	for n, name := range []string{"id_rsa.2026-11-21", "id_rsa.2026-11-21.2", "id_rsa.2026-11-21.3"} {
		o := oldFile(t, "old "+name)
		before, err := os.Stat(o.path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := o.retire(dir, day, nil)
		if err != nil || r.copied || r.path != filepath.Join(dir, name) {
			t.Errorf("%d: %+v, %v", n, r, err)
		}
		wantGone(t, o.path)
		wantContent(t, r.path, "old "+name)
		if after, err := os.Stat(r.path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s is another file: %v", r.path, err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestRetireOpenDirectory: a directory that others may read is closed.
func TestRetireOpenDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := oldFile(t, "old").retire(dir, day, nil); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestRetireElsewhere: between file systems it is copied. A disk that is full
// leaves the old file where it is, and nothing else.
func TestRetireElsewhere(t *testing.T) {
	t.Parallel()
	content := string(bytes.Repeat([]byte("k"), 2*os.Getpagesize()))
	for pages, room := range map[int]bool{8: true, 1: false} {
		dir := needs.SmallDisk(t, pages)
		o := oldFile(t, content)
		r, err := o.retire(dir, day, nil)
		if !room {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Error(err)
			}
			wantContent(t, o.path, content)
			if files := list(t, dir); len(files) != 1 {
				t.Errorf("left behind %q", files)
			}
			continue
		}
		if err != nil || !r.copied {
			t.Fatalf("%+v, %v", r, err)
		}
		wantGone(t, o.path)
		wantContent(t, r.path, content)
		if info, err := os.Stat(r.path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
}

// TestRetireChanged: a file that is not the one that was imported is left alone.
func TestRetireChanged(t *testing.T) {
	t.Parallel()
	o, dir := oldFile(t, "another"), t.TempDir()
	o.data = []byte("the one that was read")
	for name, move := range map[string]func() (retired, error){
		"retire":  func() (retired, error) { return o.retire(dir, day, nil) },
		"replace": func() (retired, error) { return o.retire(dir, day, []byte("new")) },
	} {
		if _, err := move(); err == nil {
			t.Errorf("%s: no error", name)
		}
		wantContent(t, o.path, "another")
		if files := list(t, dir); len(files) > 0 {
			t.Errorf("%s: left behind %q", name, files)
		}
	}
}

func TestReplaceBy(t *testing.T) {
	t.Parallel()
	o, dir := oldFile(t, "old"), t.TempDir()
	r, err := o.retire(dir, day, []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, o.path, "new")
	wantContent(t, r.path, "old")
	if files := append(list(t, filepath.Dir(o.path)), list(t, dir)...); len(files) != 2 {
		t.Errorf("there are %q", files)
	}
}

// TestReplaceFullDisk: without room for the new key the old one stays, and its
// second name is gone again.
func TestReplaceFullDisk(t *testing.T) {
	t.Parallel()
	dir := needs.SmallDisk(t, 1)
	o := &oldKey{path: filepath.Join(dir, "id"), data: []byte("old")}
	if err := os.WriteFile(o.path, o.data, 0o600); err != nil {
		t.Fatal(err)
	}
	attic := filepath.Join(dir, "retired")
	if _, err := o.retire(attic, day, make([]byte, 3*os.Getpagesize())); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	wantContent(t, o.path, "old")
	if files := list(t, attic); len(files) > 0 {
		t.Errorf("left behind %q", files)
	}
}

// TestFarewell: where the old key is, what it is worth, and what can be done.
func TestFarewell(t *testing.T) {
	t.Parallel()
	const attic = "/state/retired"
	moved, copied := retired{attic + "/id.2026-11-21", false}, retired{attic + "/id.2026-11-21", true}
	for name, test := range map[string]struct {
		old  oldKey
		gone retired
		want []string
		not  string
	}{
		"stays": {oldKey{path: "a b/id"}, retired{}, []string{
			"still in a b/id\n", "Anyone who reads it has the key", "  mkdir -p -m 700 /state/retired\n", "  mv -n 'a b/id' /state/retired/id.2",
		}, "shred"},
		"encrypted": {oldKey{path: "id", encrypted: true}, retired{}, []string{"Anyone who reads it and finds its passphrase has the key"}, "shred"},
		"wrapped":   {oldKey{path: "id", wrapped: true, encrypted: true}, retired{}, []string{"Only this TPM can open it"}, "Anyone"},
		"moved":     {oldKey{path: "id"}, moved, []string{"was moved to " + moved.path, "To destroy it: shred -u " + moved.path}, "copied"},
		"copied":    {oldKey{path: "id"}, copied, []string{"another file system, whose disk may still have its octets", "shred -u " + moved.path}, "mv -n"},
	} {
		got := test.old.farewell(test.gone, attic)
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is missing in %q", name, want, got)
			}
		}
		if strings.Contains(got, test.not) {
			t.Errorf("%s: %q is in %q", name, test.not, got)
		}
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
