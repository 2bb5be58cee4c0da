package keyops

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/privkey"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// ImportOptions are the options of import. A nil pointer is a question to ask, or
// taken from what is imported.
type ImportOptions struct {
	Comment        *string
	File           *string // without .tpm
	PIN            *string
	Passphrase     *string
	KeepPassphrase bool
	NoPIN          bool
	Quiet          bool
	Retire         bool
	Replace        bool
	Parent         string
	NewTPM         bool   // the user knows that the TPM was changed
	Target         string // the storage key file of another machine, with --for
	Given          func(flag string) bool
}

// importing is one run of import.
type importing struct {
	*op
	ImportOptions
	path       string
	data       []byte // of the file
	public     ssh.PublicKey
	key        *privkey.Key    // a private key in clear, or
	wrapped    *keyfile.TPMKey // one that was wrapped for a storage key
	passphrase []byte          // of key; nil: it has none
}

// Import imports the key in a file into the TPM, or wraps it for a different TPM.
func Import(ctx context.Context, sys *term.System, o ImportOptions, path string) error {
	if err := o.check(); err != nil {
		return err
	}
	i := &importing{op: &op{sys: sys, ask: term.NewAsker(sys), quiet: o.Quiet}, ImportOptions: o, path: path}
	// Those inside i.key are the garbage collector's.
	defer func() { clear(i.passphrase); clear(i.data) }()
	if o.Given("for") {
		return i.elsewhere(ctx)
	}
	return i.here(ctx)
}

// check refuses option combinations that make no sense.
func (o *ImportOptions) check() error {
	if err := term.Exclusive(o.Given,
		"pin keep-passphrase no-pin", "file replace", "for new-tpm", "for retire", "for replace"); err != nil {
		return err
	}
	switch {
	case o.Given("for") && o.Target == "":
		return term.Usage("--for: the file's name is empty")
	case o.Comment != nil && term.Plain(*o.Comment) != *o.Comment:
		return term.Usage("-C: the comment must be one line of printable characters")
	case o.File != nil:
		return checkName(*o.File)
	}
	return nil
}

// saysPIN reports whether the options say what becomes of the PIN.
func (o *ImportOptions) saysPIN() bool { return o.PIN != nil || o.KeepPassphrase || o.NoPIN }

// here reads the key, brings it into the TPM, tries it there, saves it, and only
// then touches the old file, if it is told to.
func (i *importing) here(ctx context.Context) error {
	if err := i.open(); err != nil {
		return err
	}
	parent, err := parentHandle(i.Parent)
	if err != nil {
		return err
	}
	files, err := i.files()
	if err != nil {
		return err
	}
	if err := i.read(ctx); err != nil {
		return err
	}
	if !i.Replace && files.private == filepath.Clean(i.path) {
		return term.Hint(free(files.private), "--replace puts the key in its place, -f OUT elsewhere")
	}
	if err := i.checkPublic(&files); err != nil {
		return err
	}
	old, err := i.old()
	if err != nil {
		return err
	}
	key, home, err := i.bring(ctx, parent, filepath.Dir(files.private))
	if err := i.close(ctx, err); err != nil {
		return fmt.Errorf("importing %s: %w", term.Plain(i.path), err)
	}
	key.comment = i.comment()
	return i.finish(key, home, files, old)
}

// elsewhere is `import --for`: it wraps the key for another machine's TPM.
func (i *importing) elsewhere(ctx context.Context) error {
	to, err := readTarget(i.Target)
	if err != nil {
		return err
	}
	parent, err := to.parent(i.Parent)
	if err != nil {
		return err
	}
	name := filepath.Base(inspect.KeyName(i.path))
	if i.File != nil {
		name = *i.File
	}
	files, err := i.wrappedFiles(name)
	if err != nil {
		return err
	}
	if err := i.read(ctx); err != nil {
		return err
	}
	if err := i.checkPublic(&files); err != nil {
		return err
	}
	pin, err := i.pin(ctx)
	if err != nil {
		return err
	}
	defer clear(pin)
	return i.wrap(ctx, to, i.key.Private.(crypto.Signer), tpmkey.WrapOptions{Auth: pin, Parent: parent}, i.comment(), files,
		fmt.Sprintf("The private key is still here, in %s: anyone who reads it has the key.", term.Plain(i.path)))
}

