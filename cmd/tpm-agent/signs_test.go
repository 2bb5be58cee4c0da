package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// signs is a command of the tests: signs FILE PIN... signs with a key file and verifies
// the signature. After a wrong PIN that costs no try, it tries the next one.
func signs() {
	if err := signOnce(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// signOnce signs with the first PIN that is right.
func signOnce(path string, pins []string) error {
	file, err := keyfile.ReadFile(path)
	if err != nil {
		return err
	}
	addr, err := tcti.Parse(os.Getenv("TPM_AGENT_TPM"))
	if err != nil {
		return err
	}
	tpm := tpmkey.New(addr.Open)
	key, err := tpm.Key(file)
	if err != nil {
		return err
	}
	if file.EmptyAuth {
		pins = []string{""}
	}
	for _, pin := range pins {
		digest := sha256.Sum256([]byte("a test message"))
		_, err = key.Sign(context.Background(), []byte(pin), digest[:], crypto.SHA256)
		var wrong *tpmkey.AuthError
		if !errors.As(err, &wrong) || wrong.Left >= 0 {
			break
		}
	}
	return errors.Join(err, tpm.Close())
}
