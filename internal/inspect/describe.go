// Package inspect describes key files: what they say, and what the TPM and the
// memory of storage keys say about them.
package inspect

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// A Kind is a type and size of key, in the words of keygen's -t and -b.
type Kind struct {
	Type string `json:"type"`
	Bits int    `json:"bits"`
}

// String writes it as OpenSSH does: "ECDSA 256".
func (k Kind) String() string { return fmt.Sprintf("%s %d", strings.ToUpper(k.Type), k.Bits) }

// KindOf returns the kind of a key that the TPM knows by its public area.
func KindOf(p *keyfile.Public) Kind {
	const algRSA = 0x0001 // TPM 2.0 Part 2, 6.3
	if p.Type == algRSA {
		return Kind{"rsa", p.KeyBits}
	}
	return Kind{"ecdsa", p.KeyBits}
}

// KindOfBlob returns the kind of any public key or certificate, in the words of
// ssh-keygen -t. An unknown one has the name that SSH gives it, and no size.
func KindOfBlob(blob []byte) (k Kind) {
	var head struct {
		Name string
		Rest []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(blob, &head) != nil {
		return Kind{}
	}
	k.Type = term.Plain(head.Name)
	for word, prefix := range map[string]string{
		"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-", "rsa": "ssh-rsa", "dsa": "ssh-dss",
		"ed25519-sk": "sk-ssh-ed25519", "ecdsa-sk": "sk-ecdsa-sha2-",
	} {
		if strings.HasPrefix(head.Name, prefix) {
			k.Type = word
		}
	}
	public, _ := ssh.ParsePublicKey(blob)
	if cert, ok := public.(*ssh.Certificate); ok {
		k.Type += "-cert"
		public = cert.Key
	}
	if p, ok := public.(ssh.CryptoPublicKey); ok {
		k.Bits = bitsOf(p.CryptoPublicKey())
	}
	return k
}

// bitsOf returns the size of a key as ssh-keygen -l shows it; 0 for other types.
func bitsOf(public crypto.PublicKey) int {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen()
	case *ecdsa.PublicKey:
		return key.Curve.Params().BitSize
	case ed25519.PublicKey:
		return 8 * len(key)
	}
	return 0
}

// ParentWords names the storage key of a key file, in few words for tables and in full.
func ParentWords(k *keyfile.TPMKey) (short, long string) {
	primary := "P-256"
	if k.RSAParent {
		primary = "RSA 2048"
	}
	name := map[uint32]string{
		keyfile.ParentOwner: "owner", keyfile.ParentEndorsement: "endorsement",
		keyfile.ParentPlatform: "platform", keyfile.ParentNull: "null",
	}[k.Parent]
	switch {
	case name != "":
		return name, fmt.Sprintf("the %s storage key of the %s hierarchy (%#x)", primary, name, k.Parent)
	case k.Parent>>24 == 0x81:
		short = fmt.Sprintf("%#x", k.Parent)
		return short, "the persistent key at " + short
	}
	// Other programs write 0 and transient handles for the owner's.
	return "owner", fmt.Sprintf("the %s storage key of the owner hierarchy (written as %#x)", primary, k.Parent)
}

// WrappedSuffix ends the names of keys for other machines.
const WrappedSuffix = ".wrapped.tpm"

// KeyName returns the name of a key file without its suffix.
func KeyName(path string) string {
	if name, ok := strings.CutSuffix(path, WrappedSuffix); ok {
		return name
	}
	return strings.TrimSuffix(path, ".tpm")
}

// PublicFile returns the name of the public key's file beside a key file.
func PublicFile(path string) string { return KeyName(path) + ".pub" }

// AuthorizedKey returns the line of the .pub file.
func AuthorizedKey(public ssh.PublicKey, comment string) []byte {
	return []byte(strings.TrimSpace(string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(public)))+" "+comment) + "\n")
}

// CommentFor returns the comment of a key: that in its .pub file if it is there
// and of the same key, else the description in the key file.
func CommentFor(path string, key *keyfile.TPMKey, public ssh.PublicKey) string {
	if comment, err := CommentBeside(PublicFile(path), public); err == nil {
		return comment
	}
	return key.DisplayDescription()
}

// CommentBeside returns the comment in a public key file, which must be of this
// key.
func CommentBeside(path string, public ssh.PublicKey) (string, error) {
	data, err := ReadSmall(path)
	if err != nil {
		return "", Naming(path, err)
	}
	found, comment, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return "", fmt.Errorf("%s is no public key", term.Plain(path))
	}
	if !bytes.Equal(found.Marshal(), public.Marshal()) {
		return "", fmt.Errorf("%s is the public key of another key", term.Plain(path))
	}
	return term.Plain(comment), nil
}

// ReadSmall reads a regular file of at most 64 KiB, and never waits for a FIFO.
func ReadSmall(path string) ([]byte, error) {
	const most = 64 << 10
	data, err := keyfile.ReadRegular(path, most+1)
	if err == nil && len(data) > most {
		return nil, errors.New("too big")
	}
	return data, err
}

// ReadKey reads a key file and its public key in SSH's form.
func ReadKey(path string) (*keyfile.TPMKey, ssh.PublicKey, error) {
	key, err := keyfile.ReadFile(path)
	if err != nil {
		err = Naming(path, err)
		if beside, ok := KeyFileBeside(path); ok {
			err = term.Hint(err, "the key file is %s", term.Quote(beside))
		}
		return nil, nil, err
	}
	public, err := ssh.NewPublicKey(key.Public.Key)
	if err != nil {
		return nil, nil, Naming(path, err)
	}
	return key, public, nil
}

// KeyFileBeside returns the key file that belongs to a public key file, or to a
// name as keygen's -f has it.
func KeyFileBeside(path string) (string, bool) {
	beside := KeyName(strings.TrimSuffix(path, ".pub")) + ".tpm"
	_, err := os.Lstat(beside)
	return beside, beside != path && !errors.Is(err, fs.ErrNotExist)
}

// Naming puts the file's name before an error that does not have it.
func Naming(path string, err error) error {
	// A short name may be part of another word, and a long one of several.
	text := " " + strings.Map(func(r rune) rune {
		if strings.ContainsRune(`:;,"'`, r) {
			return ' '
		}
		return r
	}, err.Error()) + " "
	if strings.Contains(text, " "+path+" ") || strings.Contains(err.Error(), ": "+path+":") {
		return err
	}
	return fmt.Errorf("%s: %w", term.Plain(path), err)
}
