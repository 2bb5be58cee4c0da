package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	socket  string
	json    bool
}

func newListCmd(g *global) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List key files and the keys that the agent offers",
		Long: `Lists the TPM keys in ~/.ssh, and every key that the running agent offers.

The column AGENT says what the agent does with a key. A * marks the storage
key of a TPM that was cleared or replaced. Details: tpm-agent man list.`,
		Example: `  tpm-agent list
  tpm-agent list --key-dir /etc/ssh/tpm --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runList(cmd, g, o) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.keyDirs, "key-dir", nil, "list the keys in `DIR` (default ~/.ssh; repeatable)")
	completeDir(cmd, "key-dir")
	agentFlag(cmd, &o.socket)
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// listing is what `list` knows.
type listing struct {
	TPM       string       `json:"tpm"`
	Protected bool         `json:"protected"` // false: the TPM asked for is the software TPM
	Agent     *agentInfo   `json:"agent,omitempty"`
	Keys      []listedKey  `json:"keys"`
	Others    []listedElse `json:"others,omitempty"` // what the agent offers besides
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
	Agent        *offer          `json:"agent,omitempty"`
}

type listedFile struct {
	File    string `json:"file"`
	Problem string `json:"problem"`
}

func runList(cmd *cobra.Command, g *global, o listOptions) error {
	ctx, done := interrupting(cmd)
	defer done()
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
	if err := l.askAgent(ctx, g.sys, o.socket); err != nil {
		return err
	}
	if err := l.show(g.sys, o.json); err != nil {
		return err
	}
	// ~/.ssh need not be there; a directory that was asked for is another matter.
	for _, dir := range dirs {
		if _, err := os.ReadDir(dir); err != nil && len(o.keyDirs) > 0 {
			return statusError(exitFailure) // it stands among the problems
		}
	}
	return nil
}

// show prints the table and what is wrong with files, or all of it as JSON.
func (l *listing) show(sys system, asJSON bool) error {
	if asJSON {
		return writeJSON(sys.stdout, l)
	}
	if err := l.print(sys.stdout); err != nil {
		return err
	}
	for _, p := range l.Problems {
		fmt.Fprintf(sys.stderr, "tpm-agent: %s: %s\n", p.File, p.Problem)
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
	remembered := newMemory(addr, nil)
	memories := remembered.recall()
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
	rows := [][]string{{"NAME", "TYPE", "BITS", "FINGERPRINT", "STORAGE KEY", "PIN", "AGENT", "FILE"}}
	for i := range l.Keys {
		rows = append(rows, l.Keys[i].row())
	}
	for i := range l.Others {
		rows = append(rows, l.Others[i].row())
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if !l.asked() {
			row = slices.Delete(row, 6, 7)
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := l.printLost(w); err != nil {
		return err
	}
	return l.printSources(w)
}

func (k *listedKey) row() []string {
	pin, storage := "no", k.Parent
	if k.Lost != "" {
		storage += "*"
	}
	if k.PIN {
		pin = "yes"
	}
	return []string{k.Name, k.Type, strconv.Itoa(k.Bits), k.Fingerprint, storage, pin, k.Agent.words(), k.File}
}

// asked says whether an agent has answered.
func (l *listing) asked() bool { return l.Agent != nil && l.Agent.Problem == "" }

// printSources says which agent was asked, and of the TPM what must be said.
func (l *listing) printSources(w io.Writer) error {
	var b strings.Builder
	switch {
	case l.asked():
		fmt.Fprintf(&b, "Agent: %s\n", l.Agent.Socket)
	case l.Agent != nil:
		fmt.Fprintf(&b, "Agent: %s\n", l.Agent.Problem)
	}
	if !l.Protected {
		fmt.Fprintf(&b, "TPM: %s (%s)\n", l.TPM, notProtected)
	}
	_, err := io.WriteString(w, b.String())
	return err
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
