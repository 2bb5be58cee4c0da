// Package keyops creates, imports, wraps, changes and retires keys: it does what
// the commands do, without flags.
package keyops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// An op is one run of a command.
type op struct {
	sys   *term.System
	ask   *term.Asker
	quiet bool

	// After open:
	addr tcti.Address
	tpm  *tpmkey.TPM
	book *parents.Book
}

// open gives the op its TPM. The caller calls close.
func (p *op) open() (err error) {
	if p.addr, err = p.sys.Address(); err != nil {
		return err
	}
	p.tpm, p.book = tpmkey.New(p.addr.Open), parents.NewBook(parents.Default(), p.addr, nil)
	return nil
}

// close closes the TPM, and returns what went wrong: while it was used, or now.
func (p *op) close(ctx context.Context, err error) error {
	return errors.Join(term.OrInterrupted(ctx, err), p.tpm.Close())
}

// say prints what was asked for, unless nothing must be printed.
func (p *op) say(format string, args ...any) error {
	if p.quiet {
		return nil
	}
	_, err := fmt.Fprintf(p.sys.Stdout, format, args...)
	return err
}

// parentHandle returns the handle that --parent names.
func parentHandle(name string) (uint32, error) {
	switch name {
	case "owner":
		return keyfile.ParentOwner, nil
	case "endorsement":
		return keyfile.ParentEndorsement, nil
	case "null":
		return 0, term.Usage("--parent null: such a key is lost when the machine restarts")
	case "platform":
		return 0, term.Usage("--parent platform: that hierarchy belongs to the firmware")
	}
	handle, err := strconv.ParseUint(name, 0, 32)
	if err != nil || handle>>24 != 0x81 {
		return 0, term.Usage("--parent %s: must be owner, endorsement or a persistent handle 0x81……", term.Plain(name))
	}
	return uint32(handle), nil
}

// storageKey asks for the storage key under which a key will be put into dir, and
// returns its handle and its Name, which the key is then held to. It must be the
// remembered one: where it was asked for, and where it is found, which is a
// different place if the owner hierarchy has a password. changed: it need not be.
func (p *op) storageKey(ctx context.Context, dir string, asked uint32, changed bool) (handle uint32, name []byte, err error) {
	found, handle, err := p.tpm.ParentAt(ctx, asked)
	if err != nil {
		return 0, nil, noStorageKey(err)
	}
	if changed {
		return handle, found.Name, nil
	}
	if handle != asked { // it stands in for the owner's
		err = p.sameTPM(dir, "owner", found.Name)
	}
	if err == nil {
		err = p.sameTPM(dir, found.At, found.Name)
	}
	return handle, found.Name, err
}

// sameTPM refuses a storage key that differs from the last one recorded for a place.
func (p *op) sameTPM(dir, place string, name []byte) error {
	err := p.book.Check(dir, place, name)
	if err == nil {
		return nil
	}
	return term.Hint(err, "if you know that it was, use --new-tpm (the previous keys do not work in it); if not, do not: something may stand between you and the TPM")
}

// noStorageKey adds what to do if nothing is at the handle that was asked for.
func noStorageKey(err error) error {
	if errors.Is(err, tpmkey.ErrNoParent) {
		return term.Hint(err, "tpm2_getcap handles-persistent lists what is there; without --parent it is the owner's storage key, which every TPM has")
	}
	return err
}

// checkName refuses file names that would not become what the user expects.
func checkName(file string) error {
	switch base := filepath.Base(file); {
	case file == "" || strings.HasSuffix(file, "/") || base == "." || base == "..":
		return term.Usage("%q is no name for a key file", file)
	case strings.HasSuffix(file, ".tpm"), strings.HasSuffix(file, ".pub"):
		return term.Hint(term.Usage("%s: give the name without its suffix; .tpm and .pub are added", term.Plain(file)),
			"-f %s", term.Quote(file[:len(file)-len(".tpm")]))
	}
	return nil
}

// ready makes sure that there is a directory to save keys in. It makes ~/.ssh, as
// ssh-keygen does; a directory of any other name must exist.
func (p *op) ready(dir string) error {
	if dotSSH, err := p.sys.SSHDir(); err == nil && dir == dotSSH {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if info, err := os.Stat(dir); err != nil {
		return fmt.Errorf("saving the key: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("saving the key: %s is not a directory", term.Plain(dir))
	}
	return nil
}

// free makes sure that nothing is in the way: neither what would be written,
// nor a key that ssh would take the public key for.
func free(names ...string) error {
	for _, name := range names {
		_, err := os.Lstat(name)
		switch {
		case err == nil:
			return term.Hint(fmt.Errorf("%s already exists; no key was made, and nothing was changed", term.Plain(name)),
				"choose another name with -f, or move it away")
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("looking for %s: %w", term.Plain(name), err)
		}
	}
	return nil
}

// pinDialog returns the dialog about the PIN of a key in the TPM.
func (p *op) pinDialog(key *tpmkey.Key, file, question, hint string, given []byte) *term.PINDialog {
	left := func(ctx context.Context) (consent.Lockout, error) {
		l, err := key.Lockout(ctx)
		return consent.Lockout{Tries: l.Tries, Wait: l.Wait}, err
	}
	return &term.PINDialog{Asker: p.ask, Name: file, Question: question, Hint: hint, Given: given, Left: left, TryPIN: key.CheckAuth}
}

// askPIN is [consent.AskPIN], with the TPM's words for a lockout.
func askPIN(ctx context.Context, d *term.PINDialog) ([]byte, error) {
	pin, err := consent.AskPIN(ctx, d)
	var locked *consent.LockedOutError
	var wrong *tpmkey.AuthError
	switch {
	case errors.As(err, &locked) && errors.As(err, &wrong):
		err = fmt.Errorf("wrong PIN; %w", &tpmkey.LockoutError{Wait: locked.Wait})
	case errors.As(err, &locked):
		err = &tpmkey.LockoutError{Wait: locked.Wait}
	}
	return pin, err
}

// needsPIN finds out whether a key has a PIN. Some programs write that wrong into
// the file. Where it costs nothing, the TPM is asked.
func (p *op) needsPIN(ctx context.Context, key *tpmkey.Key, file string) (bool, error) {
	if !key.File().EmptyAuth && !exempt(key.File()) {
		return true, nil
	}
	_, err := askPIN(ctx, p.pinDialog(key, file, "", "", []byte{}))
	var wrong *tpmkey.AuthError
	if errors.As(err, &wrong) {
		return true, nil
	}
	return false, err
}

// exempt reports whether the TPM counts no wrong PINs of a key.
func exempt(key *keyfile.TPMKey) bool { return key.Public.Attributes.NoDA() }
