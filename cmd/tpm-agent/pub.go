package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func newPubCmd(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "pub FILE...",
		Short: "Print the public key of key files",
		Long: `Prints the public key of each key file, as a line for authorized_keys. The TPM is
not asked: the public key stands in the file.

The comment is that of the .pub file beside it, if that is of the same key.`,
		Example: `  tpm-agent pub ~/.ssh/id_ecdsa.tpm
  tpm-agent pub ~/.ssh/id_ecdsa.tpm | ssh host 'cat >> .ssh/authorized_keys'`,
		Args: someArgs("the key file"),
		RunE: func(_ *cobra.Command, args []string) error { return runPub(g.sys, args) },
	}
}

// runPub prints what it can, and fails if there is a file that it could not.
func runPub(sys system, files []string) error {
	var errs []error
	for _, file := range files {
		key, public, err := readKey(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := sys.stdout.Write(authorizedKey(public, commentFor(file, key, public))); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}
