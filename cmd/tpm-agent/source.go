package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/privkey"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// sourceKey is the private key file that is imported.
type sourceKey struct {
	path       string
	data       []byte
	public     ssh.PublicKey
	key        *privkey.Key    // a private key in clear, or
	wrapped    *keyfile.TPMKey // one that was wrapped for a storage key
	passphrase []byte          // of key, or the PIN of wrapped, as far as known
}

// forget overwrites the secrets that are ours. Those inside key are the garbage
// collector's.
func (s *sourceKey) forget() {
	clear(s.passphrase)
	clear(s.data)
}

// passphraseTries is how often a passphrase is asked for.
const passphraseTries = 3

// readSource reads FILE, and asks for its passphrase if it needs one.
func (o *importOptions) readSource(ctx context.Context, ask *asker) (*sourceKey, error) {
	data, err := privkey.ReadFile(o.source)
	if err != nil {
		return nil, err
	}
	s := &sourceKey{path: o.source, data: data}
	s.key, err = s.parse(ctx, ask, o)
	if errors.Is(err, privkey.ErrTPM) {
		s.wrapped, err = parseWrapped(data)
	}
	if err == nil {
		err = s.findPublic()
	}
	if err == nil {
		err = o.fits(s)
	}
	if err != nil {
		s.forget()
		err = fmt.Errorf("%s: %w", plain(o.source), withWays(o.source, err))
		if errors.Is(err, privkey.ErrFormat) {
			err = withHint(err, "nothing was changed; ssh-keygen -y -f %s shows whether ssh can read it", shQuote(o.source))
		}
		return nil, err
	}
	return s, nil
}

// withWays puts the file's name into what can be done instead.
func withWays(path string, err error) error {
	var key *privkey.UnsupportedError
	if !errors.As(err, &key) {
		return err
	}
	named := *key
	named.Ways = nil
	for _, way := range key.Ways {
		named.Ways = append(named.Ways, strings.NewReplacer("FILE", shQuote(path), "NEW", shQuote(path+".new")).Replace(way))
	}
	return &named
}

// parse takes the key out of the file. A person may try again.
func (s *sourceKey) parse(ctx context.Context, ask *asker, o *importOptions) (*privkey.Key, error) {
	for try := 1; ; try++ {
		key, err := privkey.Parse(s.data, func() ([]byte, error) { return s.askPassphrase(ctx, ask, o) })
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.Is(err, privkey.ErrPassphrase):
			return key, err
		case o.passphrase != nil || !ask.terminal || try == passphraseTries:
			return nil, err
		}
		fmt.Fprintln(ask.sys.stderr, "Wrong passphrase.  Try again.")
	}
}

// askPassphrase is called when the key turns out to be encrypted. Nobody is
// asked for a passphrase before it is certain what becomes of the PIN.
func (s *sourceKey) askPassphrase(ctx context.Context, ask *asker, o *importOptions) ([]byte, error) {
	if !ask.terminal && !o.saysPIN() {
		return nil, withHint(usage("it has a passphrase, and there is no terminal to ask what becomes of it"),
			"--keep-passphrase makes it the PIN, -N PIN gives another one, --no-pin leaves it out")
	}
	clear(s.passphrase)
	if o.passphrase != nil {
		s.passphrase = []byte(*o.passphrase)
		return s.passphrase, nil
	}
	var err error
	s.passphrase, err = ask.secret(ctx, "passphrase", fmt.Sprintf("Enter passphrase for %s: ", plain(s.path)), "-P PASSPHRASE gives it")
	return s.passphrase, err
}

// parseWrapped reads a TPM key file, which must be one to be imported.
func parseWrapped(data []byte) (*keyfile.TPMKey, error) {
	key, err := keyfile.Parse(data)
	if err != nil {
		return nil, err
	}
	if key.Type != keyfile.Importable {
		return nil, withHint(errors.New("it is a TPM key already"), "tpm-agent list and tpm-agent add use it as it is; tpm-agent inspect shows what it says")
	}
	return key, nil
}

