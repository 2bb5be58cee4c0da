// Command tpm-agent is an SSH agent whose private keys live in the machine's
// TPM 2.0: see `tpm-agent help` or tpm-agent(1).
//
// Each command has a constructor (newKeygenCmd) that turns flags into an
// options struct, and a run function that does the work with it. What a user
// reads on the terminal follows the rules in ui.go.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], system{os.Stdin, os.Stdout, os.Stderr, os.Environ()})) }
