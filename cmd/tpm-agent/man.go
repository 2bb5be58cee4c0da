package main

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// manPages are made from the commands and man/*.body:
// go test ./cmd/tpm-agent -run TestManPages -update
//
//go:embed man/*.1
var manPages embed.FS

type manOptions struct {
	page []string // the command, such as keygen; none: tpm-agent itself
	dir  string
}

func newManCmd(g *global) *cobra.Command {
	var o manOptions
	cmd := &cobra.Command{
		Use:   "man [COMMAND]",
		Short: "Show the manual page of a command",
		Long: `Shows the manual page of a command, or of tpm-agent itself. Without a terminal
or man(1), it prints the source of the page.`,
		Example: `  tpm-agent man keygen
  tpm-agent man serve | man -l -
  tpm-agent man --dir /usr/local/share/man/man1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.page = args
			return runMan(cmd, g.sys, o)
		},
		ValidArgsFunction: completeCommands,
	}
	cmd.Flags().StringVar(&o.dir, "dir", "", "write all pages to `DIR`")
	completeDir(cmd, "dir")
	return cmd
}

func runMan(cmd *cobra.Command, sys system, o manOptions) error {
	if o.dir != "" {
		if len(o.page) > 0 {
			return usage("--dir writes all pages, not only that of %q", o.page[0])
		}
		return writeManPages(o.dir)
	}
	name := strings.Join(append([]string{"tpm-agent"}, o.page...), "-")
	page, err := manPages.ReadFile(path.Join("man", name+".1"))
	switch {
	case err != nil && len(o.page) > 1:
		return noArgs(cmd, o.page[1:])
	case err != nil:
		return knownCommand(cmd.Root(), o.page)
	}
	man, err := exec.LookPath("man")
	if err != nil || !isTerminal(sys.stdout) {
		_, err := sys.stdout.Write(page)
		return err
	}
	viewer := exec.Command(man, "-l", "-")
	viewer.Stdin, viewer.Stdout, viewer.Stderr = bytes.NewReader(page), sys.stdout, sys.stderr
	if err := viewer.Run(); err != nil {
		return fmt.Errorf("showing the page with %s: %w", man, err)
	}
	return nil
}

// writeManPages writes every page to dir, which is made if need be.
func writeManPages(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pages, err := fs.Glob(manPages, "man/*.1")
	if err != nil {
		return err
	}
	for _, page := range pages {
		content, err := manPages.ReadFile(page)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, path.Base(page)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
