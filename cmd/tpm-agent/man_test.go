package main

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manDate stands on every page. It is a constant, so that the same source gives
// the same pages; it changes with the contents, by hand.
const manDate = "2026-11-20"

var update = flag.Bool("update", false, "write the manual pages anew")

// TestManPages holds the embedded pages to the help of the commands. With
// -update it writes them.
func TestManPages(t *testing.T) {
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
			t.Errorf("%s is the page of no command", name)
		}
	}
	if len(pages) < 10 {
		t.Errorf("only %d pages", len(pages))
	}
}

func generate(t *testing.T, dir string) {
	t.Helper()
	date, err := time.Parse(time.DateOnly, manDate)
	if err != nil {
		t.Fatal(err)
	}
	root := newRootCmd(system{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr})
	root.Version = "" // a page does not change with each commit
	root.DisableAutoGenTag = true
	for _, cmd := range root.Commands() {
		cmd.DisableAutoGenTag = true
	}
	root.InitDefaultHelpFlag()
	header := &doc.GenManHeader{Section: "1", Date: &date, Source: "tpm-agent", Manual: "tpm-agent"}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
}

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

// Every command says what it is, and most show how it is used.
func TestHelpIsComplete(t *testing.T) {
	root := newRootCmd(system{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr})
	for _, cmd := range append([]*cobra.Command{root}, root.Commands()...) {
		if cmd.Short == "" || cmd.Long == "" && cmd.Name() != "help" {
			t.Errorf("%s has no description", cmd.CommandPath())
		}
		for _, line := range strings.Split(cmd.Long, "\n") {
			if utf8.RuneCountInString(line) > 82 {
				t.Errorf("%s: a line of %d characters: %s", cmd.CommandPath(), utf8.RuneCountInString(line), line)
			}
		}
	}
}
