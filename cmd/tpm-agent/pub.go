package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
)

func newPubCmd(g *global) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pub FILE...",
		Short: "Print the public key of key files",
		Long: `Prints the public key of each key file, as a line for authorized_keys. The TPM
is not asked.`,
		Example: `  tpm-agent pub ~/.ssh/id_ecdsa.tpm
  tpm-agent pub ~/.ssh/id_ecdsa.tpm | ssh host 'cat >> .ssh/authorized_keys'`,
		Args: someArgs("the key file"),
		RunE: func(_ *cobra.Command, args []string) error { return runPub(g.sys, args, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// shownPublic is what `pub --json` shows of each file.
type shownPublic struct {
	File string `json:"file"`
	kind
	Fingerprint string `json:"fingerprint"`
	Comment     string `json:"comment"`
	PublicKey   string `json:"public_key"` // without the comment
}

// runPub prints what it can, and fails if there is a file that it could not.
func runPub(sys system, files []string, asJSON bool) error {
	var errs []error
	shown := []shownPublic{}
	for _, file := range files {
		key, public, err := readKey(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		comment := commentFor(file, key, public)
		if asJSON {
			shown = append(shown, shownPublic{
				plain(file), kindOf(key.Public), ssh.FingerprintSHA256(public), comment,
				strings.TrimSpace(string(authorizedKey(public, ""))),
			})
		} else if _, err := sys.stdout.Write(authorizedKey(public, comment)); err != nil {
			return err
		}
	}
	if asJSON {
		errs = append(errs, writeJSON(sys.stdout, shown))
	}
	return errors.Join(errs...)
}
