package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

func newInspectCmd(g *global) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show everything in a key file",
		Long: `Shows everything in a TPM 2.0 key file, and asks the TPM whether it can load
the key. No PIN is needed. Details: tpm-agent man inspect.`,
		Example:           `  tpm-agent inspect ~/.ssh/id_ecdsa.tpm`,
		Args:              oneFile("the key file"),
		ValidArgsFunction: completeOneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, done := interrupting(cmd)
			defer done()
			return runInspect(ctx, g, args[0], asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// inspection is what a key file says.
type inspection struct {
	File     string   `json:"file"`
	Size     int64    `json:"size"`
	Mode     string   `json:"mode"`
	Readable []string `json:"readable_by"`
	Format   string   `json:"format"`
	kind
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

func runInspect(ctx context.Context, g *global, file string, asJSON bool) error {
	addr, err := g.address()
	if err != nil {
		return err
	}
	key, public, err := readKey(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	in := inspect(key, public)
	in.File, in.Size = plain(file), info.Size()
	in.Mode, in.Readable = fmt.Sprintf("%04o", info.Mode().Perm()), readers(info)
	in.Comment = commentFor(file, key, public)
	if in.PCRs, err = boundTo(key); err == nil && len(in.PCRs) > 0 {
		if err := lookAtPCRs(ctx, openTPM(addr), key, in.PCRs); err != nil {
			return err
		}
	}
	in.presence = findPresence(ctx, addr, file, key, public, in.Usable)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if asJSON {
		return writeJSON(g.sys.stdout, in)
	}
	return in.print(g.sys.stdout)
}

// inspect describes the key itself.
func inspect(key *keyfile.TPMKey, public ssh.PublicKey) *inspection {
	_, parent := parentWords(key)
	in := &inspection{
		Format: "TSS2 PRIVATE KEY, " + formatWords(key.Type), kind: kindOf(key.Public),
		Fingerprint: ssh.FingerprintSHA256(public), PublicKey: string(authorizedKey(public, "")),
		PIN: key.UsesAuth(), Parent: parent, Handle: fmt.Sprintf("0x%08x", key.Parent),
		Attributes: attributeNames(key.Public.Attributes), Policy: policyNames(key.Policy),
		Digest: hex.EncodeToString(key.Public.AuthPolicy), Scheme: schemeWords(key.Public),
		Name: hex.EncodeToString(key.Public.Name()), Description: key.DisplayDescription(), Unknown: key.Unknown,
	}
	in.PublicKey = strings.TrimSpace(in.PublicKey)
	for _, signed := range key.AuthPolicy {
		in.SignedBy = append(in.SignedBy, strings.TrimSpace(plain(signed.Name)+": "+strings.Join(policyNames(signed.Policy), ", ")))
	}
	if _, err := tpmkey.New(nil).Key(key); err != nil {
		in.Unusable = oneLine(err.Error())
	} else {
		in.Usable = true
	}
	return in
}

func formatWords(t keyfile.Type) string {
	if t == keyfile.Importable {
		return "importable: wrapped for its storage key elsewhere (TPM2_Import)"
	}
	return "loadable: made under its storage key (TPM2_Load)"
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
	line("key", "%s", in.kind)
	line("fingerprint", "%s", in.Fingerprint)
	line("public key", "%s", in.PublicKey)
	line("comment", "%s", orNone(in.Comment))
	line("PIN", "%s", map[bool]string{true: "yes, says the file", false: "no, says the file"}[in.PIN])
	line("storage key", "%s", in.Parent)
	line("attributes", "%s", orNone(strings.Join(in.Attributes, ", ")))
	line("policy", "%s", orNone(strings.Join(in.Policy, ", ")))
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
	line("policy digest", "%s", orNone(in.Digest))
	line("scheme", "%s", in.Scheme)
	line("TPM name", "%s", in.Name)
	if in.Description != "" {
		line("description", "%s", in.Description)
	}
	for _, field := range in.Unknown {
		line("unknown field", "[%d]", field)
	}
	if in.Usable {
		line("can be used", "yes")
	} else {
		line("can be used", "no: %s", in.Unusable)
	}
	in.presence.print(line)
	_, err := io.WriteString(w, b.String())
	return err
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// readers says who can read the file, by its mode. Its owner can, or can make
// it so.
func readers(info fs.FileInfo) []string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	owner := "user " + strconv.Itoa(int(stat.Uid))
	if u, err := user.LookupId(strconv.Itoa(int(stat.Uid))); err == nil {
		owner = plain(u.Username)
	}
	who := []string{owner}
	if info.Mode()&0o040 != 0 {
		group := strconv.Itoa(int(stat.Gid))
		if g, err := user.LookupGroupId(group); err == nil {
			group = plain(g.Name)
		}
		who = append(who, "group "+group)
	}
	if info.Mode()&0o004 != 0 {
		who = append(who, "everybody")
	}
	return who
}

// attributeNames are the names of TPMA_OBJECT (TPM 2.0 Part 2, 8.3).
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

// policyNames are the commands of a policy.
func policyNames(policy []keyfile.Policy) []string {
	commands := []string{}
	for _, p := range policy {
		commands = append(commands, p.Command())
	}
	return commands
}

// schemeWords is the signature scheme that the key is bound to (TPM_ALG_ID).
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
