package knownhosts

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGuesses(t *testing.T) {
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
		"ssh":                                 "",
		"ssh - -- @ : , [ [] -p = ssh:// a/b": "",
		"ssh 99999 123456":                    "123456 [123456]:99999",
		"host":                                "",
	} {
		args := strings.Fields(line)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "_", " ")
		}
		if got := guess(args, nil); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	var many []string
	for i := range 1000 {
		many = append(many, strings.Repeat("x", i), strconv.Itoa(i))
	}
	if got := len(guess(many, many)); got != maxGuesses {
		t.Errorf("%d guesses", got)
	}
}

// TestAliases: what ssh has for a name is known, but not for which.
func TestAliases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("Host gh # a comment\n  HostName github.com\n\tPort=2222\nhostname \"%h.example.org\"\n"+
		"HostKeyAlias alias\nHostName\n#HostName no.example\nUser HostName\r\nhostname=last.example\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	words := aliases(path)
	if want := []string{"github.com", "2222", "%h.example.org", "alias", "last.example"}; !slices.Equal(words, want) {
		t.Errorf("%q, want %q", words, want)
	}
	got := Guesses([]string{"ssh", "gh"}, path)
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
		if got := aliases(path); got != nil {
			t.Errorf("%s has %q", path, got)
		}
	}
}

func FuzzGuesses(f *testing.F) {
	f.Add("ssh\x00-p\x002222\x00me@host")
	f.Add("ssh\x00ssh://me@[2001:db8::1]:2222/x")
	f.Add("ssh\x00-J\x00a@b:1,c\x00-oPort=3\x00d")
	f.Fuzz(func(t *testing.T, line string) {
		got := guess(strings.Split(line, "\x00"), nil)
		if len(got) > maxGuesses {
			t.Errorf("%d guesses", len(got))
		}
		for _, guess := range got {
			host := strings.TrimPrefix(guess, "[")
			host, _, _ = strings.Cut(host, "]:")
			if guess == "" || !strings.Contains(line, host) {
				t.Errorf("%q came from nowhere", guess)
			}
		}
	})
}
