package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/agent"
)

type whyOptions struct {
	socket string
	n      int
	json   bool
}

func newWhyCmd(g *global) *cobra.Command {
	var o whyOptions
	cmd := &cobra.Command{
		Use:   "why",
		Short: "Show why the last requests were refused",
		Long: `Shows why the running agent refused its last requests, and what you can do.
The newest comes last. ssh shows only "agent refused operation".`,
		Example: `  tpm-agent why
  tpm-agent why -n 1
  tpm-agent why --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runWhy(cmd, g.sys, o) },
	}
	f := cmd.Flags()
	agentFlag(cmd, &o.socket)
	f.IntVarP(&o.n, "number", "n", 10, "show the last `N` refusals")
	f.BoolVar(&o.json, "json", false, "print JSON")
	mustComplete(cmd, "number")
	return cmd
}

func runWhy(cmd *cobra.Command, sys system, o whyOptions) error {
	if o.n < 1 {
		return usage("-n %d: it is at least 1", o.n)
	}
	ctx, done := interrupting(cmd)
	defer done()
	c, err := dialAgent(ctx, sys, o.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	refusals, err := c.refusals(ctx)
	if err != nil {
		return err
	}
	refusals = refusals[max(0, len(refusals)-o.n):]
	switch {
	case o.json:
		return writeRefusals(sys.stdout, refusals)
	case len(refusals) == 0:
		fmt.Fprintf(sys.stderr, "The agent at %s has refused nothing since it was started.\n", plain(c.path))
	}
	return printRefusals(sys.stdout, refusals)
}

func (c *client) refusals(ctx context.Context) ([]agent.Refusal, error) {
	answer, err := c.askHere(ctx, agent.RefusalsRequest())
	if err != nil {
		return nil, err
	}
	refusals, err := agent.ParseRefusals(answer)
	switch {
	case errors.Is(err, agent.ErrNotOwner):
		return nil, withHint(fmt.Errorf("the agent at %s does not say why it refuses, or not over this connection", plain(c.path)), "%s", notOwnerHint)
	case err != nil:
		return nil, c.failed(ctx, err)
	}
	return refusals, nil
}

// refusalJSON is a refusal for programs.
type refusalJSON struct {
	Time        time.Time `json:"time"`
	Request     string    `json:"request"`
	Key         string    `json:"key,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
	Cause       string    `json:"cause"`
	Detail      string    `json:"detail,omitempty"`
	PID         int       `json:"pid,omitempty"`
	Programs    []string  `json:"programs,omitempty"` // the last one asked, each started the next
	Hint        string    `json:"hint,omitempty"`
}

func writeRefusals(w io.Writer, refusals []agent.Refusal) error {
	all := []refusalJSON{}
	for _, r := range refusals {
		all = append(all, refusalJSON{
			r.Time.UTC(), plain(r.Request), plain(r.Key), plain(r.Fingerprint), plain(r.Cause), oneLine(r.Detail),
			max(r.PID, 0), programNames(r), refusalHint(r),
		})
	}
	return writeJSON(w, all)
}

// printRefusals shows each as a paragraph of lines that fit on a terminal.
func printRefusals(w io.Writer, refusals []agent.Refusal) error {
	var b strings.Builder
	for i, r := range refusals {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(r.Time.Local().Format(time.DateTime) + "  ")
		wrap(&b, len(time.DateTime)+2, oneLine(r.Request+": "+r.Cause))
		key, print := plain(r.Key), plain(r.Fingerprint)
		if key == "" {
			key, print = print, ""
		}
		entry(&b, "key", key)
		entry(&b, "", print)
		entry(&b, "by", programWords(r))
		if r.Detail != r.Cause {
			entry(&b, "because", oneLine(r.Detail))
		}
		entry(&b, "hint", refusalHint(r))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func programNames(r agent.Refusal) (names []string) {
	for _, name := range r.Chain {
		names = append(names, plain(name))
	}
	return names
}

func programWords(r agent.Refusal) string {
	name := strings.Join(programNames(r), " < ")
	switch {
	case r.PID <= 0:
		return ""
	case name == "":
		return fmt.Sprintf("process %d", r.PID)
	}
	return fmt.Sprintf("%s (process %d)", name, r.PID)
}

// entry writes a line of a paragraph. An empty text is left out.
func entry(b *strings.Builder, label, text string) {
	const indent = 11
	if text != "" {
		fmt.Fprintf(b, "  %-*s", indent-2, label)
		wrap(b, indent, text)
	}
}

// wrap writes text from a column on, and goes on below that where a line is
// too long for a terminal.
func wrap(b *strings.Builder, indent int, text string) {
	column := indent
	for i, word := range strings.Fields(text) {
		width := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+width > 79:
			fmt.Fprintf(b, "\n%*s", indent, "")
			column = indent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += width
	}
	b.WriteByte('\n')
}
