package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newLockCmd(sys *term.System) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Make the agent forget all PINs",
		Long: `Makes the running agent forget all PINs and all consent that it remembers. The
keys stay. To lock the agent itself with a password, use ssh-add -x.`,
		Example: "  tpm-agent lock",
		RunE:    cli.Run(func(ctx context.Context, _ []string) error { return control.Lock(ctx, sys, socket) }),
	}
	cli.AgentFlag(cmd, &socket)
	return cmd
}
