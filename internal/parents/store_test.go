package parents

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// newStore returns a store in a directory that does not exist yet.
func newStore(t *testing.T) Store {
	t.Helper()
	return Store{filepath.Join(t.TempDir(), "state", "storage-keys")}
}

func (s Store) see(b byte) error {
	return s.Update("/nonexistent", func(m *Memory) bool { return m.Seen(at(b, "owner"), key(b), "2026-11-01") })
}

func (s Store) count(t *testing.T) int {
	t.Helper()
	m, err := s.Read("/nonexistent")
	if err != nil {
		t.Fatal(err)
	}
	return len(m.Parents())
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if n := s.count(t); n != 0 {
		t.Errorf("an empty store has %d storage keys", n)
	}
	if err := s.see(1); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.Path)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	if err := s.see(1); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(s.Path); err != nil || !os.SameFile(info, now) {
		t.Errorf("the file was written without news: %v", err)
	}
	// A process that was killed may leave a temporary file, which is not read.
	left := filepath.Join(filepath.Dir(s.Path), ".tpm-agent-new-ABCDEF")
	if write(t, left, []byte("half")); !keyfile.IsTemporary(filepath.Base(left)) {
		t.Fatal(left)
	}
	if err := s.see(2); err != nil || s.count(t) != 2 {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(s.Path)); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestDefault(t *testing.T) {
	for _, test := range []struct{ state, home, want string }{
		{"/state", "/home", "/state/tpm-agent/storage-keys"},
		{"", "/home", "/home/.local/state/tpm-agent/storage-keys"},
		{"relative", "/home", "/home/.local/state/tpm-agent/storage-keys"},
		{"", "", ""},
	} {
		t.Setenv("XDG_STATE_HOME", test.state)
		t.Setenv("HOME", test.home)
		if got := Default().Path; got != test.want {
			t.Errorf("%q and %q: %q, want %q", test.state, test.home, got, test.want)
		}
	}
	if err := Default().see(1); err == nil || !strings.Contains(err.Error(), "HOME") {
		t.Errorf("without a place for the file: %v", err)
	}
}

// TestOldFile reads what an earlier version left beside the keys, and leaves it
// there.
func TestOldFile(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t), t.TempDir()
	old := new(Memory)
	old.Seen(at(1, "owner"), key(1), "2026-10-01")
	path := filepath.Join(dir, OldName)
	text := old.marshal()
	write(t, path, text)
	m, err := s.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "read", find(m, key(1), chip), `1 owner device:/dev/tpmrm0 2026-10-01..2026-10-01 gone "" changed false`)
	if n := s.count(t); n != 0 {
		t.Errorf("reading has written %d storage keys", n)
	}
	if err := s.Update(dir, func(m *Memory) bool { return m.Seen(at(2, "owner"), key(2), "2026-11-01") }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(text) {
		t.Errorf("the old file is now %q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	m, err = s.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "merged", find(m, key(1), chip), `1 owner device:/dev/tpmrm0 2026-10-01..2026-10-01 gone "2026-11-01" changed false`)

	// One that cannot be used does no harm.
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Read(dir); err != nil || len(m.Parents()) != 2 {
		t.Errorf("with a FIFO in the directory: %v, %v", m, err)
	}
}

// TestNotOurs checks that anything but a regular file is neither read nor
// replaced, and does not block.
func TestNotOurs(t *testing.T) {
	t.Parallel()
	elsewhere := newStore(t)
	if err := elsewhere.see(1); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(path string) error{
		"link":          func(path string) error { return os.Symlink(elsewhere.Path, path) },
		"dangling link": func(path string) error { return os.Symlink("nowhere", path) },
		"FIFO":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory":     func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			s := Store{filepath.Join(t.TempDir(), "storage-keys")}
			if err := put(s.Path); err != nil {
				t.Fatal(err)
			}
			if m, err := s.Read("/nonexistent"); err == nil || len(m.Parents()) != 0 {
				t.Errorf("read: %v, %v", m, err)
			}
			if err := s.see(2); err == nil {
				t.Error("it was replaced")
			}
			if entries, err := os.ReadDir(filepath.Dir(s.Path)); err != nil || len(entries) != 1 {
				t.Errorf("%v, %v", entries, err)
			}
		})
	}
	if elsewhere.count(t) != 1 {
		t.Error("a file behind a link was changed")
	}
}

func TestOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	s := newStore(t)
	if err := s.see(1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(s.Path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Read("/nonexistent"); err == nil || len(m.Parents()) != 0 {
		t.Errorf("%v, %v", m, err)
	}
}

// TestGarbageInTheFile checks that garbage counts as an empty memory and is
// replaced.
func TestGarbageInTheFile(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"nothing": "", "garbage": "\x00\xff\n\n", "huge": strings.Repeat("x", 8<<20), "many lines": strings.Repeat("x\n", 400<<10),
	} {
		s := newStore(t)
		write(t, s.Path, []byte(content))
		if n := s.count(t); n != 0 {
			t.Errorf("%s: %d storage keys", name, n)
		}
		if err := s.see(1); err != nil || s.count(t) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root can write everywhere")
	}
	s := newStore(t)
	if err := s.see(1); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(s.Path)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	if err := s.see(2); err == nil {
		t.Error("Update reports success")
	}
	if s.count(t) != 1 {
		t.Error("the memory is lost")
	}
}

// TestManyWriters has goroutines of two processes write at the same time.
func TestManyWriters(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	given := os.Getenv("PARENTS_TEST_FILE")
	if given != "" {
		s.Path = given
	}
	const writers = 8
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			where := Parent{Name: name(byte(i)), At: "owner", TPM: fmt.Sprint("swtpm:path=", given, i)}
			if err := s.Update("/nonexistent", func(m *Memory) bool { return m.Seen(where, Key{}, "2026-11-01") }); err != nil {
				t.Error(err)
			}
		})
	}
	if given == "" {
		other := exec.Command(os.Args[0], "-test.run=^TestManyWriters$")
		other.Env = append(os.Environ(), "PARENTS_TEST_FILE="+s.Path)
		if out, err := other.CombinedOutput(); err != nil {
			t.Errorf("the other process: %v\n%s", err, out)
		}
		wg.Wait()
		if n := s.count(t); n != 2*writers {
			t.Errorf("%d storage keys, want %d", n, 2*writers)
		}
	}
	wg.Wait()
}

// TestLock checks that Update waits for the lock.
func TestLock(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if err := s.see(1); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(filepath.Dir(s.Path))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	called, written := make(chan bool, 2), make(chan error)
	go func() {
		written <- s.Update("/nonexistent", func(m *Memory) bool {
			called <- true
			return m.Seen(at(2, "owner"), key(2), "2026-11-01")
		})
	}()
	<-called
	if n := s.count(t); n != 1 {
		t.Error("Update did not wait for the lock")
	}
	dir.Close()
	if err := <-written; err != nil || s.count(t) != 2 {
		t.Errorf("%v", err)
	}
}
