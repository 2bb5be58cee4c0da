package privkey

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// TestReadFile would block on the pipe until go test stops it.
func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	want := golden(t, "p256-openssh")
	long := bytes.Repeat([]byte("x"), 1<<20)
	err := errors.Join(
		os.WriteFile(path("key"), want, 0o600),
		os.WriteFile(path("full"), long[:maxFile], 0o600),
		os.WriteFile(path("long"), long, 0o600),
		os.Symlink("key", path("link")),
		os.Symlink("nowhere", path("dangling")),
		syscall.Mkfifo(path("fifo"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"key", "link"} {
		if data, err := ReadFile(path(name)); err != nil || !bytes.Equal(data, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if data, err := ReadFile(path("full")); err != nil || len(data) != maxFile {
		t.Errorf("%d octets, %v", len(data), err)
	}
	data, err := ReadFile(path("long"))
	if err != nil || len(data) > maxFile+1 {
		t.Errorf("%d octets, %v", len(data), err)
	}
	_, err = Parse(data, nil)
	wantError(t, err, ErrFormat, "longer than 65536")
	for name, want := range map[string]error{
		"fifo": keyfile.ErrNotRegular, ".": keyfile.ErrNotRegular, "dangling": fs.ErrNotExist, "missing": fs.ErrNotExist,
	} {
		_, err := ReadFile(path(name))
		var p *fs.PathError
		if !errors.Is(err, want) || !errors.As(err, &p) || strings.Count(err.Error(), path(name)) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
