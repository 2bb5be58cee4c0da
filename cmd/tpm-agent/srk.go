package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/keyops"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newSRKCmd(sys *term.System) *cobra.Command {
	var o keyops.SRKOptions
	cmd := &cobra.Command{
		Use:   "srk",
		Short: "Print the public storage key of this TPM",
		Long:  srkHelp,
		Example: `  tpm-agent srk > laptop.srk                  # on the laptop
  tpm-agent import --for laptop.srk ~/.ssh/id_rsa   # where the key is
  tpm-agent srk --fingerprint                 # compare, on the laptop`,
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return keyops.SRK(ctx, sys, o) }),
	}
	f := cmd.Flags()
	o.Given = f.Changed
	f.StringVar(&o.Format, "format", "pem", "`FORMAT`: pem, or tpm2b for a TPM2B_PUBLIC")
	f.BoolVar(&o.Fingerprint, "fingerprint", false, "print only the fingerprint")
	f.BoolVar(&o.JSON, "json", false, "print JSON")
	f.StringVar(&o.Parent, "parent", "owner", "storage `KEY`: owner, endorsement, or a persistent\nhandle 0x81……")
	cli.Complete(cmd, "format", "pem", "tpm2b")
	cli.Complete(cmd, "parent", "owner", "endorsement", "0x81000001")
	return cmd
}

const srkHelp = `Prints the public storage key of this TPM (its SRK). With it, import --for and
keygen --for on another machine wrap a key so that only this TPM can use it.

It is not a secret, but compare the fingerprint on both machines: anyone who
replaces the SRK with their own gets the key. Details: tpm-agent man srk.`
