package parents

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

func see(dir string, b byte) error {
	return Update(dir, func(m *Memory) bool { return m.Seen(at(b, "owner"), key(b), "2026-11-01") })
}

func count(t *testing.T, dir string) int {
	t.Helper()
	m, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(m.Parents())
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	if n := count(t, dir); n != 0 {
		t.Errorf("%d storage keys in an empty directory", n)
	}
	if err := see(dir, 1); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, FileName))
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	if err := see(dir, 1); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(filepath.Join(dir, FileName)); err != nil || !os.SameFile(info, now) {
		t.Errorf("written without news: %v", err)
	}
	if err := see(dir, 2); err != nil || count(t, dir) != 2 {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestNoDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if m, err := Read(dir); err == nil || m == nil || len(m.Parents()) != 0 {
		t.Errorf("%v, %v", m, err)
	}
	if err := see(dir, 1); err == nil {
		t.Error("written where no directory is")
	}
}

// What lies there and is not ours is neither read nor replaced, nor waited for.
func TestNotOurs(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	text := append([]byte(nil), func() []byte { m := new(Memory); m.Seen(at(1, "owner"), key(1), "2026-11-01"); return m.marshal() }()...)
	if err := os.WriteFile(elsewhere, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, lay := range map[string]func(path string) error{
		"link":          func(path string) error { return os.Symlink(elsewhere, path) },
		"dangling link": func(path string) error { return os.Symlink("nowhere", path) },
		"FIFO":          func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory":     func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := lay(filepath.Join(dir, FileName)); err != nil {
				t.Fatal(err)
			}
			if m, err := Read(dir); !errors.Is(err, errNotOurs) || len(m.Parents()) != 0 {
				t.Errorf("read: %v, %v", m, err)
			}
			if err := see(dir, 2); !errors.Is(err, errNotOurs) {
				t.Errorf("written: %v", err)
			}
			if now, err := os.ReadFile(elsewhere); err != nil || !bytes.Equal(now, text) {
				t.Errorf("%s, %v", now, err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("%v, %v", entries, err)
			}
		})
	}
}

func TestOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	dir := t.TempDir()
	if err := see(dir, 1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, FileName), 12345, -1); err != nil {
		t.Fatal(err)
	}
	if m, err := Read(dir); !errors.Is(err, errNotOurs) || len(m.Parents()) != 0 {
		t.Errorf("%v, %v", m, err)
	}
}

// Garbage, and more than is ever written, is nothing remembered, and makes room
// for what is.
func TestGarbageInTheFile(t *testing.T) {
	for name, content := range map[string]string{
		"nothing": "", "garbage": "\x00\xff\n\n", "huge": strings.Repeat("x", 8<<20), "many lines": strings.Repeat("x\n", 400<<10),
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, FileName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := count(t, dir); n != 0 {
			t.Errorf("%s: %d storage keys", name, n)
		}
		if err := see(dir, 1); err != nil || count(t, dir) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can write everywhere")
	}
	dir := t.TempDir()
	if err := see(dir, 1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	if err := see(dir, 2); err == nil {
		t.Error("written")
	}
	if count(t, dir) != 1 {
		t.Error("what was there is gone")
	}
}

// Two who write at the same time, in one process and in others, lose nothing.
func TestManyWriters(t *testing.T) {
	dir := t.TempDir()
	if os.Getenv("PARENTS_TEST_DIR") != "" {
		dir = os.Getenv("PARENTS_TEST_DIR")
	}
	const writers = 8
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			where := Parent{Name: name(byte(i)), At: "owner", TPM: fmt.Sprint("swtpm:path=", os.Getenv("PARENTS_TEST_DIR"), i)}
			err := error(unix.EWOULDBLOCK)
			for errors.Is(err, unix.EWOULDBLOCK) { // others took longer than anybody waits; that is said, and nothing lost
				err = Update(dir, func(m *Memory) bool { return m.Seen(where, Key{}, "2026-11-01") })
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	if os.Getenv("PARENTS_TEST_DIR") == "" {
		other := exec.Command(os.Args[0], "-test.run=^TestManyWriters$")
		other.Env = append(os.Environ(), "PARENTS_TEST_DIR="+dir)
		if out, err := other.CombinedOutput(); err != nil {
			t.Errorf("the other process: %v\n%s", err, out)
		}
		wg.Wait()
		if n := count(t, dir); n != 2*writers {
			t.Errorf("%d storage keys, want %d", n, 2*writers)
		}
	}
	wg.Wait()
}

// Whoever writes is waited for, but not for ever.
func TestLockIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	unlock, err := lock(root, patience)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(root, time.Millisecond); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a second lock: %v", err)
	}
	waiting, written := make(chan bool, 2), make(chan error)
	go func() {
		written <- Update(dir, func(m *Memory) bool {
			waiting <- true
			return m.Seen(at(1, "owner"), key(1), "2026-11-01")
		})
	}()
	<-waiting
	if n := count(t, dir); n != 0 {
		t.Errorf("%d storage keys were written past the lock", n)
	}
	unlock()
	if err := <-written; err != nil || count(t, dir) != 1 {
		t.Errorf("%v", err)
	}
}

// A process that was killed leaves a temporary file at worst, which nobody reads.
func TestLeftBehind(t *testing.T) {
	dir := t.TempDir()
	left := ".tpm-agent-new-ABCDEF"
	if err := os.WriteFile(filepath.Join(dir, left), []byte("half"), 0o600); err != nil || !keyfile.IsTemporary(left) {
		t.Fatal(err)
	}
	if err := see(dir, 1); err != nil || count(t, dir) != 1 {
		t.Errorf("%v", err)
	}
}
