package knownhosts

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGuesses(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"ssh host":                                "host",
		"ssh me@host.example uptime":              "host.example uptime",
		"ssh -p 2222 me@host":                     "host [host]:2222",
		"ssh -p2222 me@host":                      "host [host]:2222",
		"ssh -oPort=2222 -o HostName=real alias":  "real alias [real]:2222 [alias]:2222",
		"ssh ssh://git@host.example:2222/x/y":     "host.example [host.example]:2222",
		"ssh ssh://host/":                         "host",
		"ssh -J a@gate:22,other host":             "gate other host [gate]:22 [other]:22 [host]:22",
		"ssh -Jgate host":                         "gate host",
		"ssh 2001:db8::1":                         "2001:db8::1",
		"ssh [2001:db8::1]:22":                    "2001:db8::1 [2001:db8::1]:22",
		"ssh -W host:22 gate":                     "host gate [host]:22 [gate]:22",
		"ssh git@host git-receive-pack_'x/y.git'": "host",
		"ssh":                               "",
		"ssh - -- @ : , [ [] -p = ssh:// /": "",
		"ssh 99999 123456":                  "123456 [123456]:99999",
		"host":                              "",
	} {
		args := strings.Fields(line)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "_", " ")
		}
		if got := Guesses(args, ""); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	var many []string
	for i := range 1000 {
		many = append(many, strings.Repeat("x", i), strconv.Itoa(i))
	}
	if got := len(Guesses(many, "")); got != maxGuesses {
		t.Errorf("%d guesses", got)
	}
}

// TestAliases reads the names that a configuration has for other names.
func TestAliases(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("Host gh # a comment\n  HostName github.com\n\tPort=2222\nhostname \"%h.example.org\"\n"+
		"HostKeyAlias alias\nHostName\n#HostName no.example\nUser HostName\r\nhostname=last.example\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := words(path), []string{"github.com", "2222", "%h.example.org", "alias", "last.example"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got := Guesses([]string{"ssh", "gh"}, "/nowhere", path, "/nowhere/else")
	for _, want := range []string{"gh", "github.com", "[github.com]:2222", "gh.example.org", "alias"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not among %q", want, got)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for _, path := range []string{fifo, t.TempDir(), "/nowhere/config"} {
		if got := words(path); got != nil {
			t.Errorf("%s has %q", path, got)
		}
	}
}

// words returns the words that the configuration at path has for hosts.
func words(path string) []string {
	a := aliases{home: "/nowhere", dir: filepath.Dir(path), read: make(map[string]bool)}
	a.add(path)
	return a.words
}

// TestIncludedAliases checks that files are included from where ssh looks for
// them, and that a file may include itself.
func TestIncludedAliases(t *testing.T) {
	t.Parallel()
	home, dir := t.TempDir(), t.TempDir()
	config := filepath.Join(dir, "config")
	for path, content := range map[string]string{
		config:                          "Include conf.d/* ~/more\nHost x\n\tInclude=\"" + dir + "/absolute\" [ none\n",
		filepath.Join(dir, "conf.d/1"):  "HostName one.example\nInclude beside\n",
		filepath.Join(dir, "conf.d/2"):  "HostName two.example\n",
		filepath.Join(dir, "beside"):    "HostName beside.example\n", // of the first file
		filepath.Join(dir, "absolute"):  "Port 2222\nInclude config\n",
		filepath.Join(home, "more"):     "HostKeyAlias more.example\n",
		filepath.Join(home, "conf.d/3"): "HostName no.example\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	got := Guesses(nil, home, config)
	slices.Sort(got)
	if want := []string{"beside.example", "more.example", "one.example", "two.example"}; !slices.Equal(got[4:], want) ||
		!slices.Contains(got, "[one.example]:2222") || len(got) != 8 {
		t.Errorf("got %q, want %q, each with the port and without", got, want)
	}
}

func FuzzGuesses(f *testing.F) {
	f.Add("ssh\x00-p\x002222\x00me@host")
	f.Add("ssh\x00ssh://me@[2001:db8::1]:2222/x")
	f.Add("ssh\x00-J\x00a@b:1,c\x00-oPort=3\x00d")
	f.Fuzz(func(t *testing.T, line string) {
		got := Guesses(strings.Split(line, "\x00"), "")
		if len(got) > maxGuesses {
			t.Errorf("%d guesses", len(got))
		}
		for _, guess := range got {
			host := strings.TrimPrefix(guess, "[")
			host, _, _ = strings.Cut(host, "]:")
			if guess == "" || !strings.Contains(line, host) {
				t.Errorf("%q is not in the arguments", guess)
			}
		}
	})
}
