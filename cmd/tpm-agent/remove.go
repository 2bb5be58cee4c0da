package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newRemoveCmd(sys *term.System) *cobra.Command {
	var o control.RemoveOptions
	cmd := &cobra.Command{
		Use:   "remove FILE|FINGERPRINT...",
		Short: "Remove keys from the running agent",
		Long: `Removes keys from the running agent. No file is deleted.

Name a key by its key file, its .pub or -cert.pub file, or its fingerprint. A
key in a watched directory is offered again after SIGHUP or a restart of the
agent.`,
		Example: `  tpm-agent remove ~/.ssh/id_ecdsa.tpm
  tpm-agent remove SHA256:4lxxT6rzKZ1+rzaCGhsgTvq3uc9cRJNVYTCLZT0bIr8
  tpm-agent remove --all`,
		ValidArgsFunction: cli.CompleteKeys(sys, &o.Socket),
		Args:              cobra.ArbitraryArgs,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return control.Remove(ctx, sys, o, args) }),
	}
	f := cmd.Flags()
	cli.AgentFlag(cmd, &o.Socket)
	f.BoolVar(&o.All, "all", false, "remove all keys")
	return cmd
}
