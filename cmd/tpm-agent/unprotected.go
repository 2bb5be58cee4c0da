package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// atOwnRisk has the user decide what becomes of a key that is to get a PIN which
// the TPM's lockout cannot protect: nothing, a new key instead, or a PIN as weak as
// that.
func (c *pinChange) atOwnRisk(ctx context.Context) error {
	switch {
	case !c.exempt() || c.removes() || c.withoutLockout:
		return nil
	case c.hadPIN:
		return nil // it gets no worse, and is told afterwards
	case !c.ask.terminal:
		return withHint(errors.New("the key was made without a PIN, and the TPM would not count wrong ones; nothing was changed"),
			"make a new key with a PIN: tpm-agent keygen -f %s; or set it all the same: --without-lockout", shQuote(c.freeName()))
	}
	fmt.Fprintf(c.sys.stderr, `%s was made without a PIN, and is exempt from the TPM's lockout, which
cannot be changed any more. If it gets a PIN, the TPM does not count wrong ones:
whoever gets at this machine can guess as fast as it answers.
`, plain(c.file))
	choice, err := c.ask.choice(ctx, "Make a new key with a PIN, set the PIN anyway, or stop?", "new", "anyway", "stop")
	switch {
	case err != nil:
		return fmt.Errorf("asking what to do: %w", err)
	case choice == "stop":
		return errors.New("nothing was changed")
	}
	c.instead = choice == "new"
	return nil
}

// freeName is where a new key for the same purpose can go, without .tpm.
func (c *pinChange) freeName() string {
	name := keyName(c.file) + "-pin"
	for n := 2; ; n++ {
		if free(name+".tpm", name+".pub", name) == nil {
			return name
		}
		name = keyName(c.file) + "-pin" + strconv.Itoa(n)
	}
}

// makeInstead makes a new key of the same kind, with a PIN.
func (c *pinChange) makeInstead(ctx context.Context) error {
	k := kindOf(c.parsed.Public)
	parent, _ := parentWords(c.parsed)
	if c.parsed.Parent == keyfile.ParentPlatform || c.parsed.Parent == keyfile.ParentNull {
		parent = "owner" // no new keys are made there
	}
	o := keygenOptions{keyType: k.Type, bits: k.Bits, parent: parent, quiet: c.quiet}
	tm, err := o.template()
	if err != nil {
		return err
	}
	comment := commentFor(c.file, c.parsed, c.public)
	file, err := c.ask.file(ctx, c.freeName())
	if err == nil {
		err = checkName(file)
	}
	if err == nil {
		err = errors.Join(free(file+".tpm", file+".pub", file), ready(c.sys, filepath.Dir(file)))
	}
	if err == nil {
		err = c.askNewNotEmpty(ctx)
	}
	if err != nil {
		return err
	}
	tm.Auth = c.new
	if err := o.makeAndSave(ctx, c.sys, c.addr, tm, comment, file); err != nil {
		return err
	}
	return c.say("%s", c.nextSteps(file))
}

// askNewNotEmpty asks until there is a PIN.
func (c *pinChange) askNewNotEmpty(ctx context.Context) (err error) {
	for len(c.new) == 0 {
		if c.new, err = c.ask.twice(ctx, "Enter PIN of the new key: "); err != nil {
			return err
		}
	}
	return nil
}

// nextSteps is how the new key gets to be the one that is used.
func (c *pinChange) nextSteps(file string) string {
	old := shQuote(c.file)
	if public := publicFile(c.file); exists(public) {
		old += " " + shQuote(public)
	}
	return fmt.Sprintf(`%s is unchanged. To have the new key in its place:
  ssh-copy-id -f -i %s user@host   # on each server that knows the old one
  ssh -o IdentitiesOnly=yes -i %s user@host   # see that it works
  # there, take the old key out of ~/.ssh/authorized_keys; then here:
  rm %s
`, plain(c.file), shQuote(file+".pub"), shQuote(file+".pub"), old)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
