package pinsource

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

func sourceOf(t *testing.T, spec string, environ ...string) *Source {
	t.Helper()
	p, err := Parse(&term.System{Environ: environ}, spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPINSourceSpecs: a bad source is refused before anything is opened.
func TestPINSourceSpecs(t *testing.T) {
	t.Parallel()
	credentials := "CREDENTIALS_DIRECTORY=" + t.TempDir()
	for spec, says := range map[string]string{
		"": "no source", "1234": "no source", "pin": "no source", "env:PIN": "no source", "FD:3": "no source",
		"fd": "fd:3", "fd:": "fd:3", "fd:-1": "fd:3", "fd:x": "fd:3", "fd:99999999999": "fd:3", "fd:1": "output", "fd:2": "output",
		"file": "missing", "file:": "missing",
		"credential": "no name", "credential:": "no name", "credential:..": "no name", "credential:a/b": "no name",
		"credential:../x": "no name", "credential:a\x00b": "no name", "credential:a\nb": "no name",
	} {
		_, err := Parse(&term.System{Environ: []string{credentials}}, spec)
		if term.Report(io.Discard, "", err) != 2 || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", spec, err, says)
		}
	}
	for _, environ := range [][]string{nil, {"CREDENTIALS_DIRECTORY="}, {"CREDENTIALS_DIRECTORY=credentials"}} {
		_, err := Parse(&term.System{Environ: environ}, "credential:pin")
		if err == nil || !strings.Contains(err.Error(), "CREDENTIALS_DIRECTORY is not set") || !strings.Contains(reported(err), "hint: they come from systemd: LoadCredential=pin:") {
			t.Errorf("%q: %v", environ, err)
		}
	}
}

// pinContents are what files and descriptors may hold: says is empty for a PIN.
var pinContents = map[string]struct{ content, pin, says string }{
	"one octet":       {"1", "1", ""},
	"a line":          {"1234\n", "1234", ""},
	"as Windows says": {"1234\r\n", "1234", ""},
	"spaces":          {" 12 34 ", " 12 34 ", ""},
	"UTF-8":           {"gr\u00fc\u00dfe \U0001f511\n", "gr\u00fc\u00dfe \U0001f511", ""},
	"no UTF-8":        {"\xff\xfe", "\xff\xfe", ""},
	"32":              {strings.Repeat("x", 32), strings.Repeat("x", 32), ""},
	"33":              {strings.Repeat("x", 33) + "\n", strings.Repeat("x", 33), ""},
	"1000":            {strings.Repeat("x", 1000), strings.Repeat("x", 1000), ""},
	"1024":            {strings.Repeat("x", 1024) + "\r\n", strings.Repeat("x", 1024), ""},
	"1025":            {strings.Repeat("x", 1025), "", "longer than 1024"},
	"1 MiB":           {strings.Repeat("x", 1<<20), "", "longer than 1024"},
	"nothing":         {"", "", "it is empty"},
	"empty line":      {"\n", "", "it is empty"},
	"NUL":             {"12\x0034\n", "", "NUL"},
	"NUL at the end":  {"1234\x00", "", "NUL"},
}

func TestPINFile(t *testing.T) {
	t.Parallel()
	for name, test := range pinContents {
		for _, credential := range []bool{false, true} {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "pin"), []byte(test.content))
			p := sourceOf(t, "file:"+filepath.Join(dir, "pin"))
			if credential {
				p = sourceOf(t, "credential:pin", "CREDENTIALS_DIRECTORY="+dir)
			}
			for range 2 { // it can be read as often as one likes
				pin, version, err := p.Read(t.Context())
				checkPINRead(t, name, pin, err, test.pin, test.says)
				if (err == nil) != (version != "") {
					t.Errorf("%s: version %q", name, version)
				}
			}
		}
	}
	two := filepath.Join(t.TempDir(), "pin")
	write(t, two, []byte("1234\n5678\n"))
	_, _, err := sourceOf(t, "file:"+two).Read(t.Context())
	checkPINRead(t, "two lines", nil, err, "", "more than one line")
}

