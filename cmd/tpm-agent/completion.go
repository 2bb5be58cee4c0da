package main

import (
	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newCompletionCmd(*term.System) *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a completion script for a shell",
		Long: `Prints a script that lets a shell complete the commands, flags and values of
tpm-agent. SHELL is bash, zsh or fish. Details: tpm-agent man completion.`,
		Example: `  tpm-agent completion bash \
      > ~/.local/share/bash-completion/completions/tpm-agent
  tpm-agent completion zsh > "${fpath[1]}/_tpm-agent"
  tpm-agent completion fish > ~/.config/fish/completions/tpm-agent.fish`,
		Args:      cli.OneArg("the shell (bash, zsh or fish)"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return cli.WriteCompletion(cmd.OutOrStdout(), cmd.Root(), args[0])
		},
	}
}
