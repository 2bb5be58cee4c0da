package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
)

type listOptions struct {
	keyDirs []string
	json    bool
}

func newListCmd(g *global) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys in ~/.ssh",
		Long: `Lists the TPM keys in ~/.ssh, or in the directories given: name, type and size,
fingerprint, the storage key that wraps it, whether it has a PIN, and the file.
Any file that holds a TSS2 PRIVATE KEY block is a key, whatever it is called. The
TPM is not asked, so a key of another TPM is listed too.

Files that should be keys but cannot be used are named on standard error, with
the reason. They do no harm to the others.

PIN says what the key file says. Some programs write it wrong; the TPM decides.

A storage key with a * is not in this TPM any more, as far as is remembered: the
TPM was cleared, or is another one. What is known of it stands below the table.
The agent, keygen and inspect remember storage keys, in a file .tpm-agent-parents
beside the keys.`,
		Example: `  tpm-agent list
  tpm-agent list --key-dir /etc/ssh/tpm --json`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return runList(g, o) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.keyDirs, "key-dir", nil, "`DIR`ectory with keys; may be given several times (default ~/.ssh)")
	f.BoolVar(&o.json, "json", false, "as JSON")
	return cmd
}

// listing is what `list` knows.
type listing struct {
	TPM       string       `json:"tpm"`
	Protected bool         `json:"protected"` // false: the TPM asked for is the software TPM
	Keys      []listedKey  `json:"keys"`
	Problems  []listedFile `json:"problems"`
}

type listedKey struct {
	Name string `json:"name"`
	kind
	Fingerprint string `json:"fingerprint"`
	Comment     string `json:"comment"`
	Parent      string `json:"parent"`
	// StorageKey is what is remembered of it; Lost says that it is gone.
	StorageKey   *storageKeyInfo `json:"storage_key,omitempty"`
	Lost         string          `json:"lost,omitempty"`
	PIN          bool            `json:"pin"`
	Certificates int             `json:"certificates"`
	File         string          `json:"file"`
}

type listedFile struct {
	File    string `json:"file"`
	Problem string `json:"problem"`
}

func runList(g *global, o listOptions) error {
	addr, err := g.address()
	if err != nil {
		return err
	}
	dirs, err := g.keyDirs(o.keyDirs)
	if err != nil {
		return err
	}
	l, err := makeListing(addr, dirs)
	if err != nil {
		return err
	}
	if o.json {
		return writeJSON(g.sys.stdout, l)
	}
	if err := l.print(g.sys.stdout); err != nil {
		return err
	}
	for _, p := range l.Problems {
		fmt.Fprintf(g.sys.stderr, "tpm-agent: %s: %s\n", p.File, p.Problem)
	}
	return nil
}

// keyDirs is where to look for keys.
func (g *global) keyDirs(asked []string) ([]string, error) {
	if len(asked) == 0 {
		dir, err := g.sys.sshDir()
		return []string{dir}, err
	}
	var dirs []string
	for _, dir := range asked {
		if dir == "" {
			return nil, usage("--key-dir: the name is empty")
		}
		absolute, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, absolute)
	}
	return dirs, nil
}

// makeListing reads the directories. A key that could never be used is a
// problem, not a key; no TPM is needed to know that.
func makeListing(addr tcti.Address, dirs []string) (l listing, err error) {
	l = listing{TPM: addr.String(), Protected: !addr.Software(), Keys: []listedKey{}, Problems: []listedFile{}}
	index, err := keydir.Open(dirs, nil)
	if err != nil {
		return l, fmt.Errorf("reading %s: %w", strings.Join(dirs, ", "), err)
	}
	tpm := openTPM(addr)
	remembered, memories := newMemory(addr, nil), recall()
	for _, e := range index.Entries() {
		if _, err := tpm.Key(e.Key); err != nil {
			l.Problems = append(l.Problems, listedFile{plain(e.Path), oneLine(err.Error())})
			continue
		}
		short, _ := parentWords(e.Key)
		under, _ := memories(e.Path).Of(parents.KeyOf(e.Public, e.Key), remembered.tpm)
		l.Keys = append(l.Keys, listedKey{
			Name: strings.TrimSuffix(plain(filepath.Base(e.Path)), ".tpm"), kind: kindOf(e.Key.Public),
			Fingerprint: ssh.FingerprintSHA256(e.Public), Comment: plain(e.Comment), Parent: short,
			StorageKey: infoOf(under), Lost: remembered.lost(under),
			PIN: e.Key.UsesAuth(), Certificates: len(e.Certificates), File: plain(e.Path),
		})
	}
	for _, p := range index.Problems() {
		l.Problems = append(l.Problems, listedFile{plain(p.Path), oneLine(p.Err.Error())})
	}
	return l, errors.Join(index.Close(), tpm.Close())
}

func (l *listing) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tTYPE\tBITS\tFINGERPRINT\tSTORAGE KEY\tPIN\tFILE")
	for _, k := range l.Keys {
		pin, storage := "no", k.Parent
		if k.Lost != "" {
			storage += "*"
		}
		if k.PIN {
			pin = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", k.Name, k.Type, k.Bits, k.Fingerprint, storage, pin, k.File)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := l.printLost(w); err != nil {
		return err
	}
	if !l.Protected {
		_, err := fmt.Fprintf(w, "TPM: %s (%s)\n", l.TPM, notProtected)
		return err
	}
	return nil
}

// printLost says once what several keys may have in common.
func (l *listing) printLost(w io.Writer) error {
	var words []string
	names := make(map[string][]string)
	for _, k := range l.Keys {
		if k.Lost == "" {
			continue
		}
		if names[k.Lost] == nil {
			words = append(words, k.Lost)
		}
		names[k.Lost] = append(names[k.Lost], k.Name)
	}
	for _, lost := range words {
		if _, err := fmt.Fprintf(w, "* %s: %s\n", strings.Join(names[lost], ", "), lost); err != nil {
			return err
		}
	}
	return nil
}
