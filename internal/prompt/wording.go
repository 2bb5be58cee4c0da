package prompt

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/tpm-agent/tpm-agent/agent"
)

// wording asks for a PIN: for which key, who wants it, and what a wrong answer
// costs.
// Everything in it that came from outside (file names, comments, the names of
// programs) is made harmless first.
func wording(p agent.AuthPrompt) string {
	var b strings.Builder
	if p.Retry {
		b.WriteString("Wrong PIN. ")
		b.WriteString(tries(p.TriesLeft))
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "Enter PIN for %s\n%s", keyName(p.Name, p.Comment), plain(p.Fingerprint))
	if by := asker(p.Peer); by != "" {
		fmt.Fprintf(&b, "\nfor %s", by)
	}
	if !p.Retry && p.TriesLeft >= 0 {
		fmt.Fprintf(&b, "\n%s", tries(p.TriesLeft))
	}
	return b.String()
}

// consent asks whether a key may be used: which, who wants it, and where it
// would log in. It begins with the words of OpenSSH's agent, which users and
// askpass programs know.
func consent(p agent.ConfirmPrompt) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Allow use of key %s?\nKey fingerprint %s.", keyName(p.Name, p.Comment), plain(p.Fingerprint))
	by, to := asker(p.Peer), target(p.Use.User, p.Use.Host)
	switch {
	case by != "" && to != "":
		fmt.Fprintf(&b, "\nFor %s, to %s.", by, to)
	case by != "":
		fmt.Fprintf(&b, "\nFor %s.", by)
	case to != "":
		fmt.Fprintf(&b, "\nTo %s.", to)
	}
	return b.String()
}

// lastTry asks whether to risk a lockout.
func lastTry(p agent.AuthPrompt) string {
	return fmt.Sprintf("One more wrong PIN locks the TPM: it then takes no PIN of any key for some time.\nEnter the PIN for %s all the same?", keyName(p.Name, p.Comment))
}

// keyName names a key by its file and its comment, or by what it has of them.
func keyName(file, comment string) string {
	file, comment = plain(file), plain(comment)
	switch {
	case file == "" && comment == "":
		return "without a name"
	case file == "":
		return comment
	case comment == "" || comment == file:
		return file
	}
	return file + " (" + comment + ")"
}

// target says where a login goes.
func target(user, host string) string {
	user, host = plain(user), plain(host)
	switch {
	case user != "" && host != "":
		return "log in as " + user + "@" + host
	case host != "":
		return "log in to " + host
	case user != "":
		return "log in as " + user
	}
	return ""
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
