package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/pinsource"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newUnlockCmd(sys *term.System) *cobra.Command {
	var o control.UnlockOptions
	cmd := &cobra.Command{
		Use:   "unlock FILE|FINGERPRINT...",
		Short: "Give the agent the PIN of a key in advance",
		Long:  unlockHelp,
		Example: `  tpm-agent unlock ~/.ssh/id_ecdsa.tpm
  tpm-agent unlock --ttl 8h SHA256:4lxxT6rzKZ1+rzaCGhsgTvq3uc9cRJNVYTCLZT0bIr8
  tpm-agent unlock --pin-from file:$HOME/.pin work.tpm`,
		Args:              cli.SomeArgs("the key"),
		ValidArgsFunction: cli.CompleteKeys(sys, &o.Socket),
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return control.Unlock(ctx, sys, o, args) }),
	}
	f := cmd.Flags()
	cli.AgentFlag(cmd, &o.Socket)
	cli.Optional(f, &o.TTL, "ttl", "", "remember the PIN for this `TIME`: 15m, 8h, or session\n(default: the agent's --pin-ttl, or else session)")
	cli.Optional(f, &o.PINFrom, "pin-from", "", "take the PIN from `SOURCE`, without asking:\n"+pinsource.Forms)
	cli.Complete(cmd, "ttl", "15m", "1h", "8h", "session")
	cli.Complete(cmd, "pin-from", "fd:0", "file:", "credential:")
	return cmd
}

const unlockHelp = `Gives the running agent the PIN of a key in advance, for programs that have no
terminal and no desktop to ask on.

Name the key by its key file, its .pub or -cert.pub file, or its fingerprint.
The agent then remembers the PIN; --ttl says for how long. Details: tpm-agent
man unlock.`
