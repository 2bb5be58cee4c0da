package tcti

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// machine returns a system with these files in /dev and /sys ("PATH=CONTENT").
func machine(t *testing.T, files ...string) system {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return system{dev: filepath.Join(root, "dev"), sys: filepath.Join(root, "sys")}
}

func TestAutoExplains(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files []string
		is    error
		says  string
	}{
		"nothing":       {nil, ErrNoTPM, "kernel knows of none"},
		"1.2":           {[]string{"dev/tpm0", "sys/class/tpm/tpm0/tpm_version_major=1\n"}, ErrTPM12, "tpm0"},
		"1.2, no node":  {[]string{"sys/class/tpm/tpm0/tpm_version_major=1\n"}, ErrTPM12, "tpm0"},
		"raw only":      {[]string{"dev/tpm0", "sys/class/tpm/tpm0/tpm_version_major=2\n"}, ErrNoTPM, "device:"},
		"no node":       {[]string{"sys/class/tpm/tpm0/tpm_version_major=2\n"}, ErrNoTPM, "container"},
		"other manager": {[]string{"dev/tpm1", "dev/tpmrm1"}, ErrNoTPM, "tpmrm1"},
	} {
		s := machine(t, c.files...)
		_, err := s.openAuto(t.Context())
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		for _, other := range []error{ErrNoTPM, ErrTPM12} {
			if other != c.is && errors.Is(err, other) {
				t.Errorf("%s: is %v too", name, other)
			}
		}
	}
}

// TestExamine examines a device that a /sys of its own describes.
func TestExamine(t *testing.T) {
	t.Parallel()
	number := unix.Mkdev(253, 65536)
	for name, c := range map[string]struct {
		path, class, version string
		managed              bool
		err                  error
	}{
		"manager":               {"/dev/x", "tpmrm", "", true, nil},
		"raw":                   {"/dev/x", "tpm", "2", false, nil},
		"raw with a lying name": {"/dev/tpmrm0", "tpm", "2", false, nil},
		"1.2":                   {"/dev/tpm0", "tpm", "1", false, ErrTPM12},
		"no /sys, manager":      {"/dev/tpmrm0", "", "", true, nil},
		"no /sys, raw":          {"/dev/tpm0", "", "", false, nil},
	} {
		s := machine(t)
		node := filepath.Join(s.sys, "dev/char/253:65536")
		if c.class != "" {
			if err := os.MkdirAll(node, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("../../../class/"+c.class, filepath.Join(node, "subsystem")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(node, "tpm_version_major"), []byte(c.version+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		managed, err := s.examine(c.path, number)
		if managed != c.managed || !errors.Is(err, c.err) {
			t.Errorf("%s: %v, %v", name, managed, err)
		}
	}
}

// TestPermissionErrorAdvice checks that the advice fits the reason and the reader.
func TestPermissionErrorAdvice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err         PermissionError
		why, advice string
	}{
		{PermissionError{Group: "tss", joinable: true, user: "me"}, "me is not in the group tss", `sudo usermod -aG tss "$USER", then`},
		{PermissionError{Group: "tss", joinable: true, member: true, user: "me"}, "began before that", "log out and in again"},
		{PermissionError{Group: "tss", Mode: "crw-------"}, "no group that you could join", "udev rule"},
		{PermissionError{Group: "root"}, "no group that you could join", "udev rule"},
		{PermissionError{Group: "tss", Path: "/dev/tpmrm0", joinable: true, root: true}, "root is denied", "--device /dev/tpmrm0"},
	} {
		if !strings.Contains(c.err.Error(), c.why) || !strings.Contains(c.err.Advice(), c.advice) {
			t.Errorf("%v\nadvice: %s", &c.err, c.err.Advice())
		}
		if joining := strings.Contains(c.err.Advice(), "usermod"); joining != strings.Contains(c.err.Error(), "not in the group") {
			t.Errorf("%v\nadvice: %s", &c.err, c.err.Advice())
		}
	}
}
