package keyops

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/randomart"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// newKey is a key that was made, and is not saved yet.
type newKey struct {
	file    []byte          // the key file
	parsed  *keyfile.TPMKey // as it was read back
	public  ssh.PublicKey
	comment string
	tried   *tpmkey.Key // nil if it is for another TPM
}

// try tries a key in the form in which it will be saved: the test is signed with
// what was read back from the file's octets. Its storage key must have the Name
// under, nil for any.
func (p *op) try(ctx context.Context, made *keyfile.TPMKey, under, pin []byte) (*newKey, error) {
	k, err := encode(made)
	if err != nil {
		return nil, err
	}
	if k.tried, err = p.tpm.Key(k.parsed); err != nil {
		return nil, err
	}
	k.tried.Pin(under, false)
	for _, trial := range trials[k.public.Type()] {
		digest := make([]byte, trial.hash.Size())
		_, _ = rand.Read(digest) // which never fails
		if _, err := k.tried.Sign(ctx, pin, digest, trial.hash); err != nil {
			return nil, fmt.Errorf("signing a test message with the new key: %s: %w", trial.algorithm, err)
		}
	}
	return k, nil
}

// encode makes the key file, and reads it back.
func encode(made *keyfile.TPMKey) (*newKey, error) {
	data, err := made.Marshal()
	if err != nil {
		return nil, err
	}
	parsed, err := keyfile.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("reading back the key file: %w", err)
	}
	public, err := ssh.NewPublicKey(parsed.Public.Key)
	return &newKey{file: data, parsed: parsed, public: public}, err
}

// trials are the signature algorithms that ssh may ask a key for, by its type.
var trials = map[string][]struct {
	algorithm string
	hash      crypto.Hash
}{
	ssh.KeyAlgoECDSA256: {{ssh.KeyAlgoECDSA256, crypto.SHA256}},
	ssh.KeyAlgoECDSA384: {{ssh.KeyAlgoECDSA384, crypto.SHA384}},
	ssh.KeyAlgoECDSA521: {{ssh.KeyAlgoECDSA521, crypto.SHA512}},
	ssh.KeyAlgoRSA:      {{ssh.KeyAlgoRSASHA256, crypto.SHA256}, {ssh.KeyAlgoRSASHA512, crypto.SHA512}},
}

// trySignature signs and verifies a message with every such algorithm.
func trySignature(key crypto.Signer) error {
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return err
	}
	for _, trial := range trials[signer.PublicKey().Type()] {
		message := []byte("tpm-agent test message " + rand.Text())
		signature, err := signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, message, trial.algorithm)
		if err != nil {
			return fmt.Errorf("%s: %w", trial.algorithm, err)
		}
		if err := signer.PublicKey().Verify(message, signature); err != nil {
			return fmt.Errorf("%s: the signature is wrong: %w", trial.algorithm, err)
		}
	}
	return nil
}

// is makes sure that the key in the TPM is the one that was imported.
func (k *newKey) is(public ssh.PublicKey) error {
	if !bytes.Equal(k.public.Marshal(), public.Marshal()) {
		return fmt.Errorf("the TPM made another key of it (%s)", ssh.FingerprintSHA256(k.public))
	}
	return nil
}

// keyFiles are the two files of a key.
type keyFiles struct {
	private, public string
	hasPublic       bool // the public key is there already, and stays as it is
}

// save writes both files, and remembers the storage key. The private file comes
// first: the public one is of no use without it.
func (p *op) save(k *newKey, to keyFiles) error {
	if err := keyfile.Create(to.private, k.file, 0o600); err != nil {
		return fmt.Errorf("saving the key: %w", err)
	}
	if _, err := k.savePublic(to); err != nil {
		if removed := unsave(to.private, k.file); removed != nil {
			return errors.Join(err, fmt.Errorf("removing %s again: %w", term.Plain(to.private), removed))
		}
		return fmt.Errorf("%w; %s was removed again", err, term.Plain(to.private))
	}
	if k.tried != nil {
		p.book.Learn(filepath.Dir(to.private), parents.KeyOf(k.public, k.parsed), k.tried.Parent())
	}
	return nil
}

// savePublic writes the public key file and returns what is in it, nil if the
// file was there already.
func (k *newKey) savePublic(to keyFiles) ([]byte, error) {
	if to.hasPublic {
		return nil, nil
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.public)))
	data := []byte(strings.TrimSpace(line+" "+k.comment) + "\n")
	if err := keyfile.Create(to.public, data, 0o644); err != nil {
		return nil, fmt.Errorf("saving the public key: %w", err)
	}
	return data, nil
}

// unsave removes a file if it is still the one just written.
func unsave(path string, written []byte) error {
	if err := same(path, written); err != nil {
		return err
	}
	return os.Remove(path)
}

// announce returns what ssh-keygen says of a new key. whose begins the names of its
// files.
func (k *newKey) announce(to keyFiles, whose, private string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s has been saved in %s\n", whose, private, term.Plain(to.private))
	if to.hasPublic {
		fmt.Fprintf(&b, "%s public key is the same, in %s\n", whose, term.Plain(to.public))
	} else {
		fmt.Fprintf(&b, "%s public key has been saved in %s\n", whose, term.Plain(to.public))
	}
	fmt.Fprintf(&b, "The key fingerprint is:\n%s\n", strings.TrimSpace(ssh.FingerprintSHA256(k.public)+" "+k.comment))
	kind := inspect.KindOf(k.parsed.Public).String()
	fmt.Fprintf(&b, "The key's randomart image is:\n%s\n", randomart.SHA256(kind, sha256.Sum256(k.public.Marshal())))
	return b.String()
}

// home says in which TPM a key lives, for people. made: the key was made there.
func (p *op) home(ctx context.Context, made bool) (string, error) {
	if p.addr.Software() {
		return "The key lives in a TPM in software, for trying things out" + mark(true) + ".\n", nil
	}
	c, err := p.tpm.Capabilities(ctx)
	if err != nil {
		return "", fmt.Errorf("asking the TPM what it is: %w", err)
	}
	stays := ""
	if made {
		stays = " and cannot leave it"
	}
	return fmt.Sprintf("The key lives in the TPM of this machine (%s)%s.\n", chipName(c), stays), nil
}

// mark returns what is said of keys of the software TPM wherever they are shown.
func mark(software bool) string {
	if software {
		return " (" + term.NotProtected + ")"
	}
	return ""
}

// chipName returns the TPM's name, as its vendor writes it.
func chipName(c tpmkey.Capabilities) string {
	return cmp.Or(words(c.Manufacturer+" "+c.Vendor), "unknown vendor") + ", firmware " + words(c.Firmware)
}

// words returns a string of the TPM, which may be padded in many ways.
func words(s string) string { return strings.Join(strings.Fields(term.Plain(s)), " ") }
