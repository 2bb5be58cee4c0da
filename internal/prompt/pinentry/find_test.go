package pinentry

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// The pinentry of this machine is found.
func TestFindHere(t *testing.T) {
	want := needs.Program(t, "pinentry")
	got, err := find([]string{"HOME=" + t.TempDir(), "PATH=/usr/bin:/bin"})
	if err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// machine is a machine made of files below a directory, which is written as ^ in
// texts.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T, programs ...string) machine {
	t.Helper()
	m := machine{t, t.TempDir()}
	for _, name := range programs {
		m.write(name, "#!/bin/sh\n", 0o755)
	}
	return m
}

func (m machine) write(name, text string, mode os.FileMode) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(m.expand(text)), mode); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) expand(text string) string { return strings.ReplaceAll(text, "^", m.root) }

func (m machine) find(environ ...string) (string, error) {
	for i := range environ {
		environ[i] = m.expand(environ[i])
	}
	path, err := finder{
		environ: append([]string{"HOME=" + m.root, "PATH=" + m.root + "/path"}, environ...),
		etc:     m.root + "/etc", bin: []string{m.root + "/bin"},
	}.find()
	return strings.TrimPrefix(path, m.root+"/"), err
}

func TestFindConfigured(t *testing.T) {
	for name, test := range map[string]struct{ file, text, want string }{
		"user's":         {".gnupg/gpg-agent.conf", "pinentry-program ^/opt/other\n", "opt/other"},
		"administrator":  {"etc/gpg-agent.conf", "pinentry-program ^/opt/other\n", "opt/other"},
		"GNUPGHOME":      {"gnupg/gpg-agent.conf", "pinentry-program ^/opt/other\n", "opt/other"},
		"blanks":         {".gnupg/gpg-agent.conf", "\t pinentry-program \t ^/opt/other \r\n", "opt/other"},
		"no end of line": {".gnupg/gpg-agent.conf", "no-grab\npinentry-program ^/opt/other", "opt/other"},
		"quoted":         {".gnupg/gpg-agent.conf", "pinentry-program \"^/opt/a b\"\n", "opt/a b"},
		"home":           {".gnupg/gpg-agent.conf", "pinentry-program ~/opt/other\n", "opt/other"},
		"name only":      {".gnupg/gpg-agent.conf", "pinentry-program pinentry-tty\n", "path/pinentry-tty"},
		"last one":       {".gnupg/gpg-agent.conf", "pinentry-program ^/opt/gone\npinentry-program ^/opt/other\n", "opt/other"},
		"commented out":  {".gnupg/gpg-agent.conf", "# pinentry-program ^/opt/other\n", "bin/pinentry"},
		"other option":   {".gnupg/gpg-agent.conf", "pinentry-program-x ^/opt/other\npinentry-touch-file ^/x\n", "bin/pinentry"},
		"no value":       {".gnupg/gpg-agent.conf", "pinentry-program\n", "bin/pinentry"},
		"binary":         {".gnupg/gpg-agent.conf", strings.Repeat("\x00\xff", 1<<20), "bin/pinentry"},
		"no file":        {"x", "", "bin/pinentry"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, "bin/pinentry", "opt/other", "opt/a b", "path/pinentry-tty")
			m.write(test.file, test.text, 0o600)
			environ := []string{}
			if strings.HasPrefix(test.file, "gnupg") {
				environ = append(environ, "GNUPGHOME=^/gnupg")
			}
			if got, err := m.find(environ...); err != nil || got != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestFindUserBeforeAdministrator(t *testing.T) {
	m := newMachine(t, "opt/mine", "opt/theirs")
	m.write("etc/gpg-agent.conf", "pinentry-program ^/opt/theirs\n", 0o644)
	m.write(".gnupg/gpg-agent.conf", "pinentry-program ^/opt/mine\n", 0o644)
	if got, err := m.find(); err != nil || got != "opt/mine" {
		t.Errorf("got %q, %v", got, err)
	}
}

// If the configured program cannot be run, no other one is used in its place.
func TestFindConfiguredIsMissing(t *testing.T) {
	for _, value := range []string{"^/opt/gone", "^/opt", "gone", "./bin/pinentry", "^/opt/plain", "^/x\x1b[31m"} {
		m := newMachine(t, "bin/pinentry")
		m.write("opt/plain", "", 0o644)
		m.write(".gnupg/gpg-agent.conf", "pinentry-program "+value+"\n", 0o600)
		got, err := m.find()
		if !errors.Is(err, errNotFound) || !strings.Contains(err.Error(), ".gnupg/gpg-agent.conf") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: got %q, %v", value, got, err)
		}
	}
}

func TestFindByName(t *testing.T) {
	for name, test := range map[string]struct {
		programs []string
		environ  string
		want     string
	}{
		"usual place":         {[]string{"bin/pinentry", "path/pinentry", "bin/pinentry-qt"}, "", "bin/pinentry"},
		"PATH":                {[]string{"path/pinentry", "bin/pinentry-qt"}, "", "path/pinentry"},
		"no display":          {[]string{"bin/pinentry-qt", "bin/pinentry-curses", "bin/pinentry-tty"}, "", "bin/pinentry-curses"},
		"X display":           {[]string{"bin/pinentry-qt", "bin/pinentry-curses"}, "DISPLAY=:0", "bin/pinentry-qt"},
		"Wayland":             {[]string{"bin/pinentry-qt", "bin/pinentry-gnome3", "bin/pinentry-curses"}, "WAYLAND_DISPLAY=wayland-0", "bin/pinentry-gnome3"},
		"display set to none": {[]string{"bin/pinentry-qt", "bin/pinentry-curses"}, "DISPLAY=", "bin/pinentry-curses"},
		"only tty":            {[]string{"path/pinentry-tty"}, "DISPLAY=:0", "path/pinentry-tty"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, test.programs...)
			if got, err := m.find(test.environ); err != nil || got != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestFindNothing(t *testing.T) {
	m := newMachine(t)
	m.write("bin/pinentry", "not a program", 0o644)
	m.write("bin/pinentry-qt/x", "", 0o755)
	got, err := m.find("PATH=.:relative:")
	if !errors.Is(err, errNotFound) || !strings.Contains(err.Error(), "pinentry-gnome3") {
		t.Errorf("got %q, %v", got, err)
	}
}
