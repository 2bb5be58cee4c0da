package keyops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/pinsource"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// PasswdOptions are the options of passwd. A nil pointer is a question to ask.
type PasswdOptions struct {
	File             string
	OldPIN, NewPIN   *string
	OldFrom, NewFrom *string // sources of PINs
	Remove           bool
	WithoutLockout   bool
	Quiet            bool
	Given            func(flag string) bool
}

// pinChange is one run of passwd.
type pinChange struct {
	*op
	PasswdOptions

	target string // what File leads to
	data   []byte // as it was read
	links  int    // names that the file has
	parsed *keyfile.TPMKey
	public ssh.PublicKey

	key      *tpmkey.Key
	record   *parents.Record
	old, new []byte // PINs; nil: not given
	hadPIN   bool
	instead  bool // a new key will be made
}

// Passwd changes, sets or removes the PIN of a key.
func Passwd(ctx context.Context, sys *term.System, o PasswdOptions, args []string) error {
	if err := o.check(args); err != nil {
		return err
	}
	c := &pinChange{op: &op{sys: sys, ask: term.NewAsker(sys), quiet: o.Quiet}, PasswdOptions: o}
	if err := c.open(); err != nil {
		return err
	}
	if err := c.read(); err != nil {
		return err
	}
	defer func() { clear(c.old); clear(c.new) }()
	if err := c.sources(ctx); err != nil {
		return err
	}
	changed, err := c.change(ctx)
	if err := c.close(ctx, err); err != nil {
		return fmt.Errorf("changing the PIN of %s: %w", term.Plain(o.File), err)
	}
	switch {
	case c.instead:
		return c.makeInstead(ctx)
	case changed == nil:
		return c.say("%s has no PIN; nothing was changed.\n", term.Plain(o.File))
	}
	if err := c.swap(changed); err != nil {
		return err
	}
	return c.announce()
}

// check refuses option combinations that make no sense.
func (o *PasswdOptions) check(args []string) error {
	if err := term.Exclusive(o.Given, "old-pin pin-from", "new-pin new-pin-from remove"); err != nil {
		return err
	}
	switch {
	case o.Given("file") && len(args) > 0:
		return term.Usage("unexpected argument %q: the key file is given with -f", args[0])
	case len(args) > 1:
		return term.Usage("unexpected argument %q", args[1])
	case len(args) == 1:
		o.File = args[0]
	}
	switch {
	case o.File == "":
		return term.Usage("the key file is missing")
	case o.WithoutLockout && o.removes():
		return term.Usage("--without-lockout is about setting a PIN, and this removes it")
	case o.NewPIN != nil:
		if err := term.CheckPIN([]byte(*o.NewPIN)); err != nil {
			return term.Usage("-N: %w", err)
		}
	}
	return nil
}

// removes reports whether the options say that there must be no PIN.
func (o *PasswdOptions) removes() bool { return o.Remove || o.NewPIN != nil && *o.NewPIN == "" }

// sources reads the PINs that the options give, before anything else is read from
// standard input.
func (c *pinChange) sources(ctx context.Context) error {
	for _, from := range []struct {
		flag       string
		spec, text *string
		to         *[]byte
	}{{"--pin-from", c.OldFrom, c.OldPIN, &c.old}, {"--new-pin-from", c.NewFrom, c.NewPIN, &c.new}} {
		switch {
		case from.text != nil:
			*from.to = []byte(*from.text)
		case from.spec != nil:
			source, err := pinsource.Parse(c.sys, *from.spec)
			if err == nil {
				*from.to, _, err = source.Read(ctx)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", from.flag, err)
			}
		}
	}
	return nil
}

// read reads the key file, and makes sure that it is ours to replace before a PIN
// is asked for.
func (c *pinChange) read() (err error) {
	if _, c.public, err = inspect.ReadKey(c.File); err != nil {
		return noKeyHint(c.File, err)
	}
	if c.target, err = filepath.EvalSymlinks(c.File); err != nil {
		return err
	}
	if err := c.mayReplace(); err != nil {
		return err
	}
	if c.data, err = inspect.ReadSmall(c.target); err != nil {
		return inspect.Naming(c.File, err)
	}
	if c.parsed, err = keyfile.Parse(c.data); err != nil {
		return inspect.Naming(c.File, err)
	}
	if c.parsed.Type == keyfile.Importable {
		return term.Hint(fmt.Errorf("%s was wrapped for a TPM elsewhere; its PIN can be changed once it is imported", term.Plain(c.File)),
			"tpm-agent import %s", term.Quote(c.File))
	}
	return nil
}

