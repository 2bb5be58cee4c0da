package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// signs is a command of the tests: signs FILE PIN... has the TPM sign with a key
// file, and verifies. Of several PINs the next is tried where a wrong one costs
// nothing.
func signs() {
	if err := signOnce(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func signOnce(path string, pins []string) error {
	file, err := keyfile.ReadFile(path)
	if err != nil {
		return err
	}
	addr, err := tcti.Parse(os.Getenv("TPM_AGENT_TPM"))
	if err != nil {
		return err
	}
	tpm := openTPM(addr)
	key, err := tpm.Key(file)
	if err != nil {
		return err
	}
	if file.EmptyAuth {
		pins = []string{""}
	}
	for _, pin := range pins {
		err = trySignature(context.Background(), key, []byte(pin))
		var wrong *tpmkey.AuthError
		if !errors.As(err, &wrong) || wrong.Left >= 0 {
			break
		}
	}
	return errors.Join(err, tpm.Close())
}
