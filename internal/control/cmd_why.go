package control

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// WhyOptions are the options of why.
type WhyOptions struct {
	Socket string
	N      int
	JSON   bool
}

// Why shows why the agent refused its last requests.
func Why(ctx context.Context, sys *term.System, o WhyOptions) error {
	if o.N < 1 {
		return term.Usage("-n %d: it is at least 1", o.N)
	}
	c, err := Dial(ctx, sys, o.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.exchange(ctx, refusalsRequest(), agentPatience)
	if err != nil {
		return err
	}
	refusals, err := parseRefusals(answer)
	if err != nil {
		return c.refused(ctx, err, "say why it refuses")
	}
	refusals = refusals[max(0, len(refusals)-o.N):]
	switch {
	case o.JSON:
		return writeRefusals(sys.Stdout, refusals)
	case len(refusals) == 0:
		fmt.Fprintf(sys.Stderr, "The agent at %s has refused nothing since it was started.\n", term.Plain(c.path))
	}
	return printRefusals(sys.Stdout, refusals)
}

func writeRefusals(w io.Writer, refusals []refusal.Record) error {
	type shown struct {
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
	all := []shown{}
	for _, r := range refusals {
		all = append(all, shown{
			r.Time.UTC(), term.Plain(r.Request), term.Plain(r.Key), term.Plain(r.Fingerprint), term.Plain(r.Cause), term.OneLine(r.Detail),
			max(r.PID, 0), programs(r), refusalHint(r),
		})
	}
	return term.JSON(w, all)
}

// printRefusals shows each as a paragraph of lines that fit on a terminal.
func printRefusals(w io.Writer, refusals []refusal.Record) error {
	var b strings.Builder
	for i, r := range refusals {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(r.Time.Local().Format(time.DateTime) + "  ")
		wrap(&b, len(time.DateTime)+2, term.OneLine(r.Request+": "+r.Cause))
		key, fingerprint := term.Plain(r.Key), term.Plain(r.Fingerprint)
		if key == "" {
			key, fingerprint = fingerprint, ""
		}
		by := fmt.Sprintf("process %d", r.PID)
		if name := strings.Join(programs(r), " < "); name != "" {
			by = fmt.Sprintf("%s (process %d)", name, r.PID)
		}
		if r.PID <= 0 {
			by = ""
		}
		because := term.OneLine(r.Detail)
		if r.Detail == r.Cause {
			because = ""
		}
		for _, line := range [][2]string{{"key", key}, {"", fingerprint}, {"by", by}, {"because", because}, {"hint", refusalHint(r)}} {
			const indent = 11
			if line[1] != "" {
				fmt.Fprintf(&b, "  %-*s", indent-2, line[0])
				wrap(&b, indent, line[1])
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func programs(r refusal.Record) (names []string) {
	for _, name := range r.Chain {
		names = append(names, term.Plain(name))
	}
	return names
}

// wrap writes text that begins in a column, and continues there on the next line
// where a line is too long for a terminal.
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

// refusalHint returns what can be done about a refusal, or "" if there is nothing to
// add to the cause.
func refusalHint(r refusal.Record) string {
	key, file := "KEY", "FILE"
	switch {
	case r.Key != "" && term.Plain(r.Key) == r.Key:
		key, file = term.Quote(r.Key), term.Quote(r.Key)
	case r.Fingerprint != "":
		key = term.Quote(term.Plain(r.Fingerprint))
	}
	return strings.NewReplacer("KEY", key, "FILE", file).Replace(causeHints[refusal.Cause(r.Cause)])
}

// causeHints say what to do about each cause. KEY stands for the key, by file
// or fingerprint, FILE for its file.
var causeHints = map[refusal.Cause]string{
	refusal.Cancelled:     "try again and answer the prompt; if you did not expect it, find out which program sent the request",
	refusal.NoAnswer:      "try again and answer sooner, or give the PIN in advance: tpm-agent unlock KEY",
	refusal.NoPrompt:      "give the PIN in advance: tpm-agent unlock KEY. To let the agent ask, install a pinentry, or start the agent with SSH_ASKPASS set",
	refusal.Prompt:        "the program that shows the prompt failed; give the PIN on the command line instead: tpm-agent unlock KEY",
	refusal.WrongAuth:     "tpm-agent unlock KEY asks again and shows how many tries are left",
	refusal.Lockout:       "wait; keys without a PIN keep working, and the TPM gives back one try at a time. The owner of the TPM can end the lockout at once: tpm2_dictionarylockout --clear-lockout",
	refusal.Locked:        "ssh-add -X unlocks the agent",
	refusal.WrongPassword: "ssh-add -X asks again; each wrong password makes the next try slower. If the password is lost, stop the agent with SIGTERM; key files are not affected",

	refusal.Destination: "the key was added for other hosts only (ssh-add -h, tpm-agent add -h): add it again for this host, or for all hosts",
	refusal.Binding:     "ssh or a server on the way is older than OpenSSH 8.9 or is a different program, or it gives the wrong host",
	refusal.Constraint:  "add the key without the constraint that the agent does not support",
	refusal.TooMany:     "ssh-add -D removes all keys; SIGHUP brings back those in the agent's directories",
	refusal.Replaced:    "try again",
	refusal.Expired:     "renew the certificate and put it beside the key file; the agent uses it at once",
	refusal.Removed:     gone,
	refusal.UnknownKey:  gone,
	refusal.Remote:      "send the request on the machine where the agent runs",
	refusal.NoSoftware:  "bring the key into the TPM: tpm-agent import",

	refusal.Algorithm:   "use a client that supports rsa-sha2-256 or rsa-sha2-512; for older ones: tpm-agent serve --allow-sha1",
	refusal.Key:         "tpm-agent inspect FILE shows whether this TPM can use the key",
	refusal.Upstream:    "check the other agent: ssh-add -l with its socket as SSH_AUTH_SOCK",
	refusal.Unsupported: "most clients do not need this; tpm-agent serve --upstream SOCKET passes such requests to another agent",
	refusal.Malformed:   "the client is broken, or is not an SSH agent client",
}

const gone = "ssh-add -l lists the agent's keys. SIGHUP brings back a removed key of its directories; add other keys again (tpm-agent add, ssh-add)"
