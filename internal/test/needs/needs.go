// Package needs gives tests the programs and disks that they need, or skips them
// and says what is missing.
package needs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// packages maps programs to the Debian packages that contain them, where the
// names differ.
var packages = map[string]string{
	"busctl":                         "systemd",
	"pinentry":                       "pinentry-curses",
	"puttygen":                       "putty-tools",
	"ssh":                            "openssh-client",
	"ssh-add":                        "openssh-client",
	"ssh-agent":                      "openssh-client",
	"ssh-keygen":                     "openssh-client",
	"sshd":                           "openssh-server",
	"systemd-ask-password":           "systemd",
	"systemd-socket-activate":        "systemd",
	"systemd-tty-ask-password-agent": "systemd",
}

// Program returns the path of a program. It skips the test if there is none.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && name == "sshd" {
		path, err = exec.LookPath("/usr/sbin/sshd") // not in the PATH of every user
	}
	if err != nil {
		t.Skipf("needs %s: install the package %s, or run make deps", name, debianPackage(name))
	}
	return path
}

// Programs skips the test if one of the programs is missing.
func Programs(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		Program(t, name)
	}
}

// Python skips the test if a module of the system's Python is missing. A python3
// elsewhere in PATH may not see Debian's packages.
func Python(t testing.TB, module, debian string) {
	t.Helper()
	if err := exec.Command("/usr/bin/python3", "-c", "import "+module).Run(); err != nil {
		t.Skipf("needs the Python module %s: install the package %s, or run make deps", module, debian)
	}
}

// SmallDisk mounts a file system with room for that many pages. It skips the test
// if that is not allowed.
func SmallDisk(t testing.TB, pages int) string {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size="+strconv.Itoa((pages+1)*os.Getpagesize()))
	if errors.Is(err, syscall.EPERM) {
		t.Skip("only root can make a small disk")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, os.Getpagesize()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func debianPackage(program string) string {
	if strings.HasPrefix(program, "tpm2_") {
		return "tpm2-tools"
	}
	if name, ok := packages[program]; ok {
		return name
	}
	return program
}