func checkPINRead(t *testing.T, name string, pin []byte, err error, want, says string) {
	t.Helper()
	switch {
	case says == "" && (err != nil || string(pin) != want):
		t.Errorf("%s: %q, %v", name, pin, err)
	case says != "" && (err == nil || pin != nil || !strings.Contains(err.Error(), says)):
		t.Errorf("%s: %q, %v; want %q", name, pin, err, says)
	}
}

// TestPINFileVersion: another content, or another file in its place, has another
// version; the version does not have the PIN in it.
func TestPINFileVersion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pin")
	p := sourceOf(t, "file:"+path)
	seen := make(map[string]bool)
	for i, content := range []string{"90210-one", "90210-two", "90210-three"} {
		if i == 1 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		write(t, path, []byte(content))
		// The kernel's clock of files is coarse: another time in any case.
		when := time.Unix(int64(1e9+i), 0)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
		_, version, err := p.Read(t.Context())
		if err != nil || seen[version] || strings.Contains(version, "90210") {
			t.Errorf("%s: %q, %v", content, version, err)
		}
		seen[version] = true
	}
}

// TestPINFilesRefused: files that others can read, and what are no files, are refused
// with what to do about it.
func TestPINFilesRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, mode := range []os.FileMode{0o604, 0o640, 0o620, 0o601, 0o644, 0o666} {
		name := "mode" + strconv.FormatInt(int64(mode), 8)
		write(t, path(name), []byte("1234"))
		if err := os.Chmod(path(name), mode); err != nil {
			t.Fatal(err)
		}
		_, _, err := sourceOf(t, "file:"+path(name)).Read(t.Context())
		if err == nil || !strings.Contains(err.Error(), "others than you") || !strings.Contains(reported(err), "hint: chmod 600 "+path(name)) {
			t.Errorf("%o: %v", mode, err)
		}
	}
	write(t, path("only-read"), []byte("1234"))
	if err := errors.Join(os.Chmod(path("only-read"), 0o400), os.Symlink("only-read", path("link")), os.Symlink("mode644", path("open-link")),
		os.Symlink("loop", path("loop")), os.Mkdir(path("dir"), 0o700), unix.Mkfifo(path("fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string]string{
		"only-read": "", "link": "", "open-link": "others than you", "loop": "too many levels",
		"dir": "not a regular file", "fifo": "not a regular file", "none": "does not exist",
	} {
		pin, _, err := sourceOf(t, "file:"+path(name)).Read(t.Context())
		checkPINRead(t, name, pin, err, "1234", says)
		if says != "" && strings.Count(err.Error(), path(name)) != 1 {
			t.Errorf("%s is not named once: %v", name, err)
		}
	}
	_, _, err := sourceOf(t, "file:/dev/null").Read(t.Context())
	checkPINRead(t, "/dev/null", nil, err, "", "not a regular file")
	if os.Geteuid() == 0 {
		if err := os.Chown(path("only-read"), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		_, _, err := sourceOf(t, "file:"+path("link")).Read(t.Context())
		checkPINRead(t, "somebody's", nil, err, "", "another user (uid 65534)")
	}
}

// TestCredentialsRefused: a credential may have the group bits of an access
// control list, but is nobody else's.
func TestCredentialsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"list": 0o440, "open": 0o444} {
		write(t, filepath.Join(dir, name), []byte("1234"))
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, says := range map[string]string{"list": "", "open": "others than you", "none": "no such credential"} {
		pin, _, err := sourceOf(t, "credential:"+name, "CREDENTIALS_DIRECTORY="+dir).Read(t.Context())
		checkPINRead(t, name, pin, err, "1234", says)
		if err != nil && !strings.HasPrefix(err.Error(), "taking the PIN from credential:"+name+": ") {
			t.Error(err)
		}
	}
}

// passed is a descriptor as a shell passes it: one that children inherit.
func passed(t *testing.T, file *os.File) int {
	t.Helper()
	fd, err := unix.Dup(int(file.Fd())) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestPINDescriptor(t *testing.T) {
	t.Parallel()
	for name, test := range pinContents {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = w.WriteString(test.content)
			w.Close()
		}()
		p := sourceOf(t, "fd:"+strconv.Itoa(passed(t, r)))
		pin, _, err := p.Read(t.Context())
		checkPINRead(t, name, pin, err, test.pin, test.says)
		if err := unix.Close(p.FD); !errors.Is(err, syscall.EBADF) {
			t.Errorf("%s: the descriptor stays open: %v", name, err)
		}
		_, _, err = p.Read(t.Context())
		checkPINRead(t, name+", again", nil, err, "", "is not open")
		r.Close()
	}
}

// TestPINDescriptorLine: the first line is the PIN. What follows is not waited
// for, and on standard input is left for others.
func TestPINDescriptorLine(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // not before
	if _, err := w.WriteString("1234\nrest"); err != nil {
		t.Fatal(err)
	}
	pin, _, err := sourceOf(t, "fd:"+strconv.Itoa(passed(t, r))).Read(t.Context())
	checkPINRead(t, "line", pin, err, "1234", "")
	rest := make([]byte, 10)
	if n, err := r.Read(rest); err != nil || string(rest[:n]) != "rest" {
		t.Errorf("%q, %v", rest[:n], err)
	}
}

// TestPINDescriptorsRefused: descriptors that were not passed.
func TestPINDescriptorsRefused(t *testing.T) {
	t.Parallel()
	own, err := os.Open(os.DevNull) // with close-on-exec: of this program
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	passedDir := passed(t, dir)
	defer unix.Close(passedDir)
	for fd, says := range map[int]string{1000: "is not open", int(own.Fd()): "is not open", passedDir: "directory"} {
		_, _, err := sourceOf(t, "fd:"+strconv.Itoa(fd)).Read(t.Context())
		checkPINRead(t, strconv.Itoa(fd), nil, err, "", says)
	}
}

// TestPINDescriptorGivenUp: what never comes is not waited for for ever.
func TestPINDescriptorGivenUp(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { cancel(stop) })
	if pin, _, err := sourceOf(t, "fd:"+strconv.Itoa(passed(t, r))).Read(ctx); !errors.Is(err, stop) || pin != nil {
		t.Errorf("%q, %v", pin, err)
	}
}

