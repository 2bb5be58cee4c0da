package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/keyops"
	"github.com/tpm-agent/tpm-agent/internal/pinsource"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newPasswdCmd(sys *term.System) *cobra.Command {
	var o keyops.PasswdOptions
	cmd := &cobra.Command{
		Use:   "passwd FILE",
		Short: "Change, set or remove the PIN of a key",
		Long:  passwdHelp,
		Example: `  tpm-agent passwd ~/.ssh/id_ecdsa.tpm            # asks for both PINs
  tpm-agent passwd --remove ~/.ssh/id_ecdsa.tpm
  tpm-agent passwd -P 1234 -N 5678 -f key.tpm     # as ssh-keygen -p
  tpm-agent passwd --pin-from file:old --new-pin-from file:new key.tpm`,
		Args: cobra.ArbitraryArgs,
		RunE: cli.Run(func(ctx context.Context, args []string) error { return keyops.Passwd(ctx, sys, o, args) }),
	}
	f := cmd.Flags()
	o.Given = f.Changed
	cli.Optional(f, &o.OldPIN, "old-pin", "P", "the old `PIN` (default: asked for)")
	cli.Optional(f, &o.NewPIN, "new-pin", "N", "the new `PIN`; empty for none (default: asked for)")
	f.StringVarP(&o.File, "file", "f", "", "the key `FILE`, instead of an argument")
	cli.Optional(f, &o.OldFrom, "pin-from", "", "take the old PIN from `SOURCE`:\n"+pinsource.Forms)
	cli.Optional(f, &o.NewFrom, "new-pin-from", "", "take the new PIN from `SOURCE`")
	f.BoolVar(&o.Remove, "remove", false, "remove the PIN; same as -N ''")
	f.BoolVar(&o.WithoutLockout, "without-lockout", false, "set a PIN that the TPM's lockout cannot protect")
	f.BoolVarP(&o.Quiet, "quiet", "q", false, "print only questions and errors")
	cli.Complete(cmd, "old-pin new-pin")
	cli.Complete(cmd, "pin-from", "fd:0", "file:", "credential:")
	cli.Complete(cmd, "new-pin-from", "fd:0", "file:", "credential:")
	return cmd
}

const passwdHelp = `Changes, sets or removes the PIN of a key. The public key stays the same.

You are asked for the old PIN, if there is one, and twice for the new PIN. An
empty new PIN removes the PIN. Copies of the old FILE keep working with the
old PIN. Details: tpm-agent man passwd.`
