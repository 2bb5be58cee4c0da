package control

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/inspect"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// ListOptions are the options of list.
type ListOptions struct {
	KeyDirs []string
	Socket  string
	JSON    bool
}

// listing has the data that list prints.
type listing struct {
	TPM       string            `json:"tpm"`
	Protected bool              `json:"protected"` // false: the TPM asked for is the software TPM
	Agent     *agentInfo        `json:"agent,omitempty"`
	Keys      []listedKey       `json:"keys"`
	Others    []listedElse      `json:"others,omitempty"` // what the agent offers besides
	Problems  []inspect.Problem `json:"problems"`
}

// agentInfo is the agent that list has asked, and why it got no answer.
type agentInfo struct {
	Socket  string `json:"socket"`
	Problem string `json:"problem,omitempty"`
}

// listedKey is a key in a directory.
type listedKey struct {
	inspect.Listed
	Agent *offer `json:"agent,omitempty"`
}

// listedElse is a key that the agent offers and that is in none of the directories.
type listedElse struct {
	inspect.Kind
	Fingerprint string `json:"fingerprint"`
	Comment     string `json:"comment"`
	Place       string `json:"place"`              // file, memory, or upstream
	File        string `json:"file,omitempty"`     // of a key file
	Upstream    string `json:"upstream,omitempty"` // the agent that has it
	Agent       *offer `json:"agent"`
}

// offer has an agent's data about a key.
type offer struct {
	Offered       bool     `json:"offered"`
	Lifetime      *int     `json:"lifetime,omitempty"` // until it is removed, in seconds
	Confirm       bool     `json:"confirm"`
	Destinations  []string `json:"destinations,omitempty"`
	PINRemembered bool     `json:"pin_remembered"`
	PINLifetime   *int     `json:"pin_lifetime,omitempty"` // until it is forgotten, in seconds
}

// List lists the keys in directories and those of the agent.
func List(ctx context.Context, sys *term.System, o ListOptions) error {
	addr, err := sys.Address()
	if err != nil {
		return err
	}
	dirs, err := sys.KeyDirs(o.KeyDirs)
	if err != nil {
		return err
	}
	keys, problems, err := inspect.List(addr, dirs)
	if err != nil {
		return err
	}
	l := listing{TPM: addr.String(), Protected: !addr.Software(), Keys: []listedKey{}, Problems: problems}
	for _, k := range keys {
		l.Keys = append(l.Keys, listedKey{Listed: k})
	}
	if err := l.askAgent(ctx, sys, o.Socket); err != nil {
		return err
	}
	if o.JSON {
		err = term.JSON(sys.Stdout, l)
	} else {
		err = l.print(sys)
	}
	if err != nil {
		return err
	}
	// ~/.ssh need not be there; a directory that was asked for must be.
	for _, dir := range dirs {
		if _, err := os.ReadDir(dir); err != nil && len(o.KeyDirs) > 0 {
			return term.StatusError(1) // it is among the problems
		}
	}
	return nil
}

// askAgent asks the agent that runs what it offers. Without one the listing is
// that of the files; but one that the user named must be there.
func (l *listing) askAgent(ctx context.Context, sys *term.System, asked string) error {
	path, err := agentSocket(sys, asked)
	if err != nil {
		return nil // there is no place for one, and none was named
	}
	l.Agent = &agentInfo{Socket: term.Plain(path)}
	held, err := askHeld(ctx, sys, asked)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && asked != "":
		return err
	case err != nil:
		l.Agent.Problem = term.OneLine(err.Error())
		return nil
	}
	l.merge(held)
	return nil
}

func askHeld(ctx context.Context, sys *term.System, asked string) (held []agent.Held, err error) {
	c, err := Dial(ctx, sys, asked)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for next := 0; ; {
		answer, err := c.exchange(ctx, heldRequest(next), heldPatience)
		if err != nil {
			return nil, err
		}
		some, more, err := parseHeld(answer)
		if err != nil {
			return nil, c.refused(ctx, err, "say what it offers")
		}
		held = append(held, some...)
		if more <= next {
			return held, nil
		}
		next = more
	}
}