// FuzzPINSource: whatever is given, either it is refused or it is a source that
// names one place.
func FuzzPINSource(f *testing.F) {
	for _, seed := range []string{"fd:3", "fd:0", "file:/x", "file:", "credential:a", "credential:../a", "x=y", "fd:00003"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		p, err := Parse(&term.System{Environ: []string{"CREDENTIALS_DIRECTORY=/credentials"}}, spec)
		switch {
		case err != nil:
			if term.Report(io.Discard, "", err) != 2 {
				t.Errorf("%q: %v", spec, err)
			}
		case p.FD >= 0 && (p.FD == 1 || p.FD == 2 || p.path != ""),
			p.FD < 0 && !filepath.IsAbs(p.path),
			p.granted && filepath.Dir(p.path) != "/credentials":
			t.Errorf("%q: %+v", spec, p)
		}
	})
}

// FuzzPINContent: a PIN has no line end and no NUL, and is not empty.
func FuzzPINContent(f *testing.F) {
	for _, content := range pinContents {
		f.Add([]byte(content.content), true)
		f.Add([]byte(content.content), false)
	}
	f.Fuzz(func(t *testing.T, content []byte, descriptor bool) {
		p := &Source{FD: -1}
		if descriptor {
			p.FD = 3
		}
		pin, err := p.content(bytes.NewReader(content))
		if err == nil && (len(pin) == 0 || len(pin) > maxPIN || bytes.ContainsAny(pin, "\x00\n") || !bytes.HasPrefix(content, pin)) {
			t.Errorf("%q: %q", content, pin)
		}
	})
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// reported returns what the user reads of an error.
func reported(err error) string {
	var b strings.Builder
	term.Report(&b, "", err)
	return b.String()
}
