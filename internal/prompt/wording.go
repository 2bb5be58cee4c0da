package prompt

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/tpm-agent/tpm-agent/agent"
)

// wording is the question: which key, who asks, and what a wrong answer costs.
// Everything in it that came from outside (file names, comments, the names of
// programs) is made harmless first.
func wording(p agent.AuthPrompt) string {
	var b strings.Builder
	if p.Retry {
		b.WriteString("Wrong PIN. ")
		b.WriteString(tries(p.TriesLeft))
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "Enter PIN for %s", plain(p.Name))
	if p.Comment != "" && p.Comment != p.Name {
		fmt.Fprintf(&b, " (%s)", plain(p.Comment))
	}
	fmt.Fprintf(&b, "\n%s", plain(p.Fingerprint))
	if by := asker(p.Peer); by != "" {
		fmt.Fprintf(&b, "\nfor %s", by)
	}
	if !p.Retry && p.TriesLeft >= 0 {
		fmt.Fprintf(&b, "\n%s", tries(p.TriesLeft))
	}
	return b.String()
}

// tries says how often one may still be wrong.
func tries(left int) string {
	switch {
	case left < 0:
		return "Every wrong PIN counts towards the TPM's lockout."
	case left == 1:
		return "1 try left before the TPM locks itself."
	}
	return fmt.Sprintf("%d tries left before the TPM locks itself.", left)
}

// asker names the process that asks, by its name and number. A process can
// choose its own name, so this is help and no proof.
func asker(p agent.Peer) string {
	name := plain(p.Program())
	switch {
	case name != "":
		return fmt.Sprintf("%s (process %d)", name, p.PID)
	case p.PID > 0:
		return fmt.Sprintf("process %d", p.PID)
	}
	return ""
}

// plain keeps what can be printed and drops the rest: control characters, which
// steer terminals, and the invisible ones that turn the direction of writing,
// which make a name look like another. Long texts are cut.
func plain(s string) string {
	const longest = 256
	kept := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if runes := []rune(kept); len(runes) > longest {
		kept = string(runes[:longest]) + "…"
	}
	return kept
}
