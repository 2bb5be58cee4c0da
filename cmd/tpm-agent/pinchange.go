package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// pinChange is one run of passwd.
type pinChange struct {
	*passwdOptions
	sys    system
	addr   tcti.Address
	ask    *asker
	memory *memory

	target string // what file leads to
	data   []byte // as it was read
	links  int    // names that the file has
	parsed *keyfile.TPMKey
	public ssh.PublicKey

	key      *rememberedKey
	old, new []byte // PINs; nil: not given
	hadPIN   bool
	instead  bool // a new key is to be made
}

func runPasswd(ctx context.Context, g *global, o *passwdOptions) error {
	addr, err := g.address()
	if err != nil {
		return err
	}
	c := &pinChange{passwdOptions: o, sys: g.sys, addr: addr, ask: newAsker(g.sys), memory: newMemory(addr, nil)}
	if err := c.open(); err != nil {
		return err
	}
	defer func() { clear(c.old); clear(c.new) }()
	if err := c.sources(ctx, g.sys); err != nil {
		return err
	}
	tpm := openTPM(addr)
	changed, err := c.change(ctx, tpm)
	if err := errors.Join(orInterrupted(ctx, err), tpm.Close()); err != nil {
		return fmt.Errorf("changing the PIN of %s: %w", plain(o.file), err)
	}
	switch {
	case c.instead:
		return c.makeInstead(ctx)
	case changed == nil:
		return c.say("%s has no PIN; nothing was changed.\n", plain(o.file))
	}
	if err := c.swap(changed); err != nil {
		return err
	}
	return c.announce()
}

// open reads the key file, and makes sure that it is ours to replace before
// anybody is asked for a PIN.
func (c *pinChange) open() error {
	if _, _, err := readKey(c.file); err != nil {
		return noKeyHint(c.file, err)
	}
	var err error
	if c.target, err = filepath.EvalSymlinks(c.file); err != nil {
		return err
	}
	if err := c.mayReplace(); err != nil {
		return err
	}
	if c.data, err = readSmall(c.target); err != nil {
		return naming(c.file, err)
	}
	if c.parsed, err = keyfile.Parse(c.data); err != nil {
		return naming(c.file, err)
	}
	if c.parsed.Type == keyfile.Importable {
		return withHint(fmt.Errorf("%s was wrapped for a TPM elsewhere; its PIN can be changed once it is imported", plain(c.file)),
			"tpm-agent import %s", shQuote(c.file))
	}
	c.public, err = ssh.NewPublicKey(c.parsed.Public.Key)
	return err
}

// mayReplace looks whether the file is ours, and its directory open to us. A
// file of another user would become ours.
func (c *pinChange) mayReplace() error {
	info, err := os.Stat(c.target)
	if err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		c.links = int(stat.Nlink)
		if int(stat.Uid) != os.Geteuid() {
			owner := strconv.Itoa(int(stat.Uid))
			if u, err := user.LookupId(owner); err == nil {
				owner = plain(u.Username)
			}
			return withHint(fmt.Errorf("%s belongs to another user (%s), and would become yours", plain(c.file), owner), "change its PIN as that user")
		}
	}
	dir := filepath.Dir(c.target)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "replace", Path: c.target, Err: err}
	}
	return nil
}

// change asks what was not said, and has the TPM change the PIN. It returns nil
// where there is nothing to change.
func (c *pinChange) change(ctx context.Context, tpm *tpmkey.TPM) (*newKey, error) {
	key, err := tpm.Key(c.parsed)
	if err != nil {
		return nil, err
	}
	if err := key.Changeable(); err != nil {
		return nil, err
	}
	c.key = c.memory.remember(key, c.memory.recall()(c.file), c.file, c.public)
	// A key of another TPM is refused before anybody types a PIN.
	if err := c.key.orMissed(c.key.Load(ctx)); err != nil {
		return nil, err
	}
	if c.hadPIN, err = c.needsPIN(ctx); err != nil {
		return nil, err
	}
	if err := c.atOwnRisk(ctx); err != nil || c.instead {
		return nil, err
	}
	if c.hadPIN {
		if err := c.askOld(ctx); err != nil {
			return nil, err
		}
	} else if c.old != nil {
		return nil, usage("it has no PIN, so -P and --pin-from do not go with it")
	}
	if err := c.askNew(ctx); err != nil {
		return nil, err
	}
	if !c.hadPIN && len(c.new) == 0 && c.parsed.EmptyAuth {
		return nil, nil
	}
	return c.inTPM(ctx)
}

// inTPM makes the new key file.
func (c *pinChange) inTPM(ctx context.Context) (*newKey, error) {
	old := c.old
	if !c.hadPIN {
		old = nil
	}
	changed, err := c.key.ChangeAuth(ctx, old, c.new)
	if err != nil {
		return nil, c.key.orMissed(err)
	}
	key, _, err := encodeKey(changed.File())
	if err != nil {
		return nil, err
	}
	key.tried = changed
	key.file, err = changed.File().MarshalInto(c.data)
	return key, err
}

// orMissed is err, in the words of what is remembered where it is about a
// storage key that is not there.
func (k *rememberedKey) orMissed(err error) error {
	if err != nil && gone(err) {
		return k.missed(err)
	}
	return err
}

