package term

import (
	"fmt"
	"path/filepath"
	"strings"
)

// A Shell is a family of shells with one way to set a variable.
type Shell int

const (
	bourne Shell = iota
	cShell
	fish
)

// ShellForm holds the flags -s, -c and --fish.
type ShellForm struct{ Sh, Csh, Fish bool }

// Asked reports whether one of the flags was given.
func (f ShellForm) Asked() bool { return f != ShellForm{} }

// Shell returns the shell of the flag that was given, or else the user's own.
func (f ShellForm) Shell(sys *System) (Shell, error) {
	switch f {
	case ShellForm{Sh: true}:
		return bourne, nil
	case ShellForm{Csh: true}:
		return cShell, nil
	case ShellForm{Fish: true}:
		return fish, nil
	case ShellForm{}:
		return shellOf(sys.Getenv("SHELL")), nil
	}
	return bourne, Usage("only one of -s, -c and --fish can be used")
}

// shellOf returns the family of a shell by its name, as ssh-agent does.
func shellOf(path string) Shell {
	switch name := filepath.Base(path); {
	case strings.HasSuffix(name, "csh"):
		return cShell
	case name == "fish":
		return fish
	}
	return bourne
}

// Set returns the command that sets and exports a variable.
func (s Shell) Set(name, value string) string {
	switch s {
	case cShell:
		return fmt.Sprintf("setenv %s %s;", name, Quote(value))
	case fish:
		return fmt.Sprintf("set -gx %s %s;", name, fishQuote(value))
	}
	return fmt.Sprintf("%s=%s; export %s;", name, Quote(value), name)
}

// Unset returns the command that removes a variable.
func (s Shell) Unset(name string) string {
	return map[Shell]string{bourne: "unset ", cShell: "unsetenv ", fish: "set -e "}[s] + name + ";"
}

// harmless are the characters that have no special meaning in any shell.
const harmless = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+,="

// Quote quotes s for sh and csh if necessary. (csh needs a backslash before an
// exclamation mark even in quotes; both accept it outside of them.)
func Quote(s string) string { return quote(s, "'", `'\''`, "!", `'\!'`) }

// fishQuote quotes s for fish, where a backslash works inside single quotes.
func fishQuote(s string) string { return quote(s, `\`, `\\`, "'", `\'`) }

func quote(s string, escapes ...string) string {
	if s != "" && strings.Trim(s, harmless) == "" {
		return s
	}
	return "'" + strings.NewReplacer(escapes...).Replace(s) + "'"
}