// files returns where the key goes. The private one must not be there yet, unless
// it is the old one itself.
func (i *importing) files() (keyFiles, error) {
	name := inspect.KeyName(i.path)
	if i.File != nil {
		name = *i.File
	}
	to := keyFiles{private: filepath.Clean(name + ".tpm"), public: filepath.Clean(name + ".pub")}
	source := filepath.Clean(i.path)
	if i.Replace || to.private == source {
		to.private = source // what is in the file decides
		return to, nil
	}
	taken := []string{to.private}
	if i.File != nil && filepath.Clean(name) != source {
		taken = append(taken, name)
	}
	if err := free(taken...); err != nil {
		return to, err
	}
	return to, i.ready(filepath.Dir(to.private))
}

// checkPublic looks at the public key file, which may be there if it is right.
func (i *importing) checkPublic(to *keyFiles) error {
	if _, err := os.Lstat(to.public); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := inspect.CommentBeside(to.public, i.public); err != nil {
		return term.Hint(fmt.Errorf("%w; no key was made, and nothing was changed", err), "move it away, or choose another name with -f")
	}
	if i.Comment != nil {
		return term.Hint(term.Usage("%s is there already and is left as it is, so -C does not go with it", term.Plain(to.public)), "ssh-keygen -c changes comments; or edit the file")
	}
	to.hasPublic = true
	return nil
}

// bring brings the key, which will be in dir, into the TPM, and tries it with its
// PIN. home is what to say about where it lives, unless nothing must be said.
func (i *importing) bring(ctx context.Context, parent uint32, dir string) (key *newKey, home string, err error) {
	if i.wrapped != nil {
		key, err = i.unwrap(ctx, dir)
	} else {
		key, err = i.load(ctx, parent, dir)
	}
	if err == nil {
		err = key.is(i.public)
	}
	if err == nil && !i.quiet {
		home, err = i.home(ctx, i.addr.Software())
	}
	return key, home, err
}

