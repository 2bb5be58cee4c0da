package main

import (
	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newPubCmd(sys *term.System) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pub FILE...",
		Short: "Print the public key of key files",
		Long: `Prints the public key of each key file, as a line for authorized_keys. The TPM
is not asked.`,
		Example: `  tpm-agent pub ~/.ssh/id_ecdsa.tpm
  tpm-agent pub ~/.ssh/id_ecdsa.tpm | ssh host 'cat >> .ssh/authorized_keys'`,
		Args: cli.SomeArgs("the key file"),
		RunE: func(_ *cobra.Command, args []string) error { return inspect.Pub(sys, args, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
