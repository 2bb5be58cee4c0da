package keydir

import (
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// FuzzFile writes files beside a good key, under each kind of name.
func FuzzFile(f *testing.F) {
	k, stranger, ca := newKey(f), newKey(f), newCA(f)
	for _, seed := range []string{
		"", "\n\n", k.line("comment"), stranger.line("comment"), k.certificate(f, ca, 1),
		stranger.certificate(f, ca, 1), string(k.pem), string(stranger.pem), string(k.pem[:200]),
		"ssh-rsa !!!!", "-----BEGIN TSS2 KEY BLOB-----", strings.Repeat("x", 70_000),
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	write(f, dir+"/id.tpm", k.pem)
	x, err := Open([]string{dir}, nil)
	must(f, err)
	f.Cleanup(func() { x.Close() })
	f.Fuzz(func(t *testing.T, data []byte) {
		names := []string{"id.pub", "id-cert.pub", "other", "third.tpm"}
		for _, name := range names {
			write(t, dir+"/"+name, data)
		}
		list := x.Entries()
		if !slices.ContainsFunc(list, func(e *Entry) bool { return string(e.Public.Marshal()) == string(k.public.Marshal()) }) {
			t.Errorf("the good key is gone; problems are %v", x.Problems())
		}
		for _, e := range list {
			if e.Comment == "" || len(e.Comment) > maxComment || !utf8.ValidString(e.Comment) || strings.ContainsAny(e.Comment, "\n\x00\x1b") {
				t.Errorf("%s has the comment %q", e.Path, e.Comment)
			}
			for _, c := range e.Certificates {
				if string(c.Key.Marshal()) != string(e.Public.Marshal()) {
					t.Errorf("%s has a certificate for a different key", e.Path)
				}
			}
		}
		for _, name := range names {
			must(t, os.Remove(dir+"/"+name))
		}
		if n := len(x.Entries()); n != 1 {
			t.Errorf("%d keys are listed in the end", n)
		}
	})
}

// FuzzEvents checks that no queue content makes parse leave the buffer.
func FuzzEvents(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, unix.SizeofInotifyEvent))
	f.Add(append([]byte{1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0}, "id\x00\x00"...))
	f.Add([]byte{1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		var ch changes
		ch.parse(data)
		for name := range ch.names {
			if name == "" || strings.ContainsRune(name, 0) {
				t.Errorf("%q is not a name", name)
			}
		}
	})
}