// load brings a private key into the TPM.
func (i *importing) load(ctx context.Context, parent uint32, dir string) (*newKey, error) {
	handle, name, err := i.storageKey(ctx, dir, parent, i.NewTPM)
	if err != nil {
		return nil, err
	}
	pin, err := i.pin(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	made, err := i.tpm.ImportPrivate(ctx, i.key.Private, tpmkey.WrapOptions{Auth: pin, Parent: handle, ParentName: name})
	if err != nil {
		return nil, err
	}
	return i.try(ctx, made, name, pin)
}

// unwrap makes an ordinary key of one that was wrapped for this TPM. Its PIN is
// not asked for before the storage key is known to be the remembered one.
func (i *importing) unwrap(ctx context.Context, dir string) (key *newKey, err error) {
	made, err := i.tpm.Import(ctx, i.wrapped)
	if parents.IsGone(err) {
		return nil, term.Hint(err, "compare the fingerprint that was shown when it was wrapped with: tpm-agent srk --fingerprint")
	}
	if err != nil {
		return nil, err
	}
	loaded, err := i.tpm.Key(made)
	if err == nil {
		err = loaded.Load(ctx)
	}
	if err == nil && !i.NewTPM {
		err = i.sameTPM(dir, loaded.Parent().At, loaded.ParentName())
	}
	if err != nil {
		return nil, err
	}
	d := i.pinDialog(loaded, i.path, "Enter PIN", "-P PIN gives it", nil)
	d.TryPIN = func(ctx context.Context, pin []byte) error {
		made.EmptyAuth = len(pin) == 0
		key, err = i.try(ctx, made, loaded.ParentName(), pin)
		return err
	}
	needs := true
	if i.Passphrase != nil {
		d.Given = []byte(*i.Passphrase)
	} else if needs, err = i.needsPIN(ctx, loaded, i.path); err != nil {
		return nil, err
	}
	if !needs {
		return key, d.Try(ctx, nil)
	}
	pin, err := askPIN(ctx, d)
	clear(pin)
	return key, err
}

// finish saves the key. From then on there is one that works, and the old file
// may go.
func (i *importing) finish(key *newKey, home string, to keyFiles, old *oldKey) error {
	attic, err := retiredDir(i.sys)
	if err != nil {
		return err
	}
	var gone retired
	if i.Replace {
		if gone, err = key.replace(to, old, attic); err == nil {
			i.book.Learn(filepath.Dir(to.private), parents.KeyOf(key.public, key.parsed), key.tried.Parent())
		}
	} else {
		err = i.save(key, to)
	}
	if err != nil {
		return err
	}
	if i.Retire && !i.Replace {
		if gone, err = old.retire(attic, time.Now(), nil); err != nil {
			return fmt.Errorf("the key was imported, and is in %s, but the old one could not be moved away: %w", term.Plain(to.private), err)
		}
	}
	if i.quiet {
		return nil
	}
	text := key.announce(to, "Your", "identification") + home + old.farewell(gone, attic)
	return term.NotSaid(i.say("%s", text), "the key was imported, and is in %s", term.Plain(to.private))
}

// replace saves the key in place of the old one. The public key, which both have,
// may come first.
func (k *newKey) replace(to keyFiles, old *oldKey, attic string) (retired, error) {
	public, err := k.savePublic(to)
	if err != nil {
		return retired{}, err
	}
	gone, err := old.retire(attic, time.Now(), k.file)
	if err == nil {
		return gone, nil
	}
	err = fmt.Errorf("putting the key in place of %s: %w", term.Plain(old.path), err)
	if public != nil && same(old.path, k.file) != nil {
		err = errors.Join(err, unsave(to.public, public))
	}
	return gone, err
}

// pin returns the PIN of a private key that is imported: as the options say, else
// as the user says.
func (i *importing) pin(ctx context.Context) ([]byte, error) {
	choice := "keep"
	switch {
	case i.NoPIN:
		return nil, nil
	case i.PIN != nil:
		return []byte(*i.PIN), term.CheckPIN([]byte(*i.PIN))
	case i.KeepPassphrase:
	case i.passphrase == nil:
		choice = "change"
	default:
		var err error
		choice, err = i.ask.Choice(ctx, "PIN of the key: keep the passphrase, change it, or drop it?", "keep", "change", "drop")
		if err != nil {
			return nil, term.Hint(fmt.Errorf("asking what to do with the passphrase: %w", err), "use --keep-passphrase, -N PIN or --no-pin")
		}
	}
	switch choice {
	case "keep":
		return bytes.Clone(i.passphrase), term.CheckPIN(i.passphrase)
	case "change":
		return i.ask.NewPIN(ctx, askNewPIN)
	}
	return nil, nil
}

// comment returns the comment that was asked for, else that of the key, else that
// of the public key file beside it.
func (i *importing) comment() string {
	switch {
	case i.Comment != nil:
		return *i.Comment
	case i.wrapped != nil:
		return inspect.CommentFor(i.path, i.wrapped, i.public)
	case term.Plain(i.key.Comment) != "":
		return strings.TrimSpace(term.Plain(i.key.Comment))
	}
	comment, _ := inspect.CommentBeside(inspect.PublicFile(i.path), i.public)
	return comment
}

// passphraseTries is how often a passphrase is asked for.
const passphraseTries = 3

// read reads the file, and asks for its passphrase if it needs one.
func (i *importing) read(ctx context.Context) (err error) {
	if i.data, err = privkey.ReadFile(i.path); err != nil {
		return err
	}
	i.key, err = i.parse(ctx)
	if errors.Is(err, privkey.ErrTPM) {
		i.wrapped, err = parseWrapped(i.data)
	}
	if err == nil {
		err = i.findPublic()
	}
	if err == nil {
		err = i.fits()
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", term.Plain(i.path), withWays(i.path, err))
	if errors.Is(err, privkey.ErrFormat) {
		err = term.Hint(err, "nothing was changed; ssh-keygen -y -f %s shows whether ssh can read it", term.Quote(i.path))
	}
	return err
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
		named.Ways = append(named.Ways, strings.NewReplacer("FILE", term.Quote(path), "NEW", term.Quote(path+".new")).Replace(way))
	}
	return &named
}

// parse takes the private key out of the file. The user may try again.
func (i *importing) parse(ctx context.Context) (*privkey.Key, error) {
	for try := 1; ; try++ {
		key, err := privkey.Parse(i.data, func() ([]byte, error) { return i.askPassphrase(ctx) })
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.Is(err, privkey.ErrPassphrase):
			return key, err
		case i.Passphrase != nil || !i.ask.Terminal || try == passphraseTries:
			return nil, err
		}
		i.ask.Say("Wrong passphrase.  Try again.")
	}
}

