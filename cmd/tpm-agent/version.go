package main

import (
	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newVersionCmd(*term.System) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version and how it was built",
		Long: `Prints the version of tpm-agent, the commit it was built from, and the Go
release that built it. Include this line in bug reports.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cli.WriteVersion(cmd.OutOrStdout(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