// findPublic computes the public key.
func (s *sourceKey) findPublic() (err error) {
	if s.wrapped != nil {
		s.public, err = ssh.NewPublicKey(s.wrapped.Public.Key)
		return err
	}
	signer, err := ssh.NewSignerFromKey(s.key.Private)
	if err != nil {
		return err
	}
	s.public = signer.PublicKey()
	return nil
}

// fits refuses options that say nothing about such a file.
func (o *importOptions) fits(s *sourceKey) error {
	switch {
	case s.wrapped != nil && o.saysPIN():
		return usage("the PIN of a wrapped key was given when it was wrapped, and cannot be changed here")
	case s.wrapped != nil && o.target != "":
		return withHint(usage("it is wrapped already, and only the TPM that it was wrapped for can open it"), "wrap the private key that it was made from")
	case s.wrapped != nil && o.parent != "owner":
		return usage("a wrapped key says itself which storage key it is for, so --parent does not go with it")
	case s.wrapped == nil && s.passphrase == nil && o.passphrase != nil:
		return usage("it has no passphrase, so -P does not go with it")
	case s.wrapped == nil && s.passphrase == nil && o.keepPassphrase:
		return usage("it has no passphrase that --keep-passphrase could keep")
	}
	return nil
}

// newPIN is the PIN of a private key that is imported: as the command line says,
// else as the user says.
func (o *importOptions) newPIN(ctx context.Context, ask *asker, s *sourceKey) ([]byte, error) {
	switch {
	case o.noPIN:
		return nil, nil
	case o.pin != nil:
		return []byte(*o.pin), checkNewPIN([]byte(*o.pin))
	case o.keepPassphrase:
		return bytes.Clone(s.passphrase), checkPIN(s.passphrase)
	case s.passphrase == nil:
		return ask.newPIN(ctx)
	}
	choice, err := ask.choice(ctx, "PIN of the key: keep the passphrase, change it, or drop it?", "keep", "change", "drop")
	switch {
	case err != nil:
		return nil, withHint(fmt.Errorf("asking what becomes of the passphrase: %w", err), "say it with --keep-passphrase, -N PIN or --no-pin")
	case choice == "keep":
		return bytes.Clone(s.passphrase), checkPIN(s.passphrase)
	case choice == "change":
		return ask.newPIN(ctx)
	}
	return nil, nil
}

// commentOf is the comment that was asked for, else that of the key, else that
// of the public key file beside it.
func (o *importOptions) commentOf(s *sourceKey) string {
	switch {
	case o.comment != nil:
		return *o.comment
	case s.wrapped != nil:
		return commentFor(s.path, s.wrapped, s.public)
	case plain(s.key.Comment) != "":
		return strings.TrimSpace(plain(s.key.Comment))
	}
	comment, _ := commentBeside(publicFile(s.path), s.public)
	return comment
}

// askPIN asks for the PIN of a wrapped key.
func (s *sourceKey) askPIN(ctx context.Context, ask *asker, o *importOptions) (err error) {
	clear(s.passphrase)
	if o.passphrase != nil {
		s.passphrase = []byte(*o.passphrase)
		return nil
	}
	s.passphrase, err = ask.secret(ctx, "PIN", fmt.Sprintf("Enter PIN for %s: ", plain(s.path)), "-P PIN gives it")
	return err
}

// old is the file as the one that is left behind, which a symbolic link only leads
// to. To be moved it must be named itself.
func (s *sourceKey) old(move bool) (*oldKey, error) {
	path := s.path
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		if path, err = filepath.EvalSymlinks(s.path); err != nil {
			return nil, err
		}
		if move {
			return nil, withHint(fmt.Errorf("%s is a symbolic link, which would be moved in place of the key", plain(s.path)),
				"name the file that it leads to: %s", shQuote(path))
		}
	}
	return &oldKey{path: path, data: s.data, encrypted: s.passphrase != nil, wrapped: s.wrapped != nil}, nil
}
