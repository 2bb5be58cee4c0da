package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// passwdOptions is the command line. A nil pointer is a question to ask.
type passwdOptions struct {
	file             string
	oldPIN, newPIN   *string
	oldFrom, newFrom *string // sources of PINs
	remove           bool
	withoutLockout   bool
	quiet            bool
}

func newPasswdCmd(g *global) *cobra.Command {
	var o passwdOptions
	cmd := &cobra.Command{
		Use:   "passwd FILE",
		Short: "Change, set or remove the PIN of a key",
		Long:  passwdHelp,
		Example: `  tpm-agent passwd ~/.ssh/id_ecdsa.tpm            # asks for both PINs
  tpm-agent passwd --remove ~/.ssh/id_ecdsa.tpm
  tpm-agent passwd -P 1234 -N 5678 -f key.tpm     # as ssh-keygen -p
  tpm-agent passwd --pin-from file:old --new-pin-from file:new key.tpm`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.oldPIN, o.newPIN = given(cmd, "old-pin"), given(cmd, "new-pin")
			o.oldFrom, o.newFrom = given(cmd, "pin-from"), given(cmd, "new-pin-from")
			if err := o.check(cmd, args); err != nil {
				return err
			}
			ctx, done := interrupting(cmd)
			defer done()
			return runPasswd(ctx, g, &o)
		},
	}
	f := cmd.Flags()
	f.StringP("old-pin", "P", "", "the old `PIN` (default: asked for)")
	f.StringP("new-pin", "N", "", "the new `PIN`; empty for none (default: asked for)")
	f.StringVarP(&o.file, "file", "f", "", "the key `FILE`, instead of an argument")
	f.String("pin-from", "", "take the old PIN from `SOURCE`:\n"+pinSources)
	f.String("new-pin-from", "", "take the new PIN from `SOURCE`")
	f.BoolVar(&o.remove, "remove", false, "remove the PIN; same as -N ''")
	f.BoolVar(&o.withoutLockout, "without-lockout", false, "set a PIN that the TPM's lockout cannot protect")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print only questions and errors")
	mustComplete(cmd, "old-pin")
	mustComplete(cmd, "new-pin")
	mustComplete(cmd, "pin-from", "fd:0", "file:", "credential:")
	mustComplete(cmd, "new-pin-from", "fd:0", "file:", "credential:")
	return cmd
}

const passwdHelp = `Changes, sets or removes the PIN of a key. The public key stays the same.

You are asked for the old PIN, if there is one, and twice for the new PIN. An
empty new PIN removes the PIN. Copies of the old FILE keep working with the
old PIN. Details: tpm-agent man passwd.`

// check refuses option combinations that make no sense.
func (o *passwdOptions) check(cmd *cobra.Command, args []string) error {
	changed := cmd.Flags().Changed
	for _, group := range [][]string{{"old-pin", "pin-from"}, {"new-pin", "new-pin-from", "remove"}} {
		var both []string
		for _, name := range group {
			if changed(name) {
				both = append(both, "--"+name)
			}
		}
		if len(both) > 1 {
			return usage("%s do not go together", strings.Join(both, " and "))
		}
	}
	switch {
	case changed("file") && len(args) > 0:
		return usage("unexpected argument %q: the key file is given with -f", args[0])
	case len(args) > 1:
		return noArgs(cmd, args[1:])
	case len(args) == 1:
		o.file = args[0]
	}
	switch {
	case o.file == "":
		return usage("the key file is missing")
	case o.withoutLockout && o.removes():
		return usage("--without-lockout is about setting a PIN, and this removes it")
	case o.newPIN != nil:
		if err := checkNewPIN([]byte(*o.newPIN)); err != nil {
			return usage("-N: %w", err)
		}
	}
	return nil
}

// removes is whether the command line says that there is to be no PIN.
func (o *passwdOptions) removes() bool { return o.remove || o.newPIN != nil && *o.newPIN == "" }

// checkNewPIN refuses what no prompt could ever take.
func checkNewPIN(pin []byte) error {
	if strings.ContainsAny(string(pin), "\r\n") {
		return errors.New("it has a line break in it, which nobody can type")
	}
	return checkPIN(pin)
}

// sources reads the PINs that come from elsewhere than the command line and the
// user, before anything else is read from standard input.
func (c *pinChange) sources(ctx context.Context, sys system) error {
	for _, from := range []struct {
		flag string
		spec *string
		to   *[]byte
	}{{"--pin-from", c.oldFrom, &c.old}, {"--new-pin-from", c.newFrom, &c.new}} {
		if from.spec == nil {
			continue
		}
		source, err := sys.parsePINSource(*from.spec)
		if err != nil {
			return fmt.Errorf("%s: %w", from.flag, err)
		}
		if *from.to, _, err = source.read(ctx); err != nil {
			return fmt.Errorf("%s: %w", from.flag, err)
		}
	}
	if c.oldPIN != nil {
		c.old = []byte(*c.oldPIN)
	}
	if c.newPIN != nil {
		c.new = []byte(*c.newPIN)
	}
	return nil
}

// noKeyHint says what to do with a file that is no TPM key.
func noKeyHint(path string, err error) error {
	if beside, ok := keyFileBeside(path); ok {
		return withHint(err, "tpm-agent passwd %s", shQuote(beside))
	}
	if data, readErr := readSmall(path); readErr == nil && errors.Is(err, keyfile.ErrNoKey) && bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return withHint(err, "it is a key without a TPM, of which ssh-keygen -p -f %s changes the passphrase", shQuote(path))
	}
	return err
}
