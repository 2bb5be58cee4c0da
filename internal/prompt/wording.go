package prompt

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt/way"
)

// The texts are lines of at most maxColumns, the most important ones first. Names
// and comments from outside are made harmless and are shortened to these lengths,
// in octets, so that a text has at most maxText.
const (
	maxFile      = 46 // fits after Enter PIN for
	maxComment   = 54
	maxUser      = 32
	maxHost      = 53 // as long as the fingerprint of a host without a name
	maxProgram   = 17 // the kernel keeps 15
	maxNamespace = 40
	maxKeyID     = 32
	maxPrincipal = 24

	maxText = 860
)

// wrongPIN tells that the last PIN was wrong, and what the next one may cost.
func wrongPIN(p ask.AuthPrompt) string {
	if !p.Retry {
		return ""
	}
	return fold(append([]string{"Wrong PIN."}, tries(p.TriesLeft)...)...)
}

// enterPIN asks for a PIN: of which key, for what, and for which program.
func enterPIN(p ask.AuthPrompt) string {
	lines := []string{fold(append([]string{"Enter PIN for"}, keyWords(p.Name, p.Comment)...)...)}
	lines = append(lines, about(p.Question)...)
	if !p.Retry && p.TriesLeft > 0 {
		lines = append(lines, fold(tries(p.TriesLeft)...))
	}
	if p.Waiting > 0 {
		lines = append(lines, "The answer also serves "+number(int64(p.Waiting), "other request")+" for this key.")
	}
	return strings.Join(lines, "\n")
}

// consent asks whether a key may be used. It begins with the words of OpenSSH's
// agent, which users and askpass programs know.
func consent(p ask.ConfirmPrompt) string {
	key := keyWords(p.Name, p.Comment)
	key[len(key)-1] += "?"
	lines := []string{
		fold(append([]string{"Allow use of key"}, key...)...),
		"Key fingerprint " + fingerprint(p.Fingerprint) + ".",
	}
	p.Fingerprint = "" // is there already
	return strings.Join(append(lines, about(p.Question)...), "\n")
}

// keyName returns the name of a key: its file, its comment, or both.
func keyName(file, comment string) string { return strings.Join(keyWords(file, comment), " ") }

func keyWords(file, comment string) []string {
	file, comment = shortFile(file), label(comment)
	switch {
	case file == "" && comment == "":
		return []string{"without a name"}
	case file == "":
		return []string{comment}
	case comment == "":
		return []string{word(file, maxFile, cutBegin)}
	}
	return []string{word(file, maxFile, cutBegin), "(" + comment + ")"}
}

// shortFile writes ~ for the user's home directory.
func shortFile(name string) string {
	name = way.Printable(name)
	home, err := os.UserHomeDir()
	if err != nil || home == "/" {
		return name
	}
	if rest, below := strings.CutPrefix(name, filepath.Clean(home)+"/"); below {
		return "~/" + rest
	}
	return name
}

// label returns a comment. Unlike a word it may have blanks, since it stands at
// the end of a sentence, or in parentheses, which it must not close.
func label(comment string) string {
	comment = way.CutEnd(strings.Join(strings.Fields(way.Printable(comment)), " "), maxComment)
	depth := 0
	for _, r := range comment {
		switch {
		case r == '(':
			depth++
		case r == ')' && depth > 0:
			depth--
		case nameRune(r) || strings.ContainsRune(" @,…", r):
		default:
			return quoted(comment)
		}
	}
	if depth > 0 {
		return quoted(comment)
	}
	return comment
}

