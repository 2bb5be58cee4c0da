package inspect

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// inspection describes a key file.
type inspection struct {
	File     string   `json:"file"`
	Size     int64    `json:"size"`
	Mode     string   `json:"mode"`
	Readable []string `json:"readable_by"`
	Format   string   `json:"format"`
	Kind
	Fingerprint string   `json:"fingerprint"`
	PublicKey   string   `json:"public_key"`
	Comment     string   `json:"comment,omitempty"`
	PIN         bool     `json:"pin"`
	Parent      string   `json:"parent"`
	Handle      string   `json:"parent_handle"`
	Attributes  []string `json:"attributes"`
	Policy      []string `json:"policy"`
	SignedBy    []string `json:"signed_policies,omitempty"`
	PCRs        []bound  `json:"pcrs,omitempty"`
	Digest      string   `json:"policy_digest,omitempty"`
	Scheme      string   `json:"scheme"`
	Name        string   `json:"tpm_name"`
	Description string   `json:"description,omitempty"`
	Unknown     []int    `json:"unknown_fields,omitempty"`
	Usable      bool     `json:"can_be_used"`
	Unusable    string   `json:"cannot_be_used_because,omitempty"`
	presence
}

// Inspect shows everything that a key file says, and asks the TPM about it.
func Inspect(ctx context.Context, sys *term.System, file string, asJSON bool) error {
	addr, err := sys.Address()
	if err != nil {
		return err
	}
	key, public, err := ReadKey(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	in := describe(key, public)
	in.File, in.Size = term.Plain(file), info.Size()
	in.Mode, in.Readable = fmt.Sprintf("%04o", info.Mode().Perm()), readers(info)
	in.Comment = CommentFor(file, key, public)
	tpm := tpmkey.New(addr.Open)
	in.PCRs, _ = boundTo(key) // a policy that cannot be read makes the key unusable, which is shown
	for i := range in.PCRs {
		in.PCRs[i].compare(ctx, tpm, key)
	}
	in.presence = findPresence(ctx, addr, tpm, file, key, public, in.Usable)
	err = tpm.Close()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case asJSON:
		return term.JSON(sys.Stdout, in)
	}
	return in.print(sys.Stdout)
}

// describe describes the key itself.
func describe(key *keyfile.TPMKey, public ssh.PublicKey) *inspection {
	_, parent := ParentWords(key)
	in := &inspection{
		Format: "TSS2 PRIVATE KEY, loadable: made under its storage key (TPM2_Load)", Kind: KindOf(key.Public),
		Fingerprint: ssh.FingerprintSHA256(public), PublicKey: strings.TrimSpace(string(AuthorizedKey(public, ""))),
		PIN: key.UsesAuth(), Parent: parent, Handle: fmt.Sprintf("0x%08x", key.Parent),
		Attributes: attributeNames(key.Public.Attributes), Policy: policyNames(key.Policy),
		Digest: hex.EncodeToString(key.Public.AuthPolicy), Scheme: schemeWords(key.Public),
		Name: hex.EncodeToString(key.Public.Name()), Description: key.DisplayDescription(), Unknown: key.Unknown,
	}
	if key.Type == keyfile.Importable {
		in.Format = "TSS2 PRIVATE KEY, importable: wrapped for its storage key elsewhere (TPM2_Import)"
	}
	for _, signed := range key.AuthPolicy {
		in.SignedBy = append(in.SignedBy, strings.TrimSpace(term.Plain(signed.Name)+": "+strings.Join(policyNames(signed.Policy), ", ")))
	}
	_, err := tpmkey.New[tpmkey.Conn](nil).Key(key)
	if in.Usable = err == nil; !in.Usable {
		in.Unusable = term.OneLine(err.Error())
	}
	return in
}

// print shows one thing a line.
func (in *inspection) print(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s "+format+"\n", append([]any{name + ":"}, args...)...)
	}
	line("file", "%s (%d octets)", in.File, in.Size)
	line("readable by", "%s (mode %s)", strings.Join(in.Readable, ", "), in.Mode)
	line("format", "%s", in.Format)
	line("key", "%s", in.Kind)
	line("fingerprint", "%s", in.Fingerprint)
	line("public key", "%s", in.PublicKey)
	line("comment", "%s", cmp.Or(in.Comment, "none"))
	line("PIN", "%s", map[bool]string{true: "yes, says the file", false: "no, says the file"}[in.PIN])
	line("storage key", "%s", in.Parent)
	line("attributes", "%s", cmp.Or(strings.Join(in.Attributes, ", "), "none"))
	line("policy", "%s", cmp.Or(strings.Join(in.Policy, ", "), "none"))
	for _, signed := range in.SignedBy {
		line("signed policy", "%s", signed)
	}
	for _, b := range in.PCRs {
		line("bound to", "%s", b.words())
		line("PCRs now", "%s", b.state())
		if b.hint != "" {
			line("way out", "%s", b.hint)
		}
	}
	line("policy digest", "%s", cmp.Or(in.Digest, "none"))
	line("scheme", "%s", in.Scheme)
	line("TPM name", "%s", in.Name)
	if in.Description != "" {
		line("description", "%s", in.Description)
	}
	for _, field := range in.Unknown {
		line("unknown field", "[%d]", field)
	}
	line("can be used", "%s", map[bool]string{true: "yes", false: "no: " + in.Unusable}[in.Usable])
	in.presence.print(line)
	_, err := io.WriteString(w, b.String())
	return err
}

// readers lists who can read the file, by its mode. Its owner can change that.
func readers(info fs.FileInfo) []string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	who := []string{UserName(stat.Uid)}
	if info.Mode()&0o040 != 0 {
		group := strconv.Itoa(int(stat.Gid))
		if g, err := user.LookupGroupId(group); err == nil {
			group = term.Plain(g.Name)
		}
		who = append(who, "group "+group)
	}
	if info.Mode()&0o004 != 0 {
		who = append(who, "everybody")
	}
	return who
}

