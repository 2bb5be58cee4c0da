package main

import (
	"embed"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// manPages are made from the help of the commands and man/*.body:
// go test ./cmd/tpm-agent -run TestManPages -update
//
//go:embed man/*.1
var manPages embed.FS

func newManCmd(sys *term.System) *cobra.Command {
	var o cli.ManOptions
	cmd := &cobra.Command{
		Use:   "man [COMMAND]",
		Short: "Show the manual page of a command",
		Long: `Shows the manual page of a command, or of tpm-agent itself. Without a terminal
or man(1), it prints the source of the page.`,
		Example: `  tpm-agent man keygen
  tpm-agent man serve | man -l -
  tpm-agent man --dir /usr/local/share/man/man1`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Page = args
			return cli.Man(cmd, sys, manPages, o)
		},
		ValidArgsFunction: cli.CompleteCommands,
	}
	cmd.Flags().StringVar(&o.Dir, "dir", "", "write all pages to `DIR`")
	cli.CompleteDir(cmd, "dir")
	return cmd
}