// noKeyHint says what to do with a file that is no TPM key.
func noKeyHint(path string, err error) error {
	if beside, ok := inspect.KeyFileBeside(path); ok {
		return term.Hint(err, "tpm-agent passwd %s", term.Quote(beside))
	}
	if data, readErr := inspect.ReadSmall(path); readErr == nil && errors.Is(err, keyfile.ErrNoKey) && bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return term.Hint(err, "it is a key without a TPM, of which ssh-keygen -p -f %s changes the passphrase", term.Quote(path))
	}
	return err
}

// mayReplace checks that the file is ours, and that we can write to its directory.
// A file of another user would become ours.
func (c *pinChange) mayReplace() error {
	info, err := os.Stat(c.target)
	if err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		c.links = int(stat.Nlink)
		if int(stat.Uid) != os.Geteuid() {
			return term.Hint(fmt.Errorf("%s belongs to another user (%s), and would become yours", term.Plain(c.File), inspect.UserName(stat.Uid)), "change its PIN as that user")
		}
	}
	if err := unix.Faccessat(unix.AT_FDCWD, filepath.Dir(c.target), unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "replace", Path: c.target, Err: err}
	}
	return nil
}

// change asks what was not said, and has the TPM change the PIN. It returns nil
// if there is nothing to change.
func (c *pinChange) change(ctx context.Context) (_ *newKey, err error) {
	if c.key, err = c.tpm.Key(c.parsed); err != nil {
		return nil, err
	}
	if err := c.key.Changeable(); err != nil {
		return nil, err
	}
	c.record = c.book.Record(c.book.Recall()(c.File), c.key, c.File, c.public)
	// A key of another TPM is refused before a PIN is typed.
	if err := c.record.Explain(c.key.Load(ctx)); err != nil {
		return nil, err
	}
	if c.hadPIN, err = c.needsPIN(ctx, c.key, c.File); err != nil {
		return nil, err
	}
	if err := c.atOwnRisk(ctx); err != nil || c.instead {
		return nil, err
	}
	if c.hadPIN {
		given := c.old
		defer clear(given)
		c.old, err = askPIN(ctx, c.pinDialog(c.key, c.File, "Enter old PIN", "-P PIN gives it, or --pin-from SOURCE", given))
	} else if c.old != nil {
		err = term.Usage("it has no PIN, so -P and --pin-from do not go with it")
	}
	if err == nil && !c.Remove && c.new == nil {
		c.new, err = c.ask.NewPIN(ctx, "Enter new PIN (empty for no PIN): ")
	}
	if err != nil || !c.hadPIN && len(c.new) == 0 && c.parsed.EmptyAuth {
		return nil, err
	}
	changed, err := c.key.ChangeAuth(ctx, c.old, c.new)
	if err != nil {
		return nil, c.record.Explain(err)
	}
	key, err := encode(changed.File())
	if err != nil {
		return nil, err
	}
	key.tried = changed
	key.file, err = changed.File().MarshalInto(c.data)
	return key, err
}

// swap puts the new key file in place of the old one.
func (c *pinChange) swap(key *newKey) error {
	if err := same(c.target, c.data); err != nil {
		return term.Hint(fmt.Errorf("changing the PIN of %s: %w", term.Plain(c.File), err), "nothing was changed here: try again")
	}
	if err := keyfile.Replace(c.target, key.file, 0o600); err != nil {
		if same(c.target, key.file) == nil {
			return fmt.Errorf("%s has the new PIN, but after a crash it may have the old one again: %w", term.Plain(c.File), err)
		}
		return fmt.Errorf("changing the PIN of %s: nothing was changed: %w", term.Plain(c.File), err)
	}
	c.book.Learn(filepath.Dir(c.File), parents.KeyOf(key.public, key.parsed), key.tried.Parent())
	return nil
}

