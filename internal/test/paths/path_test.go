package main

import (
	"strings"
	"testing"
)

func TestParseLine(t *testing.T) {
	t.Parallel()
	const ours = "github.com/tpm-agent/tpm-agent/"
	cases := map[string]function{
		ours + "internal/tcti/conn.go:12:\t*Conn.Send\t81.2%":  {"internal/tcti", "conn.go", "internal/tcti/conn.go:12", "*Conn.Send"},
		ours + "agent/sign.go:7:   digest  0.1%":               {"agent", "sign.go", "agent/sign.go:7", "digest"},
		ours + "agent/sign.go:7:   digest  0.0%":               {},
		ours + "cmd/tpm-agent/" + hookFile + ":9: count 50.0%": {},
		"example.com/other/x.go:1: f 100.0%":                   {},
		"total  (statements)  12.3%":                           {},
		"":                                                     {},
	}
	for line, want := range cases {
		got, ok := parseLine(line)
		if got != want || ok != (want != function{}) {
			t.Errorf("%q: %+v, %v, want %+v", line, got, ok, want)
		}
	}
}

func TestRoute(t *testing.T) {
	t.Parallel()
	p := route{
		{"agent", "sign.go", "agent/sign.go:1", "sign"},
		{"agent", "sign.go", "agent/sign.go:9", "digest"},
		{"cmd/x", "main.go", "cmd/x/main.go:1", "main"},
	}
	if p.files() != 2 || p.packages() != 2 || !p.entersMain() || p[:2].entersMain() {
		t.Errorf("%d files in %d packages, main %v and %v; want 2, 2, true, false", p.files(), p.packages(), p.entersMain(), p[:2].entersMain())
	}
	limits := []struct {
		s    scene
		want bool
	}{
		{scene{functions: 3, files: 2, packages: 2}, false},
		{scene{functions: 2, files: 2, packages: 2}, true},
		{scene{functions: 3, files: 1, packages: 2}, true},
		{scene{functions: 3, files: 2, packages: 1}, true},
		{scene{functions: 3, files: 2, packages: 2, withoutMain: true}, true},
	}
	for _, l := range limits {
		if got := p.exceeds(l.s); got != l.want {
			t.Errorf("%+v: %v, want %v", l.s, got, l.want)
		}
	}
	var out strings.Builder
	p.print(&out)
	if want := "  agent: 2 functions in 1 files\n    sign.go: sign digest\n"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("printed %q, want it to begin with %q", out.String(), want)
	}
}