// merge adds what the agent says to the keys. The first of a key and its
// certificates counts.
func (l *listing) merge(held []agent.Held) {
	offers, listed := make(map[string]*offer), make(map[string]bool)
	for _, k := range l.Keys {
		listed[k.Fingerprint] = true
	}
	l.Others = []listedElse{}
	for i := range held {
		h := &held[i]
		fingerprint := FingerprintOf(&sshagent.Key{Blob: h.Blob})
		if offers[fingerprint] == nil {
			offers[fingerprint] = newOffer(h)
		}
		if listed[fingerprint] {
			continue
		}
		k := listedElse{Kind: inspect.KindOfBlob(h.Blob), Fingerprint: fingerprint, Comment: term.Plain(h.Comment), Agent: newOffer(h)}
		switch h.Keeper {
		case agent.InMemory:
			k.Place = "memory"
		case agent.InUpstream:
			k.Place, k.Upstream = "upstream", term.Plain(h.Name)
		default:
			k.Place, k.File = "file", term.Plain(h.Name)
		}
		l.Others = append(l.Others, k)
	}
	for i := range l.Keys {
		k := &l.Keys[i]
		if k.Agent = offers[k.Fingerprint]; k.Agent == nil {
			k.Agent = new(offer)
		}
	}
}

func newOffer(h *agent.Held) *offer {
	seconds := func(d time.Duration) *int {
		n := int(d / time.Second)
		return &n
	}
	o := &offer{Offered: true, Confirm: h.Confirm, PINRemembered: h.PIN != 0}
	if h.Mortal {
		o.Lifetime = seconds(h.Lifetime)
	}
	for _, d := range h.Destinations {
		o.Destinations = append(o.Destinations, term.Plain(d))
	}
	if o.PINRemembered && h.PIN != restrict.Forever {
		o.PINLifetime = seconds(h.PIN)
	}
	return o
}

// words describe the key in the table.
func (o *offer) words() string {
	switch {
	case o == nil:
		return "-"
	case !o.Offered:
		return "not offered"
	}
	words := []string{"offered"}
	if o.Lifetime != nil {
		words = append(words, "for "+term.Duration(time.Duration(*o.Lifetime)*time.Second))
	}
	if o.Confirm {
		words = append(words, "confirm")
	}
	switch n := len(o.Destinations); {
	case n > 3:
		words = append(words, fmt.Sprintf("to %d destinations", n))
	case n > 0:
		words = append(words, "to "+strings.Join(o.Destinations, " "))
	}
	switch {
	case o.PINLifetime != nil:
		words = append(words, "PIN remembered for "+term.Duration(time.Duration(*o.PINLifetime)*time.Second))
	case o.PINRemembered:
		words = append(words, "PIN remembered")
	}
	return strings.Join(words, ", ")
}

// print prints a table, what several keys may have in common below it, and what is
// wrong with files on standard error.
func (l *listing) print(sys *term.System) error {
	rows := [][]string{{"NAME", "TYPE", "BITS", "FINGERPRINT", "STORAGE KEY", "PIN", "AGENT", "FILE"}}
	var b strings.Builder
	for i := range l.Keys {
		rows = append(rows, l.Keys[i].row())
		l.writeLost(&b, i)
	}
	for i := range l.Others {
		rows = append(rows, l.Others[i].row())
	}
	asked := l.Agent != nil && l.Agent.Problem == ""
	switch {
	case asked:
		fmt.Fprintf(&b, "Agent: %s\n", l.Agent.Socket)
	case l.Agent != nil:
		fmt.Fprintf(&b, "Agent: %s\n", l.Agent.Problem)
	}
	if !l.Protected {
		fmt.Fprintf(&b, "TPM: %s (%s)\n", l.TPM, term.NotProtected)
	}
	t := tabwriter.NewWriter(sys.Stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if !asked {
			row = slices.Delete(row, 6, 7)
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if _, err := sys.Stdout.WriteString(b.String()); err != nil {
		return err
	}
	for _, p := range l.Problems {
		fmt.Fprintf(sys.Stderr, "tpm-agent: %s: %s\n", p.File, p.Problem)
	}
	return nil
}

// writeLost says what became of the storage key of a key, unless it was said of a
// key before it.
func (l *listing) writeLost(b *strings.Builder, i int) {
	lost := l.Keys[i].Lost
	var names []string
	for n, k := range l.Keys {
		switch {
		case lost == "" || k.Lost != lost:
		case n < i:
			return
		default:
			names = append(names, k.Name)
		}
	}
	if len(names) > 0 {
		fmt.Fprintf(b, "* %s: %s\n", strings.Join(names, ", "), lost)
	}
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

// row returns the row of a key in the table. A key in memory is known by its comment.
func (k *listedElse) row() []string {
	name, where, bits := k.Comment, "in memory", "-"
	switch k.Place {
	case "file":
		name, where = inspect.KeyName(filepath.Base(k.File)), k.File
	case "upstream":
		where = "upstream " + k.Upstream
	}
	if k.Bits > 0 {
		bits = strconv.Itoa(k.Bits)
	}
	return []string{cmp.Or(name, "-"), k.Type, bits, k.Fingerprint, "-", "-", k.Agent.words(), where}
}
