package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/randomart"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// runWrap is `import --for`: it wraps a private key for another machine's TPM.
func runWrap(ctx context.Context, g *global, o *importOptions) error {
	to, err := readTarget(o.target)
	if err != nil {
		return err
	}
	parent, err := to.parent(o.parent)
	if err != nil {
		return err
	}
	name := filepath.Base(keyName(o.source))
	if o.file != nil {
		name = *o.file
	}
	files, err := wrappedFiles(g.sys, name)
	if err != nil {
		return err
	}
	ask := newAsker(g.sys)
	s, err := o.readSource(ctx, ask)
	if err != nil {
		return err
	}
	defer s.forget()
	if err := o.checkPublic(&files, s.public); err != nil {
		return err
	}
	pin, err := o.newPIN(ctx, ask, s)
	if err != nil {
		return err
	}
	defer clear(pin)
	key, err := wrapKey(to.key, s.key.Private, tpmkey.WrapOptions{Auth: pin, Parent: parent})
	if err != nil {
		return fmt.Errorf("wrapping %s: %w", plain(s.path), err)
	}
	key.comment = o.commentOf(s)
	if err := key.save(files); err != nil || o.quiet {
		return err
	}
	return key.announceWrapped(g.sys.stdout, files, to,
		fmt.Sprintf("The private key is still here, in %s: anyone who reads it has the key.", plain(s.path)))
}

// runKeygenFor is `keygen --for`: it makes a key for another machine's TPM.
func runKeygenFor(ctx context.Context, g *global, o keygenOptions) error {
	to, err := readTarget(*o.target)
	if err != nil {
		return err
	}
	tm, err := o.template()
	if err != nil {
		return err
	}
	parent, err := to.parent(o.parent)
	if err != nil {
		return err
	}
	comment, err := o.keyComment()
	if err != nil {
		return err
	}
	ask := newAsker(g.sys)
	files, err := o.wrappedPlace(ctx, g.sys, ask)
	if err != nil {
		return err
	}
	pin, err := o.newPIN(ctx, ask)
	if err != nil {
		return err
	}
	defer clear(pin)
	private, err := makeInMemory(tm.Algorithm)
	if err != nil {
		return fmt.Errorf("making the key: %w", err)
	}
	key, err := wrapKey(to.key, private, tpmkey.WrapOptions{Auth: pin, Parent: parent})
	if err != nil {
		return fmt.Errorf("wrapping the key: %w", err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	key.comment = comment
	if err := key.save(files); err != nil || o.quiet {
		return err
	}
	return key.announceWrapped(g.sys.stdout, files, to,
		"It was made in this machine's memory, not in a TPM, and was not kept here.")
}

// wrappedPlace is where `keygen --for` saves: not in ~/.ssh, unless asked.
func (o *keygenOptions) wrappedPlace(ctx context.Context, sys system, ask *asker) (keyFiles, error) {
	name := "id_" + o.keyType
	switch {
	case o.file != nil:
		name = *o.file
	case o.pin == nil:
		var err error
		if name, err = ask.file(ctx, name); err != nil {
			return keyFiles{}, err
		}
		if err := checkName(name); err != nil {
			return keyFiles{}, err
		}
	}
	to, err := wrappedFiles(sys, name)
	if err != nil {
		return to, err
	}
	return to, free(to.public)
}

// wrappedFiles is where a wrapped key goes. The agent here would offer it if it
// were in ~/.ssh, and could not use it.
func wrappedFiles(sys system, name string) (keyFiles, error) {
	to := keyFiles{private: name + wrappedSuffix, public: name + ".pub"}
	dir := filepath.Dir(name)
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return to, err
	}
	if dotSSH, err := sys.sshDir(); err == nil && absolute == filepath.Clean(dotSSH) {
		return to, withHint(usage("%s: the agent here would offer a key that it cannot use", plain(to.private)), "save it elsewhere with -f, such as -f ~/%s", shQuote(filepath.Base(name)))
	}
	if err := free(to.private); err != nil {
		return to, err
	}
	return to, ready(sys, dir)
}

// parent is the handle of the storage key over there: as the command line says,
// else as its file does.
func (t *target) parent(asked string) (uint32, error) {
	if asked == "owner" && t.handle != 0 {
		return t.handle, nil
	}
	return storageKey(asked)
}

// wrapKey wraps a private key that can sign.
func wrapKey(to *tpmkey.StorageKey, private crypto.PrivateKey, o tpmkey.WrapOptions) (*newKey, error) {
	if err := trySoftware(private); err != nil {
		return nil, fmt.Errorf("signing a test message with it: %w", err)
	}
	wrapped, err := tpmkey.Wrap(to, private, o)
	if err != nil {
		return nil, err
	}
	key, _, err := encodeKey(wrapped)
	return key, err
}

// trySoftware signs and verifies a message with a private key in memory.
func trySoftware(private crypto.PrivateKey) error {
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return err
	}
	message := []byte("tpm-agent test message " + rand.Text())
	signature, err := signer.Sign(rand.Reader, message)
	if err != nil {
		return err
	}
	return signer.PublicKey().Verify(message, signature)
}

// makeInMemory makes a key in memory.
func makeInMemory(a tpmkey.Algorithm) (crypto.PrivateKey, error) {
	switch a {
	case tpmkey.ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case tpmkey.ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case tpmkey.ECDSAP521:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case tpmkey.RSA2048, tpmkey.RSA3072, tpmkey.RSA4096:
		return rsa.GenerateKey(rand.Reader, a.Bits())
	}
	return nil, errors.New("no such algorithm")
}

// announceWrapped says whose key it is now, and how to find out.
func (k *newKey) announceWrapped(w io.Writer, files keyFiles, to *target, remains string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "The wrapped key has been saved in %s\n", plain(files.private))
	if files.hasPublic {
		fmt.Fprintf(&b, "The public key is the same, in %s\n", plain(files.public))
	} else {
		fmt.Fprintf(&b, "The public key has been saved in %s\n", plain(files.public))
	}
	fmt.Fprintf(&b, "The key fingerprint is:\n%s\n", strings.TrimSpace(ssh.FingerprintSHA256(k.public)+" "+k.comment))
	fmt.Fprintf(&b, "The key's randomart image is:\n%s\n", randomart.SHA256(k.kind.String(), sha256.Sum256(k.public.Marshal())))
	fmt.Fprintf(&b, "It can be used only by the TPM with the storage key\n%s\n", storageFingerprint(to.key))
	b.WriteString("Whoever gave you that storage key gets the key. Compare it, by another way than the file came,\n" +
		"with what the other machine shows: tpm-agent srk --fingerprint\n")
	fmt.Fprintf(&b, "%s\n", remains)
	fmt.Fprintf(&b, "On the other machine: tpm-agent import %s\n", shQuote(filepath.Base(files.private)))
	_, err := io.WriteString(w, b.String())
	return notSaid(err, "the wrapped key is in %s", plain(files.private))
}