// UserName returns the name of a user, or the number of one without a name.
func UserName(uid uint32) string {
	id := strconv.Itoa(int(uid))
	u, err := user.LookupId(id)
	if err != nil {
		return "user " + id
	}
	return term.Plain(u.Username)
}

// attributeNames returns the names of TPMA_OBJECT (TPM 2.0 Part 2, 8.3).
func attributeNames(a keyfile.Attributes) []string {
	names := map[int]string{
		1: "fixedTPM", 2: "stClear", 4: "fixedParent", 5: "sensitiveDataOrigin", 6: "userWithAuth",
		7: "adminWithPolicy", 8: "firmwareLimited", 9: "svnLimited", 10: "noDA", 11: "encryptedDuplication",
		16: "restricted", 17: "decrypt", 18: "sign", 19: "x509sign",
	}
	set := []string{}
	for bit := range 32 {
		switch {
		case a&(1<<bit) == 0:
		case names[bit] != "":
			set = append(set, names[bit])
		default:
			set = append(set, fmt.Sprintf("bit %d", bit))
		}
	}
	return set
}

// policyNames returns the commands of a policy.
func policyNames(policy []keyfile.Policy) []string {
	commands := []string{}
	for _, p := range policy {
		commands = append(commands, p.Command())
	}
	return commands
}

// schemeWords names the signature scheme that the key is bound to (TPM_ALG_ID).
func schemeWords(p *keyfile.Public) string {
	names := map[uint16]string{
		0x0014: "RSASSA", 0x0015: "RSAES", 0x0016: "RSAPSS", 0x0017: "OAEP", 0x0018: "ECDSA", 0x0019: "ECDH",
		0x001A: "ECDAA", 0x001B: "SM2", 0x001C: "ECSCHNORR",
		0x0004: "SHA-1", 0x000B: "SHA-256", 0x000C: "SHA-384", 0x000D: "SHA-512", 0x0012: "SM3-256",
	}
	const null = 0x0010
	word := func(id uint16) string {
		if name := names[id]; name != "" {
			return name
		}
		return fmt.Sprintf("%#04x", id)
	}
	switch {
	case p.Scheme == null:
		return "any"
	case p.SchemeHash == null:
		return word(p.Scheme)
	}
	return word(p.Scheme) + " with " + word(p.SchemeHash)
}

// Pub prints the public keys of key files. It goes on after a file that it cannot
// read, and fails in the end.
func Pub(sys *term.System, files []string, asJSON bool) error {
	type shownPublic struct {
		File string `json:"file"`
		Kind
		Fingerprint string `json:"fingerprint"`
		Comment     string `json:"comment"`
		PublicKey   string `json:"public_key"` // without the comment
	}
	var errs []error
	shown := []shownPublic{}
	for _, file := range files {
		key, public, err := ReadKey(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		comment := CommentFor(file, key, public)
		if asJSON {
			line := strings.TrimSpace(string(AuthorizedKey(public, "")))
			shown = append(shown, shownPublic{term.Plain(file), KindOf(key.Public), ssh.FingerprintSHA256(public), comment, line})
		} else if _, err := sys.Stdout.Write(AuthorizedKey(public, comment)); err != nil {
			return err
		}
	}
	if asJSON {
		errs = append(errs, term.JSON(sys.Stdout, shown))
	}
	return errors.Join(errs...)
}

// Listed is a key in a directory, as list shows it.
type Listed struct {
	Name string `json:"name"`
	Kind
	Fingerprint string `json:"fingerprint"`
	Comment     string `json:"comment"`
	Parent      string `json:"parent"`
	// StorageKey is the remembered storage key. Lost is set if it is gone.
	StorageKey   *storageKey `json:"storage_key,omitempty"`
	Lost         string      `json:"lost,omitempty"`
	PIN          bool        `json:"pin"`
	Certificates int         `json:"certificates"`
	File         string      `json:"file"`
}

// Problem is a file that is no key that can be used.
type Problem struct {
	File    string `json:"file"`
	Problem string `json:"problem"`
}

// List reads directories with keys. A key that could never be used is a problem,
// not a key; no TPM is needed to know that.
func List(addr tcti.Address, dirs []string) (keys []Listed, problems []Problem, err error) {
	index, err := keydir.Open(dirs, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", strings.Join(dirs, ", "), err)
	}
	keys, problems = []Listed{}, []Problem{}
	tpm := tpmkey.New[tpmkey.Conn](nil) // which is not asked
	book := parents.NewBook(parents.Default(), addr, nil)
	memories := book.Recall()
	for _, e := range index.Entries() {
		if _, err := tpm.Key(e.Key); err != nil {
			problems = append(problems, Problem{term.Plain(e.Path), term.OneLine(err.Error())})
			continue
		}
		short, _ := ParentWords(e.Key)
		under := book.Of(memories(e.Path), e.Public, e.Key)
		keys = append(keys, Listed{
			Name: strings.TrimSuffix(term.Plain(filepath.Base(e.Path)), ".tpm"), Kind: KindOf(e.Key.Public),
			Fingerprint: ssh.FingerprintSHA256(e.Public), Comment: term.Plain(e.Comment), Parent: short,
			StorageKey: newStorageKey(under), Lost: term.Plain(book.Lost(under)),
			PIN: e.Key.UsesAuth(), Certificates: len(e.Certificates), File: term.Plain(e.Path),
		})
	}
	for _, p := range index.Problems() {
		problems = append(problems, Problem{term.Plain(p.Path), term.OneLine(p.Err.Error())})
	}
	return keys, problems, index.Close()
}