// announce says what was done, and what it means.
func (c *pinChange) announce() error {
	var b strings.Builder
	file, copies := term.Plain(c.File), "with the old PIN"
	switch {
	case len(c.new) == 0:
		fmt.Fprintf(&b, "%s has no PIN any more: every program of yours can use it.\n", file)
	case c.hadPIN:
		fmt.Fprintf(&b, "The PIN of %s was changed.\n", file)
	default:
		fmt.Fprintf(&b, "%s has a PIN now.\n", file)
		copies = "without a PIN"
	}
	fmt.Fprintf(&b, "Older copies of it (backups, other disks) keep working in this TPM, %s.\n", copies)
	if c.links > 1 {
		b.WriteString("Its other names (hard links) are such copies now.\n")
	}
	switch {
	case len(c.new) == 0 && !exempt(c.parsed):
		b.WriteString("It still takes part in the TPM's lockout, which is fixed when a key is made: too many wrong PINs, of any program, stop it for a while.\n")
	case len(c.new) > 0 && exempt(c.parsed):
		b.WriteString("The TPM does not count wrong PINs of this key: anyone with access to this machine can guess as fast as it answers.\n")
	}
	if c.addr.Software() {
		fmt.Fprintf(&b, "The key is %s.\n", term.NotProtected)
	}
	return term.NotSaid(c.say("%s", b.String()), "the PIN of %s was changed", file)
}

// atOwnRisk lets the user decide what becomes of a key that would get a PIN which
// the TPM's lockout cannot protect: nothing, a new key instead, or such a weak PIN.
func (c *pinChange) atOwnRisk(ctx context.Context) error {
	switch {
	case !exempt(c.parsed) || c.removes() || c.WithoutLockout:
		return nil
	case c.hadPIN:
		return nil // it gets no worse, and is told afterwards
	case !c.ask.Terminal:
		return term.Hint(errors.New("the key was made without a PIN, and the TPM would not count wrong ones; nothing was changed"),
			"make a new key with a PIN: tpm-agent keygen -f %s; or set it anyway: --without-lockout", term.Quote(c.freeName()))
	}
	c.ask.Say(`%s was made without a PIN, and is exempt from the TPM's lockout, which
cannot be changed any more. If it gets a PIN, the TPM does not count wrong ones:
anyone with access to this machine can guess as fast as it answers.`, term.Plain(c.File))
	choice, err := c.ask.Choice(ctx, "Make a new key with a PIN, set the PIN anyway, or stop?", "new", "anyway", "stop")
	switch {
	case err != nil:
		return fmt.Errorf("asking what to do: %w", err)
	case choice == "stop":
		return errors.New("nothing was changed")
	}
	c.instead = choice == "new"
	return nil
}

// freeName returns where a new key for the same purpose can go, without .tpm.
func (c *pinChange) freeName() string {
	name := inspect.KeyName(c.File) + "-pin"
	for n := 2; free(name+".tpm", name+".pub", name) != nil; n++ {
		name = inspect.KeyName(c.File) + "-pin" + strconv.Itoa(n)
	}
	return name
}

// makeInstead makes a new key of the same kind, with a PIN.
func (c *pinChange) makeInstead(ctx context.Context) error {
	if err := c.open(); err != nil {
		return err
	}
	kind := inspect.KindOf(c.parsed.Public)
	parent, _ := inspect.ParentWords(c.parsed)
	if parent == "platform" || parent == "null" {
		parent = "owner" // no new keys are made there
	}
	comment := inspect.CommentFor(c.File, c.parsed, c.public)
	o := KeygenOptions{KeyType: kind.Type, Bits: kind.Bits, Parent: parent, Comment: &comment}
	tm, _, err := o.template()
	if err != nil {
		return err
	}
	to, err := c.askFiles(ctx, &o, c.freeName())
	for err == nil && len(c.new) == 0 {
		c.new, err = c.ask.NewPIN(ctx, "Enter PIN of the new key: ")
	}
	if err != nil {
		return err
	}
	tm.Auth = c.new
	if err := c.create(ctx, tm, comment, to, false); err != nil {
		return err
	}
	old := term.Quote(c.File)
	if _, err := os.Lstat(inspect.PublicFile(c.File)); err == nil {
		old += " " + term.Quote(inspect.PublicFile(c.File))
	}
	return c.say(`%s is unchanged. To have the new key in its place:
  ssh-copy-id -f -i %s user@host   # on each server that knows the old one
  ssh -o IdentitiesOnly=yes -i %s user@host   # see that it works
  # there, take the old key out of ~/.ssh/authorized_keys; then here:
  rm %s
`, term.Plain(c.File), term.Quote(to.public), term.Quote(to.public), old)
}
