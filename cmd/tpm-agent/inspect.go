package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newInspectCmd(sys *term.System) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show everything in a key file",
		Long: `Shows everything in a TPM 2.0 key file, and asks the TPM whether it can load
the key. No PIN is needed. Details: tpm-agent man inspect.`,
		Example:           `  tpm-agent inspect ~/.ssh/id_ecdsa.tpm`,
		Args:              cli.OneArg("the key file"),
		ValidArgsFunction: cli.CompleteOneFile,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return inspect.Inspect(ctx, sys, args[0], asJSON) }),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