// exempt is whether the TPM counts no wrong PINs of the key.
func (c *pinChange) exempt() bool { return c.parsed.Public.Attributes.NoDA() }

// needsPIN finds out whether the key has a PIN. What the file says is a hint
// that some programs get wrong; where it costs nothing the TPM is asked.
func (c *pinChange) needsPIN(ctx context.Context) (bool, error) {
	if !c.parsed.EmptyAuth && !c.exempt() {
		return true, nil
	}
	if _, err := c.ask.mayTry(ctx, c.key.Key, c.file, false); err != nil {
		return false, err
	}
	err := c.key.CheckAuth(ctx, nil)
	var wrong *tpmkey.AuthError
	if errors.As(err, &wrong) {
		return true, nil
	}
	return false, err
}

// askOld gets the old PIN, which the TPM has verified then. A person may try
// again.
func (c *pinChange) askOld(ctx context.Context) error {
	var wrong wrongPINs
	defer func() { wrong.wipe() }()
	asked := c.old == nil
	for try := 1; ; try++ {
		err := c.tryOld(ctx, asked, wrong)
		var refused *tpmkey.AuthError
		switch {
		case !errors.As(err, &refused):
			return err
		case refused.Left == 0:
			return c.nowLocked(ctx)
		case !asked || !c.ask.terminal || try == passphraseTries:
			return err
		}
		wrong = append(wrong, c.old)
	}
}

// tryOld has the TPM verify the old PIN, unless it was wrong before: that would
// only cost another try.
func (c *pinChange) tryOld(ctx context.Context, asked bool, wrong wrongPINs) error {
	again := len(wrong) > 0
	tries, err := c.ask.mayTry(ctx, c.key.Key, c.file, again)
	if err == nil && asked {
		c.old, err = c.ask.secret(ctx, "PIN", c.question(tries, again), "-P PIN gives it, or --pin-from SOURCE")
	}
	switch {
	case err != nil:
		return err
	case wrong.has(c.old):
		return &tpmkey.AuthError{Left: tries}
	}
	return c.key.CheckAuth(ctx, c.old)
}

// nowLocked is what became of the last try.
func (c *pinChange) nowLocked(ctx context.Context) error {
	lo, err := c.key.Lockout(ctx)
	return errors.Join(fmt.Errorf("wrong PIN; %w", &tpmkey.LockoutError{Wait: lo.Wait}), err)
}

// question asks for the old PIN, and tells what a wrong one costs. Before a last
// try that has been said.
func (c *pinChange) question(tries int, again bool) string {
	words := ""
	if tries != 1 {
		words = triesWords(tries, again)
	}
	if words != "" {
		words += "\n"
	}
	return fmt.Sprintf("%sEnter old PIN for %s: ", words, plain(c.file))
}

func (c *pinChange) askNew(ctx context.Context) (err error) {
	if c.remove || c.new != nil {
		return nil
	}
	c.new, err = c.ask.twice(ctx, "Enter new PIN (empty for no PIN): ")
	return err
}

// swap puts the new key file in place of the old one.
func (c *pinChange) swap(key *newKey) error {
	if err := same(c.target, c.data); err != nil {
		return withHint(fmt.Errorf("changing the PIN of %s: %w", plain(c.file), err), "nothing was changed here: try again")
	}
	if err := keyfile.Replace(c.target, key.file, 0o600); err != nil {
		if same(c.target, key.file) == nil {
			return fmt.Errorf("%s has the new PIN, but after a crash it may have the old one again: %w", plain(c.file), err)
		}
		return fmt.Errorf("changing the PIN of %s: nothing was changed: %w", plain(c.file), err)
	}
	c.memory.learn(filepath.Dir(c.file), key)
	return nil
}

// say prints what was asked for, unless nothing is to be printed.
func (c *pinChange) say(format string, args ...any) error {
	if c.quiet {
		return nil
	}
	_, err := fmt.Fprintf(c.sys.stdout, format, args...)
	return err
}

// announce says what was done, and what it means.
func (c *pinChange) announce() error {
	var b strings.Builder
	file, copies := plain(c.file), "with the old PIN"
	switch {
	case len(c.new) == 0:
		fmt.Fprintf(&b, "%s has no PIN any more: every program of yours can use it.\n", file)
	case c.hadPIN:
		fmt.Fprintf(&b, "The PIN of %s was changed.\n", file)
	default:
		fmt.Fprintf(&b, "%s has a PIN now.\n", file)
		copies = "without a PIN"
	}
	fmt.Fprintf(&b, "Copies of it from before (backups, other disks) go on working in this TPM, %s.\n", copies)
	if c.links > 1 {
		b.WriteString("Its other names (hard links) are such copies now.\n")
	}
	switch {
	case len(c.new) == 0 && !c.exempt():
		b.WriteString("It still takes part in the TPM's lockout, which is fixed when a key is made: too many wrong PINs, of any program, stop it for a while.\n")
	case len(c.new) > 0 && c.exempt():
		b.WriteString("The TPM does not count wrong PINs of this key: whoever gets at this machine can guess as fast as it answers.\n")
	}
	if c.addr.Software() {
		fmt.Fprintf(&b, "The key is %s.\n", notProtected)
	}
	return notSaid(c.say("%s", b.String()), "the PIN of %s was changed", file)
}
