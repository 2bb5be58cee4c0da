package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

type envOptions struct {
	socket string
	form   shellForm
}

func newEnvCmd(g *global) *cobra.Command {
	var o envOptions
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the command that lets a shell use the agent",
		Long: `Prints the command that sets SSH_AUTH_SOCK to the agent's socket, for the
shell to run. It does not start the agent.`,
		Example: `  eval "$(tpm-agent env)"        # sh, bash, zsh
  eval ` + "`tpm-agent env -c`" + `          # csh, tcsh
  tpm-agent env --fish | source  # fish`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runEnv(g.sys, o) },
	}
	cmd.Flags().StringVar(&o.socket, "socket", "", "`PATH` of the agent's socket\n(default $XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
	o.form.flags(cmd, "print it ")
	return cmd
}

func runEnv(sys system, o envOptions) error {
	kind, err := o.form.shell(sys.getenv("SHELL"))
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
