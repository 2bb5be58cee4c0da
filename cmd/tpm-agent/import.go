package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/keyops"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newImportCmd(sys *term.System) *cobra.Command {
	var o keyops.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import an existing private key into the TPM",
		Long:  importHelp,
		Example: `  tpm-agent import ~/.ssh/id_rsa              # makes id_rsa.tpm beside it
  tpm-agent import --keep-passphrase --retire ~/.ssh/id_rsa
  tpm-agent import --replace ~/.ssh/id_rsa    # id_rsa becomes the TPM key
  ssh laptop tpm-agent srk > laptop.srk       # for another machine:
  tpm-agent import --for laptop.srk ~/.ssh/id_rsa
  tpm-agent import id_rsa.wrapped.tpm         # on the other machine`,
		Args:              cli.OneArg("the private key file"),
		ValidArgsFunction: cli.CompleteOneFile,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return keyops.Import(ctx, sys, o, args[0]) }),
	}
	f := cmd.Flags()
	o.Given = f.Changed
	cli.Optional(f, &o.Passphrase, "passphrase", "P", "`PASSPHRASE` of FILE, or the PIN of a wrapped key\n(default: asked for)")
	cli.Optional(f, &o.PIN, "pin", "N", "the new `PIN`; empty for none (default: asked for)")
	f.BoolVar(&o.KeepPassphrase, "keep-passphrase", false, "use the passphrase as the PIN")
	f.BoolVar(&o.NoPIN, "no-pin", false, "set no PIN; same as -N ''")
	cli.Optional(f, &o.Comment, "comment", "C", "`COMMENT` in the public key (default: from the\nkey, or from FILE.pub)")
	cli.Optional(f, &o.File, "file", "f", "save as `OUT`.tpm and OUT.pub (default FILE.tpm\nand FILE.pub)")
	f.BoolVar(&o.Retire, "retire", false, "then move FILE to where ssh does not look")
	f.BoolVar(&o.Replace, "replace", false, "as --retire, and put the TPM key in FILE's place")
	f.StringVar(&o.Target, "for", "", "wrap for another machine's TPM: `SRK` is the file\nthat tpm-agent srk printed there")
	f.StringVar(&o.Parent, "parent", "owner", "storage `KEY` that wraps it: owner, endorsement,\nor a persistent handle 0x81……")
	f.BoolVar(&o.NewTPM, "new-tpm", false, "accept that the TPM was cleared or replaced")
	f.BoolVarP(&o.Quiet, "quiet", "q", false, "print only questions and errors")
	cli.Complete(cmd, "comment pin passphrase")
	cli.Complete(cmd, "parent", "owner", "endorsement", "0x81000001")
	return cmd
}

const importHelp = `Imports an RSA or ECDSA private key into the TPM. The public key stays the
same.

FILE is a private key of ssh-keygen or OpenSSL, or a key that was wrapped for
this TPM with --for. The old file stays, and anyone who reads it has the key:
--retire moves it away, and --replace also puts the TPM key in its place.
Nothing is overwritten. Details: tpm-agent man import.`
