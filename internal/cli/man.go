package cli

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// ManOptions are the options of the command man.
type ManOptions struct {
	Page []string // the command, such as keygen; none: tpm-agent itself
	Dir  string
}

// Man shows a manual page with man(1), or prints its source where that is not
// possible.
func Man(cmd *cobra.Command, sys *term.System, pages fs.ReadFileFS, o ManOptions) error {
	if o.Dir != "" {
		if len(o.Page) > 0 {
			return term.Usage("--dir writes all pages, not only that of %q", o.Page[0])
		}
		return writeManPages(pages, o.Dir)
	}
	name := strings.Join(append([]string{"tpm-agent"}, o.Page...), "-")
	page, err := pages.ReadFile(path.Join("man", name+".1"))
	switch {
	case err != nil && len(o.Page) > 1:
		return noArgs(cmd, o.Page[1:])
	case err != nil:
		return KnownCommand(cmd.Root(), o.Page)
	}
	man, err := exec.LookPath("man")
	if err != nil || !term.IsTerminal(sys.Stdout) {
		_, err := sys.Stdout.Write(page)
		return err
	}
	viewer := exec.Command(man, "-l", "-")
	viewer.Stdin, viewer.Stdout, viewer.Stderr = bytes.NewReader(page), sys.Stdout, sys.Stderr
	if err := viewer.Run(); err != nil {
		return fmt.Errorf("showing the page with %s: %w", man, err)
	}
	return nil
}

// writeManPages writes every page to dir, and makes dir if necessary.
func writeManPages(from fs.ReadFileFS, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pages, err := fs.Glob(from, "man/*.1")
	if err != nil {
		return err
	}
	for _, page := range pages {
		content, err := from.ReadFile(page)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, path.Base(page)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// WriteCompletion prints the completion script for a shell.
func WriteCompletion(w io.Writer, root *cobra.Command, shell string) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	}
	return term.Usage("no completion for %q: bash, zsh and fish have one", shell)
}
