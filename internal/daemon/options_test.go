package daemon

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

const somePrint = "SHA256:4lxxT6rzKZ1+rzaCGhsgTvq3uc9cRJNVYTCLZT0bIr8"

// TestPINLives: the option that names a key more exactly counts.
func TestPINLives(t *testing.T) {
	t.Chdir("/tmp") // which is where relative names begin
	for _, test := range []struct {
		given             []string
		file, fingerprint string
		want              time.Duration
	}{
		{nil, "/k/id.tpm", somePrint, 0},
		{[]string{"15m"}, "/k/id.tpm", somePrint, 15 * time.Minute},
		{[]string{"session"}, "", somePrint, restrict.Forever},
		{[]string{"90"}, "/k/id.tpm", somePrint, 90 * time.Second},
		{[]string{"4294967295"}, "/k/id.tpm", somePrint, 4294967295 * time.Second},
		{[]string{"id.tpm=1h"}, "/k/id.tpm", somePrint, time.Hour},
		{[]string{"id=1h"}, "/k/id.tpm", somePrint, time.Hour},
		{[]string{"id=1h"}, "/k/id", somePrint, time.Hour},
		{[]string{"i=1h"}, "/k/id.tpm", somePrint, 0},
		{[]string{"tpm=1h"}, "/k/id.tpm", somePrint, 0},
		{[]string{"id=1h"}, "", somePrint, 0},
		{[]string{"/k/id.tpm=1h"}, "/k/id.tpm", somePrint, time.Hour},
		{[]string{"/k//x/../id.tpm=1h"}, "/k/id.tpm", somePrint, time.Hour},
		{[]string{"./id.tpm=1h"}, "/tmp/id.tpm", somePrint, time.Hour},
		{[]string{"/k/id.tpm=1h"}, "/other/id.tpm", somePrint, 0},
		{[]string{"/k/a=b.tpm=1h"}, "/k/a=b.tpm", somePrint, time.Hour},
		{[]string{somePrint + "=1h"}, "/k/id.tpm", somePrint, time.Hour},
		{[]string{somePrint + "==1h"}, "/k/id.tpm", somePrint, time.Hour},
		{[]string{somePrint + "=1h"}, "/k/id.tpm", "SHA256:x", 0},
		{[]string{"15m", "id=1h"}, "/k/id.tpm", somePrint, time.Hour},
		{[]string{"id=1h", "15m"}, "/k/other.tpm", somePrint, 15 * time.Minute},
		{[]string{"session", "id=off"}, "/k/id.tpm", somePrint, 0},
		{[]string{"id=1h", "/k/id.tpm=2h", somePrint + "=3h"}, "/k/id.tpm", somePrint, 3 * time.Hour},
		{[]string{"id=1h", "/k/id.tpm=2h", somePrint + "=3h"}, "/k/id.tpm", "SHA256:x", 2 * time.Hour},
		{[]string{"id=1h", "/k/id.tpm=2h", somePrint + "=3h"}, "/l/id.tpm", "SHA256:x", time.Hour},
	} {
		lives, err := parsePINLives(test.given)
		if got := lives.of(test.file, test.fingerprint); err != nil || got != test.want {
			t.Errorf("%q: %q %s: %v, %v; want %v", test.given, test.file, test.fingerprint, got, err, test.want)
		}
	}
}

func TestPINLivesRefused(t *testing.T) {
	t.Parallel()
	for given, says := range map[string]string{
		"": "empty", "0": "cannot be remembered for 0:", "0m": "cannot be remembered for 0m:", "-1": "not a time", "-15m": "not a time", "15": "", "1.5h": "not a time",
		"99999999999999999999": "longest", "5000000000": "longest", "forever": "not a time", "off": "not a time", "Session": "not a time",
		"=15m": "missing before", "id=": "empty", "id=0": "cannot be remembered for 0:", "id=-1": "not a time", "id=1h;2h": "not a time",
		"1h;2h": "not a time", "id=1h|id=2h": "twice", "id=1h|id=off": "twice", "1h|2h": "twice", "/k/id=1h|/k/./id=2h": "twice",
		somePrint + "=1h|" + somePrint + "==2h": "twice",
	} {
		_, err := parsePINLives(strings.Split(given, "|"))
		switch {
		case says == "" && err != nil:
			t.Errorf("%q: %v", given, err)
		case says != "" && (term.Report(io.Discard, "", err) != 2 || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "--pin-ttl ")):
			t.Errorf("%q: %v, want %q", given, err, says)
		}
	}
}

