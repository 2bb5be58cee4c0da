package keyops

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// SRKOptions are the options of srk.
type SRKOptions struct {
	Format      string // pem or tpm2b
	Fingerprint bool
	JSON        bool
	Parent      string
	Given       func(flag string) bool
}

func (o *SRKOptions) check(terminal bool) error {
	format := o.Given("format")
	switch {
	case o.Format != "pem" && o.Format != "tpm2b":
		return term.Usage("--format %s: must be pem or tpm2b", term.Plain(o.Format))
	case o.JSON && (format || o.Fingerprint):
		return term.Usage("--json has everything in it: neither --format nor --fingerprint goes with it")
	case format && o.Fingerprint:
		return term.Usage("--format and --fingerprint cannot be used together")
	case o.Format == "tpm2b" && terminal:
		return term.Hint(term.Usage("--format tpm2b is no text for a terminal"), "tpm-agent srk --format tpm2b > FILE")
	}
	return nil
}

// SRK prints the public storage key of the TPM.
func SRK(ctx context.Context, sys *term.System, o SRKOptions) error {
	if err := o.check(term.IsTerminal(sys.Stdout)); err != nil {
		return err
	}
	p := &op{sys: sys}
	if err := p.open(); err != nil {
		return err
	}
	parent, err := parentHandle(o.Parent)
	if err != nil {
		return err
	}
	key, handle, err := p.tpm.StorageKey(ctx, parent)
	if err := p.close(ctx, err); err != nil {
		return fmt.Errorf("asking the TPM for its storage key: %w", noStorageKey(err))
	}
	block, pemErr := bareStorageKey(key)
	switch {
	case o.JSON:
		return term.JSON(sys.Stdout, struct {
			TPM       string `json:"tpm"`
			Protected bool   `json:"protected"` // false for the software TPM
			inspect.Kind
			Fingerprint string `json:"fingerprint"`
			Name        string `json:"tpm_name"`
			Handle      string `json:"parent_handle"`
			PEM         string `json:"pem,omitempty"` // not if it would not be enough
			TPM2B       []byte `json:"tpm2b"`
		}{
			p.addr.String(), !p.addr.Software(), kindOfStorageKey(key), storageFingerprint(key),
			hex.EncodeToString(key.Name()), fmt.Sprintf("0x%08x", handle), string(block), key.Marshal(),
		})
	case o.Fingerprint:
		return p.say("%s\n", storageFingerprint(key))
	case o.Format == "tpm2b":
		_, err = sys.Stdout.Write(key.Marshal())
		return err
	case pemErr != nil:
		return term.Hint(pemErr, "tpm-agent srk --parent %s --format tpm2b > FILE", o.Parent)
	}
	return p.say("%s%s", srkHeader(key, handle, p.addr.Software()), block)
}

// srkHeader returns the lines before the PEM block, which a reader of PEM skips.
// Ours reads the handle.
func srkHeader(key *tpmkey.StorageKey, handle uint32, software bool) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return fmt.Sprintf("Storage key of the TPM of %s%s\nType: %s\nFingerprint: %s\nName: %x\n%s0x%08x\n",
		term.Plain(host), mark(software), kindOfStorageKey(key), storageFingerprint(key), key.Name(), handlePrefix, handle)
}

// handlePrefix begins the line that names the storage key's handle.
const handlePrefix = "Handle: "

// storageFingerprint returns the Name of the key, in the form in which ssh shows
// fingerprints. It covers all of the public area.
func storageFingerprint(key *tpmkey.StorageKey) string {
	name := key.Name()
	hashes := map[uint16]string{0x0004: "SHA1", 0x000B: "SHA256", 0x000C: "SHA384", 0x000D: "SHA512"}
	if len(name) < 2 || hashes[binary.BigEndian.Uint16(name)] == "" {
		return hex.EncodeToString(name)
	}
	return hashes[binary.BigEndian.Uint16(name)] + ":" + base64.RawStdEncoding.EncodeToString(name[2:])
}

func kindOfStorageKey(key *tpmkey.StorageKey) inspect.Kind {
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		return inspect.Kind{Type: "ecc", Bits: pub.Curve.Params().BitSize}
	case *rsa.PublicKey:
		return inspect.Kind{Type: "rsa", Bits: pub.N.BitLen()}
	}
	return inspect.Kind{Type: "unknown"}
}

// bareStorageKey returns the key as PEM, if its public key alone identifies it.
func bareStorageKey(key *tpmkey.StorageKey) ([]byte, error) {
	const enough = "its properties are not those of the standard storage keys, so its public key alone is not enough"
	bare, err := tpmkey.StorageKeyOf(key.Public())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", enough, err)
	}
	if string(bare.Name()) != string(key.Name()) {
		return nil, errors.New(enough)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
}

// target is a storage key of another machine's TPM, from a file.
type target struct {
	key    *tpmkey.StorageKey
	handle uint32 // as the file has it; 0 if it does not say
}

