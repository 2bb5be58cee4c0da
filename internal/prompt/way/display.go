package way

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/tpm-agent/tpm-agent/internal/ask"
)

// ErrNoDisplay is the error for a window without a display to open it on.
var ErrNoDisplay = errors.New("there is no display")

// Display returns the environment for a program that opens a window, and
// reports whether there is a display. If the agent's own environment names
// none, the client's may: an agent that systemd starts is often older than the
// user's desktop.
func (s Settings) Display(q ask.Question) (environ []string, found bool) {
	if Lookup(s.Environ, "DISPLAY") != "" || Lookup(s.Environ, "WAYLAND_DISPLAY") != "" {
		return s.Environ, true
	}
	if _, err := Client(q); err != nil {
		return s.Environ, false
	}
	return borrowDisplay(s.Environ, Environ(q.Peer.PID), "/tmp/.X11-unix")
}

// Environ returns the environment that a process was started with, as far as it
// can be read.
func Environ(pid int) []string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return strings.Split(string(data), "\x00")
}

// borrowDisplay adds the client's display to environ. It takes nothing else,
// and only displays of this machine whose sockets, for X11 in the directory
// x11, belong to the user, or to root, who also runs X servers: the owner of a
// display can say yes to everything.
func borrowDisplay(environ, client []string, x11 string) (_ []string, found bool) {
	runtime := Lookup(environ, "XDG_RUNTIME_DIR")
	if runtime == "" {
		runtime = privateDir(Lookup(client, "XDG_RUNTIME_DIR"))
	}
	if display := Lookup(client, "WAYLAND_DISPLAY"); waylandListens(runtime, display) {
		environ = Setenv(Setenv(environ, "WAYLAND_DISPLAY", display), "XDG_RUNTIME_DIR", runtime)
		found = true
	}
	if display := Lookup(client, "DISPLAY"); x11Listens(x11, display) {
		environ = Setenv(environ, "DISPLAY", display)
		if cookies := Lookup(client, "XAUTHORITY"); filepath.IsAbs(cookies) {
			environ = Setenv(environ, "XAUTHORITY", cookies)
		}
		found = true
	}
	return environ, found
}

// privateDir returns dir if it is a directory that only the user can enter, and
// "" otherwise.
func privateDir(dir string) string {
	info, err := os.Lstat(dir)
	if err != nil || !filepath.IsAbs(dir) || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || owner(info) != os.Geteuid() {
		return ""
	}
	return dir
}

// waylandListens reports whether a compositor of the user listens at a
// WAYLAND_DISPLAY: a path, or a name in the runtime directory.
func waylandListens(runtime, display string) bool {
	if !filepath.IsAbs(display) {
		if display == "" || runtime == "" || strings.ContainsRune(display, '/') {
			return false
		}
		display = filepath.Join(runtime, display)
	}
	return isSocket(display, os.Geteuid())
}

// x11Listens reports whether an X server of the user or of root listens at a
// DISPLAY of this machine, :N or :N.SCREEN.
func x11Listens(dir, display string) bool {
	number, local := strings.CutPrefix(strings.TrimPrefix(display, "unix"), ":")
	number, screen, _ := strings.Cut(number, ".")
	if !local || number == "" || strings.Trim(number+screen, "0123456789") != "" {
		return false
	}
	return isSocket(filepath.Join(dir, "X"+number), os.Geteuid(), 0)
}

// isSocket reports whether path is a socket of one of the users.
func isSocket(path string, users ...int) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket && slices.Contains(users, owner(info))
}

// owner returns the user that a file belongs to, or -1.
func owner(info os.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

// Lookup returns the last value of name, which is the one that counts.
func Lookup(environ []string, name string) (value string) {
	for _, entry := range environ {
		if rest, ok := strings.CutPrefix(entry, name+"="); ok {
			value = rest
		}
	}
	return value
}

// Setenv returns environ with one value for name, or none if that is empty.
func Setenv(environ []string, name, value string) []string {
	changed := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		return strings.HasPrefix(entry, name+"=")
	})
	if value != "" {
		changed = append(changed, name+"="+value)
	}
	return changed
}
