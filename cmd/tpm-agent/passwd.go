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
	f.StringVarP(&o.file, "file", "f", "", "the key `FILE`, if it is not given as an argument")
	f.String("pin-from", "", "take the old PIN from `SOURCE`: "+pinSources)
	f.String("new-pin-from", "", "take the new PIN from `SOURCE`")
	f.BoolVar(&o.remove, "remove", false, "remove the PIN, as -N ''")
	f.BoolVar(&o.withoutLockout, "without-lockout", false, "set a PIN also if the TPM's lockout cannot protect it")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print nothing but questions and errors")
	mustComplete(cmd, "old-pin")
	mustComplete(cmd, "new-pin")
	mustComplete(cmd, "pin-from", "fd:0", "file:", "credential:")
	mustComplete(cmd, "new-pin-from", "fd:0", "file:", "credential:")
	return cmd
}

const passwdHelp = `Changes the PIN of a key, sets one or removes it, as ssh-keygen -p does with the
passphrase of a private key file. FILE is a key file of this TPM, such as
~/.ssh/id_ecdsa.tpm. The public key stays the same, and nothing changes for
servers.

The old PIN is asked for if the key has one, and the new one twice; an empty one
removes it. -P and -N give them, but put them into the list of processes, where
others can read them for a moment. --pin-from and --new-pin-from take them from
elsewhere: fd:N is a descriptor that the shell has opened (fd:0 is standard
input), file:PATH a file that nobody but you can read, credential:NAME one of
systemd. Without a terminal, what is asked is read from standard input, a line
each.

The TPM makes the new key file, and it signs a test message with the new PIN
before it takes the place of the old one. FILE is the old one or the new one at
every moment, whole. A symbolic link stays one: what it leads to is changed.

A wrong old PIN counts towards the TPM's lockout. How many tries are left is said
before each; before the one that would lock the TPM it wants to hear "yes". An
agent that remembers the old PIN drops it by itself.

Copies of FILE from before, in backups and elsewhere, go on working in this TPM
with the PIN that they had: a change of the PIN does not revoke them. If somebody
knows the old PIN and has such a copy and this machine, make a new key.

Whether the TPM counts wrong PINs of a key is fixed when the key is made. A key
made without a PIN is exempt. It can be given one, but everybody who gets at this
machine could try PINs as fast as the TPM answers. On a terminal you are offered a
new key instead; elsewhere this ends with exit status 1, unless --without-lockout
says that you know. A key that was made with a PIN is stopped by the lockout also
when its PIN was removed.`

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
