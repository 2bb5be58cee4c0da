package prompt

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
)

// The texts are lines of at most maxColumns, the most important first. What is
// in them that came from outside (names of files, users, hosts and programs,
// comments) is made harmless first: see plain and word. These are the lengths
// that it may have, in octets; a text has less than maxText.
const (
	maxFile      = 46 // fits behind Enter PIN for
	maxComment   = 54
	maxUser      = 32
	maxHost      = 53 // as long as what stands for a host without a name
	maxProgram   = 17 // the kernel keeps 15
	maxNamespace = 40
	maxKeyID     = 32
	maxPrincipal = 24

	maxText = 860
)

// wording asks for a PIN: for which key, what for and for whom, and what a
// wrong answer costs.
func wording(p agent.AuthPrompt) string {
	var lines []string
	if p.Retry {
		lines = append(lines, fold(append([]string{"Wrong PIN."}, tries(p.TriesLeft)...)...))
	}
	lines = append(lines, fold(append([]string{"Enter PIN for"}, keyWords(p.Name, p.Comment)...)...))
	lines = append(lines, about(p.Question)...)
	if !p.Retry && p.TriesLeft > 0 {
		lines = append(lines, fold(tries(p.TriesLeft)...))
	}
	if p.Waiting > 0 {
		lines = append(lines, waiting(p.Waiting))
	}
	return strings.Join(lines, "\n")
}

// consent asks whether a key may be used. It begins with the words of OpenSSH's
// agent, which users and askpass programs know.
func consent(p agent.ConfirmPrompt) string {
	key := keyWords(p.Name, p.Comment)
	key[len(key)-1] += "?"
	lines := []string{
		fold(append([]string{"Allow use of key"}, key...)...),
		"Key fingerprint " + fingerprint(p.Fingerprint) + ".",
	}
	p.Fingerprint = "" // has been said
	for _, line := range about(p.Question) {
		lines = append(lines, strings.ToUpper(line[:1])+line[1:])
	}
	return strings.Join(lines, "\n")
}

func waiting(others int) string {
	if others == 1 {
		return "The answer also serves another request for this key."
	}
	return fmt.Sprintf("The answer also serves %d other requests for this key.", others)
}

// keyName names a key by its file and its comment, or by what it has of them.
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

// shortFile is how a user writes the name of a file.
func shortFile(name string) string {
	name = printable(name)
	home, err := os.UserHomeDir()
	if err != nil || home == "/" {
		return name
	}
	if rest, below := strings.CutPrefix(name, filepath.Clean(home)+"/"); below {
		return "~/" + rest
	}
	return name
}

// label is a comment. Unlike a word it may have blanks in it: it stands at the
// end of what is said, or in parentheses, which it must not end.
func label(comment string) string {
	comment = cutEnd(strings.Join(strings.Fields(printable(comment)), " "), maxComment)
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

// about says what a key is wanted for, and by whom.
func about(q agent.Question) (lines []string) {
	for _, line := range []string{fingerprint(q.Fingerprint), forwarded(q.Use), purpose(q.Use), asker(q)} {
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func fingerprint(sum string) string { return cutEnd(printable(sum), maxHost) }

// forwarded says from where a request came if it is not from here. The host
// that it came from is the last one; what is between is as good as what the
// nearer ones say of it.
func forwarded(u agent.Use) string {
	switch {
	case !u.Forwarded:
		return ""
	case len(u.Via) == 0 || len(u.Via) == 1 && u.Via[0] == "":
		return "perhaps FORWARDED: the host did not prove who it is"
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

// purpose says what is to be signed.
func purpose(u agent.Use) string {
	switch u.Kind {
	case agent.UseLogin:
		return fold(loginWords(u)...)
	case agent.UseSignature:
		return fold(signatureWords(u.Namespace)...)
	case agent.UseCertificate:
		return fold(certificateWords(u)...)
	}
	return "to sign data that is neither a login nor an SSH signature"
}

func loginWords(u agent.Use) []string {
	words := []string{"to log in"}
	if u.User != "" {
		words = []string{"to log in as", word(u.User, maxUser, cutEnd)}
	}
	switch {
	case u.Host != "" && u.User != "":
		return atHost(words[0], words[1], hostWord(u.Host))
	case u.Host != "":
		return append(words, "to", hostWord(u.Host))
	case u.HostKey != "":
		return append(words, "to a host of unknown name,", "whose key is", fingerprint(u.HostKey))
	}
	return append(words, "(ssh did not say to which host)")
}

// atHost writes user@host, in two words if one does not fit in a line.
func atHost(as, user, host string) []string {
	if columns(user)+columns(host)+len("  @") > maxColumns {
		return []string{as, user + "@", host}
	}
	return []string{as, user + "@" + host}
}

// signatureWords names what git and ssh-keygen sign by what it is; a verifier
// takes nothing else from that namespace.
func signatureWords(namespace string) []string {
	switch namespace {
	case "git":
		return []string{"to sign a commit, tag or push", "(namespace git)"}
	case "file":
		return []string{"to sign a file", "(namespace file)"}
	}
	return []string{"to sign data", "of the namespace", word(namespace, maxNamespace, cutEnd)}
}

func certificateWords(u agent.Use) []string {
	words := []string{"to certify a user's key, for"}
	if u.HostCert {
		words = []string{"to certify a host's key, for"}
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
		words = append(words, word(name, maxPrincipal, cutEnd)+end)
	}
	if len(u.Principals) == 0 {
		words = append(words, "ANY name")
	}
	if u.KeyID != "" {
		words = append(words, "(key ID "+word(u.KeyID, maxKeyID, cutEnd)+")")
	}
	return words
}

// asker names the processes that ask. They choose their names themselves, so
// this is help and no proof.
func asker(q agent.Question) string {
	preposition := "for"
	if q.Use.Forwarded && len(q.Use.Via) > 0 && q.Use.Via[0] != "" {
		preposition = "over" // the one that forwards
	}
	return processes(preposition, q.Peer.Chain(), q.Peer.PID)
}

func processes(preposition string, names []string, pid int) string {
	switch {
	case pid <= 0:
		return ""
	case len(names) == 0:
		return fmt.Sprintf("%s process %d", preposition, pid)
	}
	words := []string{preposition}
	for i, name := range names {
		if i > 0 {
			words = append(words, "<")
		}
		words = append(words, word(name, maxProgram, cutEnd))
	}
	return fold(append(words, fmt.Sprintf("(process %d)", pid))...)
}
