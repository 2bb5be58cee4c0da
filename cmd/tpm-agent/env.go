package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

type envOptions struct {
	socket            string
	sh, csh, fishForm bool
}

func newEnvCmd(g *global) *cobra.Command {
	var o envOptions
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print what a shell must run to use the agent",
		Long: `Prints the command that sets SSH_AUTH_SOCK to the agent's socket, for the shell
to run. The form is that of the shell that the variable SHELL names, unless one
is asked for.

It does not start the agent and does not ask whether it runs: a socket that
systemd listens on is there before the agent is.`,
		Example: `  eval "$(tpm-agent env)"        # sh, bash, zsh
  eval ` + "`tpm-agent env -c`" + `          # csh, tcsh
  tpm-agent env --fish | source  # fish`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runEnv(g.sys, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.socket, "socket", "", "`PATH` of the agent's socket (default $XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
	f.BoolVarP(&o.sh, "sh", "s", false, "for sh, bash, zsh and the like")
	f.BoolVarP(&o.csh, "csh", "c", false, "for csh and tcsh")
	f.BoolVar(&o.fishForm, "fish", false, "for fish")
	return cmd
}

func runEnv(sys system, o envOptions) error {
	kind, err := o.shell(sys.getenv("SHELL"))
	if err != nil {
		return err
	}
	path, err := sys.socketPath(o.socket)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(sys.stdout, kind.set("SSH_AUTH_SOCK", path))
	return err
}

// shell is a family of shells with one way to set a variable.
type shell int

const (
	bourne shell = iota
	cShell
	fish
)

// shell is the one asked for, else that of the user.
func (o envOptions) shell(login string) (shell, error) {
	asked := 0
	kind := shellOf(login)
	for _, choice := range []struct {
		on   bool
		kind shell
	}{{o.sh, bourne}, {o.csh, cShell}, {o.fishForm, fish}} {
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
