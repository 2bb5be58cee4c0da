package main

import (
	"io"

	"github.com/spf13/cobra"
)

func newCompletionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a completion script for a shell",
		Long: `Prints a script that lets a shell complete the commands, flags and values of
tpm-agent. SHELL is bash, zsh or fish. Details: tpm-agent man completion.`,
		Example: `  tpm-agent completion bash \
      > ~/.local/share/bash-completion/completions/tpm-agent
  tpm-agent completion zsh > "${fpath[1]}/_tpm-agent"
  tpm-agent completion fish > ~/.config/fish/completions/tpm-agent.fish`,
		Args:      someArgs("the shell (bash, zsh or fish)"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return noArgs(cmd, args[1:])
			}
			return writeCompletion(cmd.OutOrStdout(), cmd.Root(), args[0])
		},
	}
}

func writeCompletion(w io.Writer, root *cobra.Command, shell string) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	}
	return usage("no completion for %q: bash, zsh and fish have one", shell)
}
