package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newAddCmd(sys *term.System) *cobra.Command {
	var o control.AddOptions
	cmd := &cobra.Command{
		Use:   "add FILE...",
		Short: "Add key files to the running agent",
		Long:  addHelp,
		Example: `  tpm-agent add /media/stick/work.tpm
  tpm-agent add -t 8h -c work.tpm
  tpm-agent add --pin-ttl 15m work.tpm
  tpm-agent add -h gate.example -h 'gate.example>me@inner.example' work.tpm`,
		Args: cli.SomeArgs("the key file"),
		RunE: cli.Run(func(ctx context.Context, args []string) error { return control.Add(ctx, sys, o, args) }),
	}
	f := cmd.Flags()
	cli.AgentFlag(cmd, &o.Socket)
	f.StringVarP(&o.Lifetime, "lifetime", "t", "", "forget the key after this `TIME`: 90 (seconds), 10m,\n8h, 2w (default: as serve -t says)")
	f.BoolVarP(&o.Confirm, "confirm", "c", false, "ask before each use of the key")
	f.StringArrayVarP(&o.Destinations, "destination", "h", nil, "use the key only for this `HOST`, or as shown above\n(repeatable)")
	f.StringArrayVarP(&o.HostKeys, "hostkeys", "H", nil, "`FILE` with host keys, for -h (default: ssh's\nknown_hosts files; repeatable)")
	cli.Optional(f, &o.PINTTL, "pin-ttl", "", "remember the key's PIN for this `TIME`: 15m, 8h,\nsession or off (default: as serve --pin-ttl says)")
	f.Bool("help", false, "help for add") // -h is ssh-add's
	cli.Complete(cmd, "destination lifetime")
	cli.Complete(cmd, "pin-ttl", "15m", "8h", "session", "off")
	return cmd
}

const addHelp = `Adds key files to the running agent, from any directory or with conditions.
For -h, give each hop an option of its own:

  HOST, USER@HOST             log in there from this machine
  FROM>HOST, FROM>USER@HOST   go on from FROM to HOST, with ssh -A

Details: tpm-agent man add.`
