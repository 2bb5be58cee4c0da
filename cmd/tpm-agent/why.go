package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newWhyCmd(sys *term.System) *cobra.Command {
	var o control.WhyOptions
	cmd := &cobra.Command{
		Use:   "why",
		Short: "Show why the last requests were refused",
		Long: `Shows why the running agent refused its last requests, and what you can do.
The newest comes last. ssh shows only "agent refused operation".`,
		Example: `  tpm-agent why
  tpm-agent why -n 1
  tpm-agent why --json`,
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return control.Why(ctx, sys, o) }),
	}
	f := cmd.Flags()
	cli.AgentFlag(cmd, &o.Socket)
	f.IntVarP(&o.N, "number", "n", 10, "show the last `N` refusals")
	f.BoolVar(&o.JSON, "json", false, "print JSON")
	cli.Complete(cmd, "number")
	return cmd
}
