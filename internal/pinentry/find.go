package pinentry

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/child"
)

// errNotFound is wrapped when there is no pinentry. The error says what to
// install, or which setting names a program that is not there.
var errNotFound = errors.New("no pinentry found")

// Find finds the pinentry that gpg-agent would use: the pinentry-program of
// gpg-agent.conf in $GNUPGHOME, ~/.gnupg or /etc/gnupg; else the one that GnuPG
// was built with, as gpgconf knows; else a program of that name; else one of the
// flavours, those for desktops first if environ has a display. environ is an
// environment as os.Environ returns it.
func Find(environ []string) (string, error) {
	return finder{environ: environ, etc: "/etc/gnupg", bin: []string{"/usr/bin", "/usr/local/bin"}}.find()
}

// finder is where to look.
type finder struct {
	environ []string
	etc     string   // where the administrator's gpg-agent.conf is
	bin     []string // where programs are, beside PATH
}

func (f finder) find() (string, error) {
	if program, conf := f.configured(); program != "" {
		return f.named(program, conf)
	}
	if program := f.builtIn(); isProgram(program) {
		return program, nil
	}
	for _, name := range f.names() {
		if program := f.lookUp(name); program != "" {
			return program, nil
		}
	}
	return "", fmt.Errorf("%w: install one (Debian: pinentry-gnome3, pinentry-qt or pinentry-curses)", errNotFound)
}

// configured returns the pinentry-program that is set, and the file where. The
// user's file is read last and so has the last word.
func (f finder) configured() (program, conf string) {
	home := f.lookup("GNUPGHOME")
	if home == "" && f.lookup("HOME") != "" {
		home = filepath.Join(f.lookup("HOME"), ".gnupg")
	}
	for _, dir := range []string{f.etc, home} {
		if dir == "" {
			continue
		}
		path := filepath.Join(dir, "gpg-agent.conf")
		if found := readOption(path, "pinentry-program"); found != "" {
			program, conf = found, path
		}
	}
	return program, conf
}

// named resolves the program that a file names. If it is not there no other is
// taken in its place: gpg-agent takes none either.
func (f finder) named(program, conf string) (string, error) {
	path := program
	if rest, ok := strings.CutPrefix(program, "~/"); ok {
		path = filepath.Join(f.lookup("HOME"), rest)
	}
	if !strings.Contains(path, "/") {
		path = f.lookUp(path)
	}
	if !filepath.IsAbs(path) || !isProgram(path) {
		return "", fmt.Errorf("%w: pinentry-program %s in %s is not a program that can be run", errNotFound, harmless(program), conf)
	}
	return path, nil
}

// readOption returns the last value of an option in one of GnuPG's files, which
// may be missing.
func readOption(path, name string) (value string) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, 1<<20))
	for lines.Scan() {
		word, rest, _ := cutSpace(strings.TrimSpace(lines.Text()))
		if word == name || word == "--"+name {
			value = unquote(rest)
		}
	}
	return value
}

// cutSpace cuts a line at its first blank.
func cutSpace(line string) (before, after string, found bool) {
	n := strings.IndexAny(line, " \t")
	if n < 0 {
		return line, "", false
	}
	return line[:n], strings.TrimSpace(line[n:]), true
}

func unquote(value string) string {
	if rest, ok := strings.CutPrefix(value, `"`); ok {
		return strings.TrimSuffix(rest, `"`)
	}
	return value
}

// builtIn asks gpgconf which pinentry GnuPG was built with.
func (f finder) builtIn() string {
	gpgconf := f.lookUp("gpgconf")
	if gpgconf == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := child.Command(ctx, time.Second, gpgconf, "--list-components")
	cmd.Env = f.environ
	cmd.Stdout = &out
	if child.Start(cmd) != nil || child.Wait(ctx, cmd) != nil {
		return ""
	}
	return component(out.String(), "pinentry")
}

// component finds the program in the list "name:description:program:", where
// colons in a field are escaped.
func component(list, name string) string {
	for line := range strings.Lines(list) {
		fields := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		if program, err := url.PathUnescape(fields[2]); err == nil {
			return program
		}
	}
	return ""
}

// names are the names that a pinentry has, in the order of their use here.
func (f finder) names() []string {
	desktop := []string{"pinentry-gnome3", "pinentry-qt", "pinentry-qt6", "pinentry-qt5", "pinentry-gtk-2", "pinentry-gtk", "pinentry-fltk", "pinentry-efl", "pinentry-x11"}
	terminal := []string{"pinentry-curses", "pinentry-tty"}
	names := append([]string{"pinentry"}, desktop...)
	if f.lookup("DISPLAY") == "" && f.lookup("WAYLAND_DISPLAY") == "" {
		return append(append([]string{"pinentry"}, terminal...), desktop...)
	}
	return append(names, terminal...)
}

// lookUp finds a program in the usual places and in PATH, "" if it is nowhere.
func (f finder) lookUp(name string) string {
	for _, dir := range append(f.bin[:len(f.bin):len(f.bin)], filepath.SplitList(f.lookup("PATH"))...) {
		if path := filepath.Join(dir, name); filepath.IsAbs(path) && isProgram(path) {
			return path
		}
	}
	return ""
}

func isProgram(path string) bool {
	if !filepath.IsAbs(path) {
		return false
	}
	_, err := exec.LookPath(path)
	return err == nil
}

func (f finder) lookup(name string) string { return lookup(f.environ, name) }

// lookup returns the last value of a variable, the one that counts.
func lookup(environ []string, name string) (value string) {
	for _, entry := range environ {
		if rest, ok := strings.CutPrefix(entry, name+"="); ok {
			value = rest
		}
	}
	return value
}
