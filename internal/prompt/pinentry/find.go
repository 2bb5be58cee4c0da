package pinentry

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

var errNotFound = errors.New("no pinentry found")

// finder knows where to look for a pinentry.
type finder struct {
	environ []string
	etc     string   // where the administrator's gpg-agent.conf is
	bin     []string // where programs are, besides PATH
}

// find finds the pinentry that gpg-agent would use: the pinentry-program of
// gpg-agent.conf in $GNUPGHOME, ~/.gnupg or /etc/gnupg; else a program named
// pinentry; else one of its flavours, those for desktops first if environ has a
// display.
func find(environ []string) (string, error) {
	return finder{environ, "/etc/gnupg", []string{"/usr/bin", "/usr/local/bin"}}.find()
}

func (f finder) find() (string, error) {
	home := f.lookup("GNUPGHOME")
	if home == "" {
		home = filepath.Join(f.lookup("HOME"), ".gnupg")
	}
	for _, dir := range []string{home, f.etc} {
		conf := filepath.Join(dir, "gpg-agent.conf")
		if program := configured(conf); program != "" && filepath.IsAbs(conf) {
			return f.named(program, conf)
		}
	}
	for _, name := range f.names() {
		if program := f.lookUp(name); program != "" {
			return program, nil
		}
	}
	return "", fmt.Errorf("%w: install one (Debian: pinentry-gnome3, pinentry-qt or pinentry-curses)", errNotFound)
}

// configured returns the last pinentry-program in a file, which may be missing.
func configured(conf string) (program string) {
	data, _ := os.ReadFile(conf)
	for line := range strings.Lines(string(data)) {
		option, value, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), " ")
		if option == "pinentry-program" {
			program = strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return program
}

// named returns the program that is configured in a file. If it is missing,
// another one is not used in its place; gpg-agent does not either.
func (f finder) named(program, conf string) (string, error) {
	path := program
	if rest, ok := strings.CutPrefix(program, "~/"); ok {
		path = filepath.Join(f.lookup("HOME"), rest)
	} else if !strings.Contains(path, "/") {
		path = f.lookUp(path)
	}
	if !isProgram(path) {
		return "", fmt.Errorf("%w: pinentry-program %s in %s is not an executable file", errNotFound, prompt.Plain(program), conf)
	}
	return path, nil
}

// names returns the names of pinentries, in the order in which they are looked
// for.
func (f finder) names() []string {
	names := []string{"pinentry"}
	desktop := []string{"pinentry-gnome3", "pinentry-qt", "pinentry-qt6", "pinentry-qt5", "pinentry-gtk-2", "pinentry-gtk", "pinentry-fltk", "pinentry-efl", "pinentry-x11"}
	terminal := []string{"pinentry-curses", "pinentry-tty"}
	if f.lookup("DISPLAY") == "" && f.lookup("WAYLAND_DISPLAY") == "" {
		return append(append(names, terminal...), desktop...)
	}
	return append(append(names, desktop...), terminal...)
}

// lookUp finds a program in the usual places and in PATH. It returns "" if there
// is none.
func (f finder) lookUp(name string) string {
	for _, dir := range append(f.bin[:len(f.bin):len(f.bin)], filepath.SplitList(f.lookup("PATH"))...) {
		if path := filepath.Join(dir, name); isProgram(path) {
			return path
		}
	}
	return ""
}

func isProgram(path string) bool {
	_, err := exec.LookPath(path)
	return err == nil && filepath.IsAbs(path)
}

func (f finder) lookup(name string) string { return prompt.Lookup(f.environ, name) }
