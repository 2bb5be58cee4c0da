package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/randomart"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// newKey is a key that was made and tried, and is not saved yet.
type newKey struct {
	file    []byte // the key file
	public  ssh.PublicKey
	kind    kind
	comment string
	where   string      // the TPM, for people
	tried   *tpmkey.Key // nil if it is for another TPM
	bound   []bound
}

// makeKey makes a key in the TPM and tries it.
func makeKey(ctx context.Context, tpm *tpmkey.TPM, tm tpmkey.Template) (*newKey, error) {
	made, err := tpm.Create(ctx, tm)
	if err != nil {
		return nil, err
	}
	return tryKey(ctx, tpm, made, tm.ParentName, tm.Auth)
}

// tryKey tries a key in the form in which it will be saved: what signs the test
// is what was read back from the file's octets. Its storage key must have the Name
// under, nil for any.
func tryKey(ctx context.Context, tpm *tpmkey.TPM, made *keyfile.TPMKey, under, pin []byte) (*newKey, error) {
	k, parsed, err := encodeKey(made)
	if err != nil {
		return nil, err
	}
	key, err := tpm.Key(parsed)
	if err != nil {
		return nil, err
	}
	key.Pin(under, false)
	if err := trySignature(ctx, key, pin); err != nil {
		return nil, fmt.Errorf("signing a test message with the new key: %w", err)
	}
	k.tried = key
	return k, nil
}

// encodeKey makes the key file, and reads it back.
func encodeKey(made *keyfile.TPMKey) (*newKey, *keyfile.TPMKey, error) {
	data, err := made.Marshal()
	if err != nil {
		return nil, nil, err
	}
	parsed, err := keyfile.Parse(data)
	if err != nil {
		return nil, nil, fmt.Errorf("reading back the key file: %w", err)
	}
	public, err := ssh.NewPublicKey(parsed.Public.Key)
	if err != nil {
		return nil, nil, err
	}
	pcrs, err := boundTo(parsed)
	if err != nil {
		return nil, nil, err
	}
	return &newKey{file: data, public: public, kind: kindOf(parsed.Public), bound: pcrs}, parsed, nil
}

// trySignature signs and verifies a message with every signature algorithm that
// ssh may ask the key for.
func trySignature(ctx context.Context, key *tpmkey.Key, pin []byte) error {
	signer, err := ssh.NewSignerFromSigner(&onceSigner{ctx, key, pin})
	if err != nil {
		return err
	}
	algorithms := []string{signer.PublicKey().Type()}
	if algorithms[0] == ssh.KeyAlgoRSA {
		algorithms = []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512}
	}
	for _, algorithm := range algorithms {
		message := []byte("tpm-agent test message " + rand.Text())
		signature, err := signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, message, algorithm)
		if err != nil {
			return fmt.Errorf("%s: %w", algorithm, err)
		}
		if err := signer.PublicKey().Verify(message, signature); err != nil {
			return fmt.Errorf("%s: the signature is wrong: %w", algorithm, err)
		}
	}
	return nil
}

// onceSigner is a key with its PIN and a context, for x/crypto.
type onceSigner struct {
	ctx context.Context
	key *tpmkey.Key
	pin []byte
}

func (s *onceSigner) Public() crypto.PublicKey { return s.key.Public() }

func (s *onceSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.key.Sign(s.ctx, s.pin, digest, opts)
}

// keyFiles are the two files of a key.
type keyFiles struct {
	private, public string
	hasPublic       bool // the public key is there already, and stays as it is
}

// save writes both files. The private one comes first: a public key without it
// would be of no use to anybody.
func (k *newKey) save(to keyFiles) error {
	if err := keyfile.Create(to.private, k.file, 0o600); err != nil {
		return fmt.Errorf("saving the key: %w", err)
	}
	if err := k.savePublic(to); err != nil {
		if removed := unsave(to.private, k.file); removed != nil {
			return errors.Join(err, fmt.Errorf("removing %s again: %w", plain(to.private), removed))
		}
		return fmt.Errorf("%w; %s was removed again", err, plain(to.private))
	}
	return nil
}

func (k *newKey) savePublic(to keyFiles) error {
	if to.hasPublic {
		return nil
	}
	if err := keyfile.Create(to.public, authorizedKey(k.public, k.comment), 0o644); err != nil {
		return fmt.Errorf("saving the public key: %w", err)
	}
	return nil
}

// unsave removes a file if it is still the one just written.
func unsave(path string, written []byte) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(content, written) {
		return errors.New("somebody else has changed it")
	}
	return os.Remove(path)
}

// announce says what ssh-keygen says, and where the key lives.
func (k *newKey) announce(w io.Writer, to keyFiles) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Your identification has been saved in %s\n", plain(to.private))
	if to.hasPublic {
		fmt.Fprintf(&b, "Your public key is the same, in %s\n", plain(to.public))
	} else {
		fmt.Fprintf(&b, "Your public key has been saved in %s\n", plain(to.public))
	}
	fmt.Fprintf(&b, "The key fingerprint is:\n%s\n", strings.TrimSpace(ssh.FingerprintSHA256(k.public)+" "+k.comment))
	fmt.Fprintf(&b, "The key's randomart image is:\n%s\n", randomart.SHA256(k.kind.String(), sha256.Sum256(k.public.Marshal())))
	fmt.Fprintf(&b, "The key lives in %s.\n", k.where)
	_, err := io.WriteString(w, b.String())
	return err
}

// whereabouts names the TPM for people.
func whereabouts(ctx context.Context, tpm *tpmkey.TPM, software bool) (string, error) {
	if software {
		return "a TPM in software, for trying things out (" + notProtected + ")", nil
	}
	c, err := tpm.Capabilities(ctx)
	if err != nil {
		return "", fmt.Errorf("asking the TPM what it is: %w", err)
	}
	return fmt.Sprintf("the TPM of this machine (%s)", chipName(c)), nil
}

// chipName is the TPM as its vendor calls it.
func chipName(c tpmkey.Capabilities) string {
	name := words(c.Manufacturer + " " + c.Vendor)
	if name == "" {
		name = "unknown vendor"
	}
	return name + ", firmware " + words(c.Firmware)
}

// words is a string of the TPM's, which are padded in many ways.
func words(s string) string { return strings.Join(strings.Fields(plain(s)), " ") }
