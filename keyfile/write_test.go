package keyfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// wantFile checks content and mode of a file.
func wantFile(t *testing.T, path string, data []byte, perm fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s has %d octets, want %d: %v", path, len(got), len(data), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != perm {
		t.Errorf("%s has the mode %v, want %v: %v", path, info.Mode(), perm, err)
	}
}

// wantNames checks the names in dir, hidden files included.
func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the directory has %q, want %q", got, want)
	}
}

// noHardLinks is link(2) on a file system without hard links.
func noHardLinks(_ *os.Root, old, new string) error {
	return &os.LinkError{Op: "link", Old: old, New: new, Err: syscall.EPERM}
}

func withoutLinks(path string, data []byte, perm fs.FileMode) error {
	return pathError("create", path, create(path, data, perm, noHardLinks))
}

// writers are the ways to write a new file.
var writers = map[string]func(string, []byte, fs.FileMode) error{
	"Create": Create, "Create without links": withoutLinks, "Replace": Replace,
}

func TestWriteNew(t *testing.T) {
	t.Parallel()
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for base, perm := range map[string]fs.FileMode{"a": 0o600, "b": 0o666, "c": 0o400} {
				path := filepath.Join(dir, base)
				if err := write(path, []byte(base+" key"), perm); err != nil {
					t.Fatal(err)
				}
				wantFile(t, path, []byte(base+" key"), perm)
			}
			wantNames(t, dir, "a", "b", "c")
		})
	}
}

// TestModeWhateverTheUmask runs in its own process, because the umask belongs to all
// threads.
func TestModeWhateverTheUmask(t *testing.T) {
	if dir := os.Getenv("KEYFILE_UMASK_DIR"); dir != "" {
		for _, umask := range []int{0, 0o777} {
			syscall.Umask(umask)
			for name, write := range writers {
				path := filepath.Join(dir, fmt.Sprintf("%o %s", umask, name))
				if err := write(path, []byte("key"), 0o640); err != nil {
					t.Fatal(err)
				}
				if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
					t.Errorf("umask %o, %s: %v, %v", umask, name, info.Mode(), err)
				}
			}
		}
		return
	}
	out, err := again(t, "KEYFILE_UMASK_DIR="+t.TempDir()).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("PASS")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// again runs the current test in another process.
func again(t *testing.T, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

func TestCreateNeverReplaces(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Create", "Create without links"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, dangling, sub := filepath.Join(dir, "key"), filepath.Join(dir, "link"), filepath.Join(dir, "sub")
			put(t, path, []byte("old"))
			if err := errors.Join(os.Symlink("nowhere", dangling), os.Mkdir(sub, 0o700)); err != nil {
				t.Fatal(err)
			}
			for _, taken := range []string{path, dangling, sub} {
				wantPathError(t, writers[name](taken, []byte("new"), 0o600), taken, fs.ErrExist, "create")
			}
			wantFile(t, path, []byte("old"), 0o600)
			wantNames(t, dir, "key", "link", "sub")
		})
	}
}

// TestCreateRace creates the file after the first check, from the function that is
// called just before the link.
func TestCreateRace(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]func(*os.Root, string, string) error{"link": (*os.Root).Link, "no link": noHardLinks} {
		dir := t.TempDir()
		path := filepath.Join(dir, "key")
		err := create(path, []byte("ours"), 0o600, func(dir *os.Root, old, new string) error {
			put(t, path, []byte("theirs"))
			return link(dir, old, new)
		})
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", name, err)
		}
		wantFile(t, path, []byte("theirs"), 0o600)
		wantNames(t, dir, "key")
	}
}

// TestCreateOnce lets many callers create the same file. Exactly one must succeed,
// with its complete content.
func TestCreateOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	const rivals = 16
	results := make(chan error)
	for i := range rivals {
		go func() { results <- Create(path, bytes.Repeat([]byte{byte(i)}, 5000), 0o600) }()
	}
	won := 0
	for range rivals {
		err := <-results
		if err == nil {
			won++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Error(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || won != 1 || !bytes.Equal(data, bytes.Repeat(data[:1], 5000)) {
		t.Errorf("%d won, %d octets, %v", won, len(data), err)
	}
	wantNames(t, dir, "key")
}

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	put(t, path, []byte("old"))
	open, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := Replace(path, []byte("new"), 0o640); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, []byte("new"), 0o640)
	old := make([]byte, 10)
	if n, _ := open.Read(old); string(old[:n]) != "old" {
		t.Errorf("a reader that had the file open now reads %q", old[:n])
	}
	wantNames(t, dir, "key")
}

// TestReplaceKeepsOwner replaces another user's key as root. The owner must stay the
// same.
func TestReplaceKeepsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	path := filepath.Join(t.TempDir(), "key")
	put(t, path, []byte("old"))
	if err := os.Chown(path, 12345, 54321); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, []byte("new"), 0o600)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 12345 || stat.Gid != 54321 {
		t.Errorf("it belongs to %d and the group %d", stat.Uid, stat.Gid)
	}
}

func TestReplaceThroughLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	target, first, second := filepath.Join(sub, "key"), filepath.Join(dir, "first"), filepath.Join(dir, "second")
	if err := errors.Join(os.Mkdir(sub, 0o700), os.Symlink("sub/key", first), os.Symlink(first, second)); err != nil {
		t.Fatal(err)
	}
	wantPathError(t, Replace(second, []byte("new"), 0o600), second, fs.ErrNotExist, "symbolic link")
	put(t, target, []byte("old"))
	if err := Replace(second, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFile(t, target, []byte("new"), 0o600)
	wantNames(t, dir, "first", "second", "sub")
	wantNames(t, sub, "key")
	for _, link := range []string{first, second} {
		if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			t.Errorf("%s is a link no more: %v", link, err)
		}
	}
}

func TestReplaceIrregular(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo, sub := filepath.Join(dir, "fifo"), filepath.Join(dir, "sub")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.Mkdir(sub, 0o700)); err != nil {
		t.Fatal(err)
	}
	wantPathError(t, Replace(fifo, nil, 0o600), fifo, ErrNotRegular, "FIFO")
	wantPathError(t, Replace(sub, nil, 0o600), sub, ErrNotRegular, "directory")
	wantNames(t, dir, "fifo", "sub")
}

func TestWriteWithoutDirectory(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "missing", "key")
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			wantPathError(t, write(path, nil, 0o600), path, fs.ErrNotExist)
		})
	}
}

func TestWriteWithoutPermission(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "old"), []byte("old"))
	openUp(t, dir)
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o700) }) // or only root could remove it
	unprivileged(t, func() {
		for name, write := range writers {
			path := filepath.Join(dir, name)
			wantPathError(t, write(path, []byte("key"), 0o600), path, fs.ErrPermission)
		}
		path := filepath.Join(dir, "old")
		wantPathError(t, Replace(path, []byte("key"), 0o600), path, fs.ErrPermission, "replace")
	})
	wantNames(t, dir, "old")
	wantFile(t, filepath.Join(dir, "old"), []byte("old"), 0o600)
}

// smallDisk mounts a file system of 64 KiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Skipf("this test needs the right to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestWriteFullDisk(t *testing.T) {
	dir := smallDisk(t)
	old := filepath.Join(dir, "old")
	put(t, old, []byte("old"))
	for name, write := range writers {
		path := filepath.Join(dir, name)
		wantPathError(t, write(path, make([]byte, 65<<10), 0o600), path, syscall.ENOSPC)
	}
	wantPathError(t, Replace(old, make([]byte, 65<<10), 0o600), old, syscall.ENOSPC)
	wantFile(t, old, []byte("old"), 0o600)
	wantNames(t, dir, "old")
	// Without links there are two files for a moment, and the second may not
	// fit.
	path := filepath.Join(dir, "half")
	wantPathError(t, withoutLinks(path, make([]byte, 40<<10), 0o600), path, syscall.ENOSPC)
	wantNames(t, dir, "old")
	if err := Create(path, make([]byte, 40<<10), 0o600); err != nil {
		t.Errorf("with links there is room: %v", err)
	}
}

func TestWriteReadOnlyDisk(t *testing.T) {
	dir := smallDisk(t)
	old := filepath.Join(dir, "old")
	put(t, old, []byte("old"))
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for name, write := range writers {
		path := filepath.Join(dir, name)
		wantPathError(t, write(path, []byte("key"), 0o600), path, syscall.EROFS)
	}
	wantPathError(t, Replace(old, []byte("new"), 0o600), old, syscall.EROFS)
	wantFile(t, old, []byte("old"), 0o600)
	wantNames(t, dir, "old")
}

// TestKilled kills a process at many moments while it creates and replaces files as
// fast as it can. A file with a final name must be complete; any other must be
// recognizable as temporary.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("KEYFILE_KILL_DIR"); dir != "" {
		writeForEver(t, dir)
		return
	}
	whole := map[int]bool{0: true, 1: true}
	for round := range 40 {
		dir := t.TempDir()
		killAfter(t, dir, round)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if IsTemporary(e.Name()) && strings.HasPrefix(e.Name(), ".") {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil || len(data) != killSize || !whole[int(data[0])] ||
				!bytes.Equal(data, bytes.Repeat(data[:1], killSize)) {
				t.Fatalf("%s: %d octets, %v", e.Name(), len(data), err)
			}
		}
	}
}

const killSize = 32 << 10

// killAfter lets a process report n files and kills it during the next.
func killAfter(t *testing.T, dir string, n int) {
	t.Helper()
	cmd := again(t, "KEYFILE_KILL_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for range n + 1 {
		if !lines.Scan() {
			t.Errorf("the writer ended early: %v", lines.Err())
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	for lines.Scan() { // what it still had written
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the writer was not killed")
	}
}

func writeForEver(t *testing.T, dir string) {
	for i := 0; ; i++ {
		path := filepath.Join(dir, fmt.Sprint(i%50))
		err := Create(path, make([]byte, killSize), 0o600)
		if i >= 50 && errors.Is(err, fs.ErrExist) {
			err = nil
		}
		if err == nil {
			err = Replace(path, bytes.Repeat([]byte{1}, killSize), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Println(i); err != nil {
			return
		}
	}
}

func TestIsTemporary(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{".tpm-agent-new-X": true, "id_ecdsa.tpm": false, ".hidden": false} {
		if IsTemporary(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
