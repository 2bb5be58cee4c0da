package main

import (
	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newEnvCmd(sys *term.System) *cobra.Command {
	var form term.ShellForm
	var socket string
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the command that lets a shell use the agent",
		Long: `Prints the command that sets SSH_AUTH_SOCK to the agent's socket, for the
shell to run. It does not start the agent.`,
		Example: `  eval "$(tpm-agent env)"        # sh, bash, zsh
  eval ` + "`tpm-agent env -c`" + `          # csh, tcsh
  tpm-agent env --fish | source  # fish`,
		RunE: func(*cobra.Command, []string) error { return cli.Env(sys, form, socket) },
	}
	cmd.Flags().StringVar(&socket, "socket", "", "`PATH` of the agent's socket\n(default $XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
	cli.ShellFlags(cmd, &form, "")
	return cmd
}