// readTarget reads a storage key: what `tpm-agent srk` prints, a public key in
// PEM form or a TPM2B_PUBLIC.
func readTarget(path string) (*target, error) {
	data, err := inspect.ReadSmall(path)
	if err != nil {
		return nil, inspect.Naming(path, err)
	}
	t, err := parseTarget(data)
	if err != nil {
		return nil, term.Hint(inspect.Naming(path, err), "tpm-agent srk prints the storage key, on the machine that will have the key")
	}
	return t, nil
}

func parseTarget(data []byte) (*target, error) {
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		return parseTargetPEM(data)
	}
	if public, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		return nil, fmt.Errorf("it is an SSH public key (%s), not a storage key", public.Type())
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("it is empty")
	}
	if utf8.Valid(data) && bytes.IndexByte(data, 0) < 0 {
		return nil, errors.New("it is a text without a PEM block; a TPM2B_PUBLIC is binary")
	}
	key, err := tpmkey.ParseStorageKey(data)
	return &target{key: key}, err
}

func parseTargetPEM(data []byte) (*target, error) {
	block, rest := pem.Decode(data)
	head, _, _ := bytes.Cut(data, []byte("-----BEGIN "))
	switch {
	case block == nil:
		return nil, errors.New("its PEM block is damaged or not whole")
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return nil, fmt.Errorf("it is a private key (%s), not the public storage key of a TPM", term.Plain(block.Type))
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("it is a %s, not a PUBLIC KEY", term.Plain(block.Type))
	case bytes.Contains(rest, []byte("-----BEGIN ")):
		return nil, errors.New("there is more than one PEM block in it")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("its public key: %w", err)
	}
	key, err := tpmkey.StorageKeyOf(public)
	if err != nil {
		return nil, err
	}
	t := &target{key: key}
	return t, t.readHead(string(head))
}

// readHead reads the lines of `tpm-agent srk` that matter. The fingerprint
// there protects from mistakes, not from liars.
func (t *target) readHead(head string) error {
	for line := range strings.Lines(head) {
		line = strings.TrimSpace(line)
		if value, ok := strings.CutPrefix(line, handlePrefix); ok {
			handle, err := strconv.ParseUint(value, 0, 32)
			if err != nil {
				return fmt.Errorf("its line %q: no handle", line)
			}
			t.handle = uint32(handle)
		}
		if value, ok := strings.CutPrefix(line, "Fingerprint: "); ok && value != storageFingerprint(t.key) {
			return fmt.Errorf("it says that the fingerprint is %s, but it is %s", value, storageFingerprint(t.key))
		}
	}
	return nil
}

// parent returns the handle of the storage key over there: as the command line
// says, else as its file does.
func (t *target) parent(asked string) (uint32, error) {
	if asked == "owner" && t.handle != 0 {
		return t.handle, nil
	}
	return parentHandle(asked)
}

// wrappedFiles returns where a wrapped key is saved. It must not be ~/.ssh: the
// agent here would offer it and could not use it.
func (p *op) wrappedFiles(name string) (keyFiles, error) {
	to := keyFiles{private: name + inspect.WrappedSuffix, public: name + ".pub"}
	dir := filepath.Dir(name)
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return to, err
	}
	if dotSSH, err := p.sys.SSHDir(); err == nil && absolute == filepath.Clean(dotSSH) {
		return to, term.Hint(term.Usage("%s: the agent here would offer a key that it cannot use", term.Plain(to.private)), "save it elsewhere with -f, such as -f ~/%s", term.Quote(filepath.Base(name)))
	}
	return to, errors.Join(free(to.private), p.ready(dir))
}

// wrap wraps a private key for another TPM and saves it. remains says what is left
// of the key here.
func (p *op) wrap(ctx context.Context, to *target, private crypto.Signer, o tpmkey.WrapOptions, comment string, files keyFiles, remains string) error {
	key, err := wrapKey(to.key, private, o)
	if err != nil {
		return fmt.Errorf("wrapping the key: %w", err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	key.comment = comment
	if err := p.save(key, files); err != nil || p.quiet {
		return err
	}
	text := key.announce(files, "The", "wrapped key") + fmt.Sprintf(`It can be used only by the TPM with the storage key
%s
If someone gave you a storage key of their own, they get the key. Compare it, by
another way than the file came, with what the other machine shows:
  tpm-agent srk --fingerprint
%s
On the other machine: tpm-agent import %s
`, storageFingerprint(to.key), remains, term.Quote(filepath.Base(files.private)))
	return term.NotSaid(p.say("%s", text), "the wrapped key is in %s", term.Plain(files.private))
}

// wrapKey wraps a private key that can sign.
func wrapKey(to *tpmkey.StorageKey, private crypto.Signer, o tpmkey.WrapOptions) (*newKey, error) {
	if err := trySignature(private); err != nil {
		return nil, fmt.Errorf("signing a test message with it: %w", err)
	}
	wrapped, err := tpmkey.Wrap(to, private, o)
	if err != nil {
		return nil, err
	}
	return encode(wrapped)
}
