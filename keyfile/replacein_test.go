package keyfile

import (
	"os"
	"path/filepath"
	"testing"
)

func openRoot(t *testing.T) (root *os.Root, dir string) {
	t.Helper()
	dir = t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func TestReplaceIn(t *testing.T) {
	t.Parallel()
	root, dir := openRoot(t)
	for _, content := range []string{"one", "two"} {
		if err := ReplaceIn(root, "name", []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "name"))
		if err != nil || string(got) != content {
			t.Errorf("%q, %v", got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "name")); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestReplaceInFollowsNoLinks checks that a symbolic link is replaced, and not its
// target.
func TestReplaceInFollowsNoLinks(t *testing.T) {
	t.Parallel()
	root, dir := openRoot(t)
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(dir, "name")); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceIn(root, "name", []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "mine" {
		t.Errorf("target: %q, %v", got, err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "name")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
}

// TestReplaceInFails checks that after an error nothing new is left, and that the old
// file stays.
func TestReplaceInFails(t *testing.T) {
	t.Parallel()
	root, dir := openRoot(t)
	if err := os.MkdirAll(filepath.Join(dir, "name", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceIn(root, "name", []byte("new"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}