// askPassphrase is called when the key turns out to be encrypted. It asks only if
// it is certain what becomes of the PIN.
func (i *importing) askPassphrase(ctx context.Context) (_ []byte, err error) {
	if !i.ask.Terminal && !i.saysPIN() {
		return nil, term.Hint(term.Usage("it has a passphrase, and there is no terminal to ask what becomes of it"),
			"--keep-passphrase makes it the PIN, -N PIN sets a new one, --no-pin leaves it out")
	}
	clear(i.passphrase)
	if i.Passphrase != nil {
		i.passphrase = []byte(*i.Passphrase)
		return i.passphrase, nil
	}
	i.passphrase, err = i.ask.Secret(ctx, "passphrase", fmt.Sprintf("Enter passphrase for %s: ", term.Plain(i.path)), "give it with -P PASSPHRASE")
	return i.passphrase, err
}

// parseWrapped reads a TPM key file, which must be one to be imported.
func parseWrapped(data []byte) (*keyfile.TPMKey, error) {
	key, err := keyfile.Parse(data)
	if err == nil && key.Type != keyfile.Importable {
		err = term.Hint(errors.New("it is a TPM key already"), "tpm-agent list and tpm-agent add use it as it is; tpm-agent inspect shows what it says")
	}
	return key, err
}

// findPublic computes the public key.
func (i *importing) findPublic() (err error) {
	if i.wrapped != nil {
		i.public, err = ssh.NewPublicKey(i.wrapped.Public.Key)
		return err
	}
	signer, err := ssh.NewSignerFromKey(i.key.Private)
	if err == nil {
		i.public = signer.PublicKey()
	}
	return err
}

// fits refuses options that say nothing about such a file.
func (i *importing) fits() error {
	plain := i.wrapped == nil && i.passphrase == nil
	switch {
	case i.wrapped != nil && i.saysPIN():
		return term.Usage("the PIN of a wrapped key was given when it was wrapped, and cannot be changed here")
	case i.wrapped != nil && i.Target != "":
		return term.Hint(term.Usage("it is wrapped already, and only the TPM that it was wrapped for can open it"), "wrap the private key that it was made from")
	case i.wrapped != nil && i.Parent != "owner":
		return term.Usage("a wrapped key says itself which storage key it is for, so --parent does not go with it")
	case plain && i.Passphrase != nil:
		return term.Usage("it has no passphrase, so -P does not go with it")
	case plain && i.KeepPassphrase:
		return term.Usage("it has no passphrase that --keep-passphrase could keep")
	}
	return nil
}

// old returns the file that is left behind. A symbolic link leads to it, but to be
// moved it must be named itself.
func (i *importing) old() (*oldKey, error) {
	path := i.path
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		if path, err = filepath.EvalSymlinks(i.path); err != nil {
			return nil, err
		}
		if i.Retire || i.Replace {
			return nil, term.Hint(fmt.Errorf("%s is a symbolic link, which would be moved in place of the key", term.Plain(i.path)),
				"name the file that it leads to: %s", term.Quote(path))
		}
	}
	return &oldKey{path: path, data: i.data, encrypted: i.passphrase != nil, wrapped: i.wrapped != nil}, nil
}
