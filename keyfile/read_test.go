package keyfile

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// wantPathError checks that err names path once and wraps want.
func wantPathError(t *testing.T, err error, path string, want error, texts ...string) {
	t.Helper()
	wantError(t, err, want, texts...)
	var p *fs.PathError
	if !errors.As(err, &p) || p.Path != path {
		t.Errorf("%v is no *fs.PathError of %s", err, path)
	}
	if strings.Count(err.Error(), path) != 1 || strings.Contains(err.Error(), tempPrefix) {
		t.Errorf("%q does not name %s once and nothing else", err, path)
	}
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key.tpm")
	put(t, path, golden(t, "openssl-p256.tpm"))
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	if err := errors.Join(os.Symlink("key.tpm", first), os.Symlink(first, second)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, first, second} {
		if k, err := ReadFile(name); err != nil || k.Parent != ParentOwner {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
	put(t, path, golden(t, "openssl-p256.tpm")[:200])
	_, err := ReadFile(path)
	wantPathError(t, err, path, ErrFormat, "read key file", "line 1")
	put(t, path, golden(t, "tools-hmac.tpm"))
	_, err = ReadFile(path)
	wantPathError(t, err, path, errUnsupported)
	put(t, path, nil)
	_, err = ReadFile(path)
	wantPathError(t, err, path, ErrNoKey)
}

// TestReadFileIrregular reads files that are not regular. A read that blocks fails by
// the time limit of go test.
func TestReadFileIrregular(t *testing.T) {
	dir := t.TempDir()
	fifo, socket := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("fifo", link); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]string{
		dir: "directory", fifo: "FIFO", link: "FIFO", socket: "socket", "/dev/zero": "device",
	} {
		_, err := ReadFile(path)
		wantPathError(t, err, path, ErrNotRegular, kind)
	}
}

func TestReadFileLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	missing, dangling := filepath.Join(dir, "missing"), filepath.Join(dir, "dangling")
	here, there := filepath.Join(dir, "here"), filepath.Join(dir, "there")
	if err := errors.Join(os.Symlink("nowhere", dangling), os.Symlink("there", here), os.Symlink("here", there)); err != nil {
		t.Fatal(err)
	}
	_, err := ReadFile(missing)
	wantPathError(t, err, missing, fs.ErrNotExist, "read key file")
	_, err = ReadFile(dangling)
	wantPathError(t, err, dangling, fs.ErrNotExist, `symbolic link to "nowhere"`)
	_, err = ReadFile(here)
	wantPathError(t, err, here, syscall.ELOOP, `symbolic link to "there"`)
	inside := filepath.Join(dir, "missing", "key")
	_, err = ReadFile(inside)
	wantPathError(t, err, inside, fs.ErrNotExist)
}

// TestReadFileHuge reads a sparse file of 1 GiB, with and without a key in it.
func TestReadFileHuge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge")
	for content, want := range map[string]error{
		"":                                    ErrNoKey,
		string(golden(t, "openssl-p256.tpm")): ErrFormat,
	} {
		put(t, path, []byte(content))
		if err := os.Truncate(path, 1<<30); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ReadFile(path)
		runtime.ReadMemStats(&after)
		wantPathError(t, err, path, want, "long")
		if (want == ErrNoKey) != errors.Is(err, ErrNoKey) {
			t.Errorf("with %d octets of content: %v", len(content), err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
			t.Errorf("%d octets of memory were used", got)
		}
	}
}

func TestReadFileAtTheLimit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	key := string(golden(t, "openssl-p256.tpm"))
	text := strings.Repeat("x\n", maxFile/2)
	put(t, path, []byte(key+text[:maxFile-len(key)]))
	if _, err := ReadFile(path); err != nil {
		t.Error(err)
	}
	put(t, path, []byte(key+text[:maxFile-len(key)+1]))
	_, err := ReadFile(path)
	wantPathError(t, err, path, ErrFormat, "65536")
	if errors.Is(err, ErrNoKey) {
		t.Error("a long key file passes for something else")
	}
}

// TestReadFileGrows reads a file that is longer than its size says, like those of
// /proc.
func TestReadFileGrows(t *testing.T) {
	t.Parallel()
	const path = "/proc/self/status"
	if info, err := os.Stat(path); err != nil || info.Size() != 0 {
		t.Skipf("%s is not there, or has a size: %v", path, err)
	}
	data, err := ReadRegular(path, maxFile)
	if err != nil || !strings.Contains(string(data), "Name:") {
		t.Errorf("%q, %v", data, err)
	}
}

func TestReadFileUnreadable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	put(t, path, golden(t, "openssl-p256.tpm"))
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	openUp(t, dir)
	unprivileged(t, func() {
		_, err := ReadFile(path)
		wantPathError(t, err, path, fs.ErrPermission, "read key file")
	})
}

// openUp lets all users into the directories of this test.
func openUp(t *testing.T, dir string) {
	t.Helper()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
}

// unprivileged calls f with the file access of the user nobody if the test runs as
// root, who may do everything.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread is never unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0); errno != 0 {
			t.Error(errno)
			return
		}
		f()
	}()
	<-done
}

func BenchmarkReadFileNoKey(b *testing.B) {
	path := filepath.Join(b.TempDir(), "id_ecdsa.pub")
	if err := os.WriteFile(path, []byte("ecdsa-sha2-nistp256 AAAA me@host\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadFile(path); !errors.Is(err, ErrNoKey) {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadFile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadFile("testdata/openssl-p256.tpm"); err != nil {
			b.Fatal(err)
		}
	}
}
