package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/keyops"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newKeygenCmd(sys *term.System) *cobra.Command {
	var o keyops.KeygenOptions
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a key in the TPM",
		Long:  keygenHelp,
		Example: `  tpm-agent keygen                            # ECDSA P-256; asks the rest
  tpm-agent keygen -t rsa -b 2048 -C work -f ~/.ssh/id_work
  tpm-agent keygen -N ''                      # no PIN; asks nothing
  tpm-agent keygen --pcr 7                    # bound to today's secure boot
  tpm-agent keygen --list                     # what this TPM supports
  tpm-agent keygen --for laptop.srk -f work   # for another machine`,
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return keyops.Keygen(ctx, sys, o) }),
	}
	f := cmd.Flags()
	o.Given = f.Changed
	f.StringVarP(&o.KeyType, "type", "t", "ecdsa", "`TYPE` of the key: ecdsa or rsa")
	f.IntVarP(&o.Bits, "bits", "b", 0, "size in `BITS`: 256, 384, 521 for ecdsa (default 256);\n2048, 3072, 4096 for rsa (default 2048)")
	cli.Optional(f, &o.Comment, "comment", "C", "`COMMENT` in the public key (default user@host)")
	cli.Optional(f, &o.File, "file", "f", "save as `FILE`.tpm and FILE.pub (default: asked for;\nwith -N, ~/.ssh/id_TYPE)")
	cli.Optional(f, &o.PIN, "pin", "N", "the new `PIN`; empty for none (default: asked for)")
	f.BoolVarP(&o.Quiet, "quiet", "q", false, "print only questions and errors")
	f.StringVar(&o.Parent, "parent", "owner", "storage `KEY` that wraps it: owner, endorsement, or a\npersistent handle 0x81……")
	f.BoolVar(&o.NewTPM, "new-tpm", false, "accept that the TPM was cleared or replaced")
	f.StringArrayVar(&o.PCRs, "pcr", nil, "bind the key to the boot state in `PCRS`, such as 7 or\n7,11 (repeatable)")
	cli.Optional(f, &o.Target, "for", "", "make a key for another machine's TPM: `SRK` is the file\nthat tpm-agent srk printed there")
	f.BoolVar(&o.List, "list", false, "list the kinds of keys that this TPM supports")
	f.BoolVar(&o.JSON, "json", false, "with --list: print JSON")
	cli.Complete(cmd, "comment pin pcr")
	cli.Complete(cmd, "type", "ecdsa", "rsa")
	cli.Complete(cmd, "bits", "256", "384", "521", "2048", "3072", "4096")
	cli.Complete(cmd, "parent", "owner", "endorsement", "0x81000001")
	return cmd
}

const keygenHelp = `Makes a key inside the TPM, much as ssh-keygen(1) makes one on disk.

It asks for a file name and for a PIN, which may be empty. It saves FILE.tpm,
the private key wrapped by this TPM, and FILE.pub. Nothing is overwritten. No
TPM supports Ed25519. Details: tpm-agent man keygen.`
