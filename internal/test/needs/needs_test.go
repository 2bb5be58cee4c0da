package needs

import (
	"fmt"
	"strings"
	"testing"
)

// skipped is a test that remembers why it was skipped.
type skipped struct {
	testing.TB
	why string
}

func (s *skipped) Helper() {}

func (s *skipped) Skipf(format string, args ...any) {
	s.why = fmt.Sprintf(format, args...)
	panic(s)
}

// run reports why a function skips its test.
func run(f func(t testing.TB)) (why string) {
	s := &skipped{}
	defer func() {
		if recover() != nil {
			why = s.why
		}
	}()
	f(s)
	return ""
}

func TestProgram(t *testing.T) {
	if path := Program(t, "sh"); !strings.HasSuffix(path, "/sh") {
		t.Errorf("sh is at %q", path)
	}
	t.Setenv("PATH", t.TempDir())
	for name, want := range map[string]string{
		"tpm2_create": "needs tpm2_create: install the package tpm2-tools, or run make deps",
		"ssh-add":     "needs ssh-add: install the package openssh-client, or run make deps",
		"swtpm":       "needs swtpm: install the package swtpm, or run make deps",
	} {
		if got := run(func(t testing.TB) { Programs(t, name) }); got != want {
			t.Errorf("%s: skipped with %q, want %q", name, got, want)
		}
	}
}