func TestGivenPINs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a=file:pin"), []byte("from a file\n"))
	write(t, filepath.Join(dir, "credential"), []byte("from systemd\n"))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("from a descriptor\n"); err != nil {
		t.Fatal(err)
	}
	sys := &term.System{Environ: []string{"CREDENTIALS_DIRECTORY=" + dir}}
	given, err := parseGivenPINs(sys, []string{
		"one=file:" + filepath.Join(dir, "a=file:pin"),
		"/k/two.tpm=credential:credential",
		somePrint + "=fd:" + strconv.Itoa(passed(t, r)),
		"gone=file:" + filepath.Join(dir, "gone"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(given.hold(t.Context()), r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for name, want := range map[string]string{"/k/one.tpm": "from a file", "/k/two.tpm": "from systemd", "/k/three.tpm": ""} {
			pin, version, err := given.of(name, "SHA256:x")
			if err != nil || string(pin) != want || (version == "") != (want == "") {
				t.Errorf("%s: %q, %q, %v", name, pin, version, err)
			}
			clear(pin)
		}
		pin, version, err := given.of("/k/three.tpm", somePrint)
		if err != nil || string(pin) != "from a descriptor" || version == "" {
			t.Errorf("%q, %q, %v", pin, version, err)
		}
		clear(pin) // a copy
	}
	if pin, _, err := given.of("gone.tpm", ""); err == nil || pin != nil {
		t.Errorf("a file that is gone: %q, %v", pin, err)
	}
	given.wipe()
	if pin, _, err := given.of("", somePrint); err == nil || len(pin) != 0 {
		t.Errorf("wiped, but %q, %v", pin, err)
	}
}

func TestGivenPINsRefused(t *testing.T) {
	t.Parallel()
	for given, says := range map[string]string{
		"": "KEY=SOURCE", "id": "KEY=SOURCE", "id=1234": "KEY=SOURCE", "file:/pin": "KEY=SOURCE", "id=env:PIN": "KEY=SOURCE",
		"=file:/pin": "missing before", "id=fd:x": "number", "id=file:": "missing", "id=credential:a/b": "no name",
		"id=fd:5|other=fd:5": "once only", "id=file:/a|id=file:/b": "twice", "id=fd:5|id=fd:6": "twice",
	} {
		_, err := parseGivenPINs(&term.System{Environ: []string{"CREDENTIALS_DIRECTORY=/c"}}, strings.Split(given, "|"))
		if term.Report(io.Discard, "", err) != 2 || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "--pin-from ") {
			t.Errorf("%q: %v, want %q", given, err, says)
		}
	}
	// A descriptor that gives none: the agent does not start.
	given, err := parseGivenPINs(&term.System{}, []string{"id=fd:1000"})
	if err != nil {
		t.Fatal(err)
	}
	if err := given.hold(t.Context()); err == nil || !strings.Contains(err.Error(), "--pin-from id: taking the PIN from fd:1000: descriptor 1000 is not open") {
		t.Error(err)
	}
}

// TestOptionsForAbsentKeys are said in the log.
func TestOptionsForAbsentKeys(t *testing.T) {
	t.Parallel()
	lives, err := parsePINLives([]string{"absent=1h", somePrint + "=1h", "2h"})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	lives.keys.logUnmatched(slog.New(slog.NewTextHandler(&b, nil)), "--pin-ttl", nil)
	if strings.Count(b.String(), "\n") != 2 || !strings.Contains(b.String(), "option=--pin-ttl key=absent\n") {
		t.Errorf("%q", b.String())
	}
}

// passed returns a descriptor as a shell passes it: one that children inherit.
func passed(t *testing.T, file *os.File) int {
	t.Helper()
	fd, err := unix.Dup(int(file.Fd())) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
