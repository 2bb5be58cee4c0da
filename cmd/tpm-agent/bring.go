package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// runImport reads the key, brings it into the TPM, tries it there, saves it, and
// only then touches the old file, if it is told to.
func runImport(ctx context.Context, g *global, o *importOptions) error {
	addr, err := g.address()
	if err != nil {
		return err
	}
	if _, err := storageKey(o.parent); err != nil {
		return err
	}
	files, err := o.files(g.sys)
	if err != nil {
		return err
	}
	ask := newAsker(g.sys)
	s, err := o.readSource(ctx, ask)
	if err != nil {
		return err
	}
	defer s.forget()
	if !o.replace && files.private == filepath.Clean(s.path) {
		return withHint(free(files.private), "--replace puts the key in its place, -f OUT elsewhere")
	}
	if err := o.checkPublic(&files, s.public); err != nil {
		return err
	}
	old, err := s.old(o.retire || o.replace)
	if err != nil {
		return err
	}

	tpm := openTPM(addr)
	remembering := newMemory(addr, nil)
	key, err := o.bring(ctx, tpm, ask, s, remembering, filepath.Dir(files.private))
	if err == nil {
		key.where, err = whereabouts(ctx, tpm, addr.Software())
	}
	if err := errors.Join(orInterrupted(ctx, err), tpm.Close()); err != nil {
		return fmt.Errorf("importing %s: %w", plain(s.path), err)
	}
	key.comment = o.commentOf(s)
	return o.finish(g.sys, key, files, old, remembering)
}

// files is where the key goes. The private one must not be there yet, unless it
// is the old one itself.
func (o *importOptions) files(sys system) (keyFiles, error) {
	name := keyName(o.source)
	if o.file != nil {
		name = *o.file
	}
	to := keyFiles{private: filepath.Clean(name + ".tpm"), public: filepath.Clean(name + ".pub")}
	source := filepath.Clean(o.source)
	if o.replace || to.private == source {
		// What is in the file, decides.
		to.private = source
		return to, nil
	}
	taken := []string{to.private}
	if o.file != nil && filepath.Clean(name) != source {
		taken = append(taken, name)
	}
	if err := free(taken...); err != nil {
		return to, err
	}
	return to, ready(sys, filepath.Dir(to.private))
}

// checkPublic looks at the public key file, which may be there if it is right.
func (o *importOptions) checkPublic(to *keyFiles, public ssh.PublicKey) error {
	if _, err := os.Lstat(to.public); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := commentBeside(to.public, public); err != nil {
		return withHint(fmt.Errorf("%w; no key was made, and nothing was changed", err), "move it away, or choose another name with -f")
	}
	if o.comment != nil {
		return withHint(usage("%s is there already and is left as it is, so -C does not go with it", plain(to.public)), "ssh-keygen -c changes comments; or edit the file")
	}
	to.hasPublic = true
	return nil
}

// bring brings the key, which is to be in dir, into the TPM, and tries it with its
// PIN.
func (o *importOptions) bring(ctx context.Context, tpm *tpmkey.TPM, ask *asker, s *sourceKey, remembering *memory, dir string) (*newKey, error) {
	if s.wrapped != nil {
		return o.bringWrapped(ctx, tpm, ask, s, remembering, dir)
	}
	parent, err := storageKey(o.parent)
	if err != nil {
		return nil, err
	}
	handle, name, err := remembering.storageKey(ctx, tpm, dir, parent, o.newTPM)
	if err != nil {
		return nil, err
	}
	pin, err := o.newPIN(ctx, ask, s)
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	made, err := tpm.ImportPrivate(ctx, s.key.Private, tpmkey.WrapOptions{Auth: pin, Parent: handle, ParentName: name})
	if err != nil {
		return nil, err
	}
	key, err := tryKey(ctx, tpm, made, name, pin)
	if err != nil {
		return nil, err
	}
	return key, key.is(s.public)
}

// is makes sure that the key in the TPM is the one that was imported.
func (k *newKey) is(public ssh.PublicKey) error {
	if !bytes.Equal(k.public.Marshal(), public.Marshal()) {
		return fmt.Errorf("the TPM made another key of it (%s)", ssh.FingerprintSHA256(k.public))
	}
	return nil
}

// finish saves the key. From then on there is one that works, and the old file
// may go.
func (o *importOptions) finish(sys system, key *newKey, to keyFiles, old *oldKey, remembering *memory) error {
	attic, err := sys.retiredDir()
	if err != nil {
		return err
	}
	var gone retired
	if o.replace {
		gone, err = key.replace(to, old, attic)
	} else {
		err = key.save(to)
	}
	if err != nil {
		return err
	}
	remembering.learn(filepath.Dir(to.private), key)
	if o.retire && !o.replace {
		if gone, err = old.retire(attic, time.Now()); err != nil {
			return fmt.Errorf("the key was imported, and is in %s, but the old one could not be moved away: %w", plain(to.private), err)
		}
	}
	if o.quiet {
		return nil
	}
	err = key.announce(sys.stdout, to)
	if err == nil {
		_, err = io.WriteString(sys.stdout, old.farewell(gone, attic))
	}
	return notSaid(err, "the key was imported, and is in %s", plain(to.private))
}

// replace saves the key in place of the old one. The public key may come first:
// it is that of both.
func (k *newKey) replace(to keyFiles, old *oldKey, attic string) (retired, error) {
	if err := k.savePublic(to); err != nil {
		return retired{}, err
	}
	gone, err := old.replaceBy(k.file, attic, time.Now())
	if err == nil {
		return gone, nil
	}
	err = fmt.Errorf("putting the key in place of %s: %w", plain(old.path), err)
	if !to.hasPublic && same(old.path, k.file) != nil {
		err = errors.Join(err, unsave(to.public, authorizedKey(k.public, k.comment)))
	}
	return gone, err
}

// farewell says where the old key is, and what it is worth.
func (o *oldKey) farewell(gone retired, attic string) string {
	var b strings.Builder
	where := o.path
	if gone.path != "" {
		where = gone.path
		fmt.Fprintf(&b, "The old private key was moved to %s\n", plain(where))
	} else {
		fmt.Fprintf(&b, "The old private key is still in %s\n", plain(where))
	}
	switch {
	case o.wrapped:
		b.WriteString("Only this TPM can open it; whoever wrapped it may still have the key in clear.\n")
	case o.encrypted:
		b.WriteString("Anyone who reads it and finds its passphrase has the key: the TPM protects only the copy.\n")
	default:
		b.WriteString("Anyone who reads it has the key: the TPM protects only the copy.\n")
	}
	switch {
	case gone.path == "":
		b.WriteString("To move it to where ssh does not look, once you have logged in with the new one:\n")
		fmt.Fprintf(&b, "  mkdir -p -m 700 %s\n", shQuote(attic))
		fmt.Fprintf(&b, "  mv -n %s %s\n", shQuote(o.path), shQuote(filepath.Join(attic, o.retiredName(time.Now(), 1))))
	case gone.copied:
		b.WriteString("It was copied there from another file system, whose disk may still have its octets.\n")
		fallthrough
	default:
		fmt.Fprintf(&b, "Whether to destroy it is yours to decide: shred -u %s\n", shQuote(where))
	}
	return b.String()
}