// about tells what a key is wanted for, and by which programs.
func about(q ask.Question) (lines []string) {
	for _, line := range []string{fingerprint(q.Fingerprint), forwarded(q.Use), purpose(q.Use), requester(q)} {
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func fingerprint(sum string) string { return way.CutEnd(way.Printable(sum), maxHost) }

// forwarded tells from where a forwarded request came. The last host sent it; what
// is known about the others is only what the nearer ones say.
func forwarded(u ask.Use) string {
	switch {
	case !u.Forwarded:
		return ""
	case len(u.Via) == 0 || len(u.Via) == 1 && u.Via[0] == "":
		return "Perhaps FORWARDED: the host did not prove its identity"
	}
	words := []string{"FORWARDED from", hostWord(u.Via[len(u.Via)-1])}
	if between := len(u.Via) - 2; between > 0 {
		words = append(words, "via", number(int64(between), "other host"), "and", hostWord(u.Via[0]))
	} else if between == 0 {
		words = append(words, "via", hostWord(u.Via[0]))
	}
	return fold(words...)
}

func hostWord(name string) string {
	if name == "" {
		return "an unproven host"
	}
	return word(name, maxHost, cutBegin)
}

// purpose tells what is to be signed.
func purpose(u ask.Use) string {
	switch u.Kind {
	case ask.UseLogin:
		return fold(loginWords(u)...)
	case ask.UseSignature:
		return fold(signatureWords(u.Namespace)...)
	case ask.UseCertificate:
		return fold(certificateWords(u)...)
	}
	return "To sign data that is neither a login nor an SSH signature"
}

func loginWords(u ask.Use) []string {
	words := []string{"To log in"}
	if u.User != "" {
		words = []string{"To log in as", word(u.User, maxUser, way.CutEnd)}
	}
	switch {
	case u.Host != "" && u.User != "":
		host := hostWord(u.Host)
		if columns(words[1])+columns(host)+len("  @") > maxColumns {
			return append(words[:1], words[1]+"@", host)
		}
		return append(words[:1], words[1]+"@"+host)
	case u.Host != "":
		return append(words, "to", hostWord(u.Host))
	case u.HostKey != "":
		return append(words, "to an unknown host with the key", fingerprint(u.HostKey))
	}
	return append(words, "(ssh did not say to which host)")
}

// signatureWords explains the namespaces of git and ssh-keygen. A verifier
// accepts nothing else in those.
func signatureWords(namespace string) []string {
	switch namespace {
	case "git":
		return []string{"To sign a commit, tag or push", "(namespace git)"}
	case "file":
		return []string{"To sign a file", "(namespace file)"}
	}
	return []string{"To sign data", "in the namespace", word(namespace, maxNamespace, way.CutEnd)}
}

func certificateWords(u ask.Use) []string {
	words := []string{"To certify a user's key, for"}
	if u.HostCert {
		words = []string{"To certify a host's key, for"}
	}
	const shown = 3
	for i, name := range u.Principals {
		if i == shown {
			words = append(words, fmt.Sprintf("and %d more", len(u.Principals)-shown))
			break
		}
		end := ","
		if i == len(u.Principals)-1 {
			end = ""
		}
		words = append(words, word(name, maxPrincipal, way.CutEnd)+end)
	}
	if len(u.Principals) == 0 {
		words = append(words, "ANY name")
	}
	if u.KeyID != "" {
		words = append(words, "(key ID "+word(u.KeyID, maxKeyID, way.CutEnd)+")")
	}
	return words
}

// requester names the programs that ask. They choose their names themselves, so
// this helps the user but proves nothing.
func requester(q ask.Question) string {
	if q.Use.Forwarded && len(q.Use.Via) > 0 && q.Use.Via[0] != "" {
		return programs("Forwarded by", q.Peer.Chain(), q.Peer.PID)
	}
	return programs("Requested by", q.Peer.Chain(), q.Peer.PID)
}

func programs(verb string, names []string, pid int) string {
	switch {
	case pid <= 0:
		return ""
	case len(names) == 0:
		return fmt.Sprintf("%s pid %d", verb, pid)
	}
	words := []string{verb}
	for i, name := range names {
		if i > 0 {
			words = append(words, "→")
		}
		words = append(words, word(name, maxProgram, way.CutEnd))
	}
	return fold(append(words, fmt.Sprintf("(pid %d)", pid))...)
}
