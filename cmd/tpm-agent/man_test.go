package main

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// manDate is the date on every page. It is a constant, so the same source makes the
// same pages. Change it when the contents change.
const manDate = "2026-11-30"

var update = flag.Bool("update", false, "rewrite the manual pages")

// TestManPages checks that the embedded pages match the commands and their bodies,
// man/*.body. With -update it rewrites the pages.
func TestManPages(t *testing.T) {
	t.Parallel()
	want := t.TempDir()
	generate(t, want)
	if *update {
		old, err := filepath.Glob("man/*.1")
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range old {
			if err := os.Remove(page); err != nil {
				t.Fatal(err)
			}
		}
		generate(t, "man")
		return
	}
	pages := readPages(t, os.DirFS(want))
	embedded, err := fs.Sub(manPages, "man")
	if err != nil {
		t.Fatal(err)
	}
	have := readPages(t, embedded)
	for name, page := range pages {
		if have[name] != page {
			t.Errorf("%s is not up to date: go test ./cmd/tpm-agent -run TestManPages -update", name)
		}
	}
	for name := range have {
		if pages[name] == "" {
			t.Errorf("%s belongs to no command", name)
		}
	}
	if len(pages) < 10 {
		t.Errorf("only %d pages", len(pages))
	}
}

// generate writes the pages of all commands to dir.
func generate(t *testing.T, dir string) {
	t.Helper()
	root := wholeProgram()
	for _, cmd := range append([]*cobra.Command{root}, root.Commands()...) {
		if cmd.Name() == "help" {
			continue
		}
		cmd.InitDefaultHelpFlag()
		body, err := os.ReadFile(filepath.Join("man", cmd.Name()+".body"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(body)) {
			if n := utf8.RuneCountInString(line); strings.HasPrefix(line, "  ") && n > 70 {
				t.Errorf("%s: the page has no room for an indented line of %d characters: %s", cmd.Name(), n, line)
			}
		}
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
		page := manPage(cmd, strings.TrimSuffix(string(body), "\n"), manDate)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// readPages returns the pages in dir by file name.
func readPages(t *testing.T, dir fs.FS) map[string]string {
	t.Helper()
	names, err := fs.Glob(dir, "*.1")
	if err != nil {
		t.Fatal(err)
	}
	pages := make(map[string]string)
	for _, name := range names {
		content, err := fs.ReadFile(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = string(content)
	}
	return pages
}

// TestHelpIsComplete checks that every command describes itself, shows what to type
// within ten lines, and fits in 80 columns.
func TestHelpIsComplete(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	root := wholeProgram()
	root.SetOut(&out)
	for _, cmd := range append([]*cobra.Command{root}, root.Commands()...) {
		if cmd.Short == "" || cmd.Long == "" && cmd.Name() != "help" {
			t.Errorf("%s has no description", cmd.CommandPath())
		}
		out.Reset()
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(out.String(), "\n")
		usage := slices.Index(lines, "Usage:")
		if usage < 0 || usage >= 10 {
			t.Errorf("%s: the usage is on line %d of the help", cmd.CommandPath(), usage+1)
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > 80 {
				t.Errorf("%s: a line of %d characters: %s", cmd.CommandPath(), n, line)
			}
		}
	}
}

// TestManEnvironment checks that the page names every environment variable that the
// source reads.
func TestManEnvironment(t *testing.T) {
	t.Parallel()
	reads := regexp.MustCompile(`(?:[gG]etenv|[lL]ookup)\((?:\w+(?:\.\w+)?, )?"([A-Z][A-Z_]+)"\)`)
	ours := []string{
		"GODEBUG", "JOURNAL_STREAM", "LISTEN_PIDFDID", // passed on by the runtime and by systemd
		"PATH", "TERM", // read by most programs
	}
	page := readPages(t, os.DirFS("man"))["tpm-agent.1"]
	_, environment, _ := strings.Cut(page, ".SH ENVIRONMENT")
	found := 0
	for _, pattern := range []string{"*.go", "../../internal/*/*.go", "../../internal/prompt/*/*.go"} {
		sources, err := filepath.Glob(pattern)
		if err != nil || len(sources) == 0 {
			t.Fatal(pattern, err)
		}
		for _, source := range sources {
			if strings.HasSuffix(source, "_test.go") {
				continue
			}
			code, err := os.ReadFile(source)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range reads.FindAllStringSubmatch(string(code), -1) {
				found++
				if !strings.Contains(environment, m[1]) && !slices.Contains(ours, m[1]) {
					t.Errorf("%s reads %s, which is not in the manual page", source, m[1])
				}
			}
		}
	}
	if found < 15 {
		t.Errorf("found only %d places that read the environment", found)
	}
}

// TestManText checks that manText escapes text that man(7) would take for a request.
func TestManText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		".ssh is hidden":            "\\&.ssh is hidden\n",
		"it's a back\\slash -x":     "it\\(aqs a back\\eslash \\-x\n",
		"one\n\ntwo":                "one\n.PP\ntwo\n",
		"one\n\n# Two\nthree":       "one\n.SS Two\nthree\n",
		"these:\n  a  b\n  'c\nend": "these:\n.sp 0.5v\n.RS 4\n.nf\na  b\n\\(aqc\n.fi\n.RE\nend\n",
	} {
		if got := manText(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// wholeProgram returns the root command with all subcommands.
func wholeProgram() *cobra.Command {
	sys := &term.System{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	root := newRootCmd(sys)
	cli.Add(root, sys, commands, nil)
	return root
}
