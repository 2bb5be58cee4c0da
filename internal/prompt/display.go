package prompt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tpm-agent/tpm-agent/agent"
)

var errNoDisplay = errors.New("there is no display")

// display returns the environment for a program that opens a window, and
// whether there is a display to open it on. An agent that systemd starts for a
// user is often older than his desktop: if its own environment names no
// display, that of the client does.
func (p *Prompter) display(q agent.Question) (environ []string, found bool) {
	environ = p.options.Environ
	if lookup(environ, "DISPLAY") != "" || lookup(environ, "WAYLAND_DISPLAY") != "" {
		return environ, true
	}
	if ownClient(q) != nil {
		return environ, false
	}
	theirs, err := clientEnviron(q.Peer.PID)
	if err != nil {
		return environ, false
	}
	return borrowDisplay(environ, theirs)
}

// clientEnviron reads the environment that a process was started with.
func clientEnviron(pid int) ([]string, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, 1<<20))
	if err != nil {
		return nil, err
	}
	return strings.Split(string(data), "\x00"), nil
}

// borrowDisplay adds to environ where the display of theirs is. Nothing else is
// taken, and only displays of this machine whose sockets are the user's own (or
// root's, who runs X servers too): whoever answers there may say yes to
// everything.
func borrowDisplay(environ, theirs []string) (_ []string, found bool) {
	runtime := lookup(environ, "XDG_RUNTIME_DIR")
	if runtime == "" {
		runtime = privateDir(lookup(theirs, "XDG_RUNTIME_DIR"))
	}
	if socket := lookup(theirs, "WAYLAND_DISPLAY"); waylandThere(runtime, socket) {
		environ = setenv(environ, "WAYLAND_DISPLAY", socket)
		environ = setenv(environ, "XDG_RUNTIME_DIR", runtime)
		found = true
	}
	if display := lookup(theirs, "DISPLAY"); x11There(display) {
		environ = setenv(environ, "DISPLAY", display)
		if cookies := lookup(theirs, "XAUTHORITY"); filepath.IsAbs(cookies) {
			environ = setenv(environ, "XAUTHORITY", cookies)
		}
		found = true
	}
	return environ, found
}

// privateDir returns dir if it is a directory that nobody but the user can
// enter, else nothing.
func privateDir(dir string) string {
	info, err := os.Lstat(dir)
	if err != nil || !filepath.IsAbs(dir) || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || owner(info) != os.Geteuid() {
		return ""
	}
	return dir
}

// waylandThere says whether a compositor of the user listens at a
// WAYLAND_DISPLAY: a path, or a name in the runtime directory.
func waylandThere(runtime, display string) bool {
	switch {
	case display == "":
		return false
	case !filepath.IsAbs(display) && (runtime == "" || strings.ContainsRune(display, '/')):
		return false
	case !filepath.IsAbs(display):
		display = filepath.Join(runtime, display)
	}
	info, err := os.Lstat(display)
	return err == nil && info.Mode().Type() == os.ModeSocket && owner(info) == os.Geteuid()
}

// x11Sockets is where X servers listen.
const x11Sockets = "/tmp/.X11-unix"

// x11There says whether an X server of the user or of root listens at a DISPLAY
// of this machine, :N or :N.SCREEN.
func x11There(display string) bool {
	number, ok := strings.CutPrefix(strings.TrimPrefix(display, "unix"), ":")
	number, screen, _ := strings.Cut(number, ".")
	if !ok || !digits(number) || screen != "" && !digits(screen) {
		return false
	}
	info, err := os.Lstat(filepath.Join(x11Sockets, "X"+number))
	return err == nil && info.Mode().Type() == os.ModeSocket && (owner(info) == os.Geteuid() || owner(info) == 0)
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// owner is the user that a file belongs to, or -1.
func owner(info os.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}
