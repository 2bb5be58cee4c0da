package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newListCmd(sys *term.System) *cobra.Command {
	var o control.ListOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List key files and the keys that the agent offers",
		Long: `Lists the TPM keys in ~/.ssh, and every key that the running agent offers.

The column AGENT says what the agent does with a key. A * marks the storage
key of a TPM that was cleared or replaced. Details: tpm-agent man list.`,
		Example: `  tpm-agent list
  tpm-agent list --key-dir /etc/ssh/tpm --json`,
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return control.List(ctx, sys, o) }),
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.KeyDirs, "key-dir", nil, "list the keys in `DIR` (default ~/.ssh; repeatable)")
	cli.CompleteDir(cmd, "key-dir")
	cli.AgentFlag(cmd, &o.Socket)
	f.BoolVar(&o.JSON, "json", false, "print JSON")
	return cmd
}
