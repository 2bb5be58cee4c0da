package main

import (
	"context"
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

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

type srkOptions struct {
	format      string
	fingerprint bool
	json        bool
	parent      string
}

func newSRKCmd(g *global) *cobra.Command {
	var o srkOptions
	cmd := &cobra.Command{
		Use:   "srk",
		Short: "Print the public storage key of this TPM",
		Long:  srkHelp,
		Example: `  tpm-agent srk > laptop.srk                  # on the laptop
  tpm-agent import --for laptop.srk ~/.ssh/id_rsa   # where the key is
  tpm-agent srk --fingerprint                 # compare, on the laptop`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd, isTerminal(g.sys.stdout)); err != nil {
				return err
			}
			ctx, done := interrupting(cmd)
			defer done()
			return runSRK(ctx, g, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "pem", "`FORMAT`: pem, or tpm2b for a TPM2B_PUBLIC")
	f.BoolVar(&o.fingerprint, "fingerprint", false, "print only the fingerprint")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.StringVar(&o.parent, "parent", "owner", "storage `KEY`: owner, endorsement, or a persistent\nhandle 0x81……")
	mustComplete(cmd, "format", "pem", "tpm2b")
	mustComplete(cmd, "parent", "owner", "endorsement", "0x81000001")
	return cmd
}

const srkHelp = `Prints the public storage key of this TPM (its SRK). With it, import --for and
keygen --for on another machine wrap a key so that only this TPM can use it.

It is not a secret, but compare the fingerprint on both machines: anyone who
replaces the SRK with their own gets the key. Details: tpm-agent man srk.`

func (o *srkOptions) check(cmd *cobra.Command, terminal bool) error {
	format := cmd.Flags().Changed("format")
	switch {
	case o.format != "pem" && o.format != "tpm2b":
		return usage("--format %s: must be pem or tpm2b", plain(o.format))
	case o.json && (format || o.fingerprint):
		return usage("--json has everything in it: neither --format nor --fingerprint goes with it")
	case format && o.fingerprint:
		return usage("--format and --fingerprint do not go together")
	case o.format == "tpm2b" && terminal:
		return withHint(usage("--format tpm2b is no text for a terminal"), "tpm-agent srk --format tpm2b > FILE")
	}
	return nil
}

// shownSRK is what `srk --json` shows.
type shownSRK struct {
	TPM         string `json:"tpm"`
	Protected   bool   `json:"protected"` // false for the software TPM
	Type        string `json:"type"`
	Bits        int    `json:"bits"`
	Fingerprint string `json:"fingerprint"`
	Name        string `json:"tpm_name"`
	Handle      string `json:"parent_handle"`
	PEM         string `json:"pem,omitempty"` // not if it would not be enough
	TPM2B       []byte `json:"tpm2b"`
}

func runSRK(ctx context.Context, g *global, o srkOptions) error {
	addr, err := g.address()
	if err != nil {
		return err
	}
	parent, err := storageKey(o.parent)
	if err != nil {
		return err
	}
	tpm := openTPM(addr)
	key, handle, err := tpm.StorageKey(ctx, parent)
	if err := errors.Join(orInterrupted(ctx, err), tpm.Close()); err != nil {
		return fmt.Errorf("asking the TPM for its storage key: %w", noStorageKey(err))
	}
	block, pemErr := bareStorageKey(key)
	switch out := g.sys.stdout; {
	case o.json:
		kind := kindOfStorageKey(key)
		return writeJSON(out, shownSRK{
			addr.String(), !addr.Software(), kind.Type, kind.Bits, storageFingerprint(key),
			hex.EncodeToString(key.Name()), fmt.Sprintf("0x%08x", handle), string(block), key.Marshal(),
		})
	case o.fingerprint:
		_, err = fmt.Fprintln(out, storageFingerprint(key))
	case o.format == "tpm2b":
		_, err = out.Write(key.Marshal())
	case pemErr != nil:
		return withHint(pemErr, "tpm-agent srk --parent %s --format tpm2b > FILE", o.parent)
	default:
		_, err = fmt.Fprintf(out, "%s%s", srkHeader(key, handle, addr.Software()), block)
	}
	return err
}

// srkHeader are the lines before the PEM block, which a reader of PEM skips.
// Ours reads the handle.
func srkHeader(key *tpmkey.StorageKey, handle uint32, software bool) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	mark := ""
	if software {
		mark = " (" + notProtected + ")"
	}
	return fmt.Sprintf("Storage key of the TPM of %s%s\nType: %s\nFingerprint: %s\nName: %x\n%s0x%08x\n",
		plain(host), mark, kindOfStorageKey(key), storageFingerprint(key), key.Name(), handlePrefix, handle)
}

// handlePrefix begins the line that names the storage key's handle.
const handlePrefix = "Handle: "

// storageFingerprint is the Name of the key, in the form in which ssh shows
// fingerprints. It covers all of the public area.
func storageFingerprint(key *tpmkey.StorageKey) string {
	name := key.Name()
	hashes := map[uint16]string{0x0004: "SHA1", 0x000B: "SHA256", 0x000C: "SHA384", 0x000D: "SHA512"}
	if len(name) < 2 || hashes[binary.BigEndian.Uint16(name)] == "" {
		return hex.EncodeToString(name)
	}
	return hashes[binary.BigEndian.Uint16(name)] + ":" + base64.RawStdEncoding.EncodeToString(name[2:])
}

func kindOfStorageKey(key *tpmkey.StorageKey) kind {
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		return kind{"ecc", pub.Curve.Params().BitSize}
	case *rsa.PublicKey:
		return kind{"rsa", pub.N.BitLen()}
	}
	return kind{"unknown", 0}
}

// bareStorageKey is the key as PEM, if that is enough to know it by.
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
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
