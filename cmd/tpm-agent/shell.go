package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// shell is a family of shells with one way to set a variable.
type shell int

const (
	bourne shell = iota
	cShell
	fish
)

// shellForm is what was asked for with -s, -c and --fish.
type shellForm struct{ sh, csh, fish bool }

// flags adds the options; what names the thing that takes the shell's form.
func (f *shellForm) flags(cmd *cobra.Command, what string) {
	cmd.Flags().BoolVarP(&f.sh, "sh", "s", false, what+"for sh, bash, zsh and the like")
	cmd.Flags().BoolVarP(&f.csh, "csh", "c", false, what+"for csh and tcsh")
	cmd.Flags().BoolVar(&f.fish, "fish", false, what+"for fish")
}

// asked reports whether there is a choice.
func (f shellForm) asked() bool { return f.sh || f.csh || f.fish }

// shell is the one asked for, else that of the user.
func (f shellForm) shell(login string) (shell, error) {
	asked := 0
	kind := shellOf(login)
	for _, choice := range []struct {
		on   bool
		kind shell
	}{{f.sh, bourne}, {f.csh, cShell}, {f.fish, fish}} {
		if choice.on {
			asked++
			kind = choice.kind
		}
	}
	if asked > 1 {
		return kind, usage("only one of -s, -c and --fish can be asked for")
	}
	return kind, nil
}

// shellOf goes by the shell's name, as ssh-agent does.
func shellOf(path string) shell {
	switch name := filepath.Base(path); {
	case strings.HasSuffix(name, "csh"):
		return cShell
	case name == "fish":
		return fish
	}
	return bourne
}

// set is the command that sets and exports a variable.
func (s shell) set(name, value string) string {
	switch s {
	case cShell:
		return fmt.Sprintf("setenv %s %s;", name, shQuote(value))
	case fish:
		return fmt.Sprintf("set -gx %s %s;", name, fishQuote(value))
	}
	return fmt.Sprintf("%s=%s; export %s;", name, shQuote(value), name)
}

// unset is the command that removes a variable.
func (s shell) unset(name string) string {
	switch s {
	case cShell:
		return fmt.Sprintf("unsetenv %s;", name)
	case fish:
		return fmt.Sprintf("set -e %s;", name)
	}
	return fmt.Sprintf("unset %s;", name)
}

// harmless are the characters that no shell gives a meaning.
const harmless = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+,="

// shQuote quotes s for sh and csh where that is needed. (csh wants a backslash
// before an exclamation mark even in quotes; both take it outside of them.)
func shQuote(s string) string {
	if s != "" && strings.Trim(s, harmless) == "" {
		return s
	}
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(s) + "'"
}

// fishQuote quotes s for fish, where a backslash works inside single quotes.
func fishQuote(s string) string {
	if s != "" && strings.Trim(s, harmless) == "" {
		return s
	}
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}
