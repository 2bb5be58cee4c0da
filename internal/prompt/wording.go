package prompt

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
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

// enterPIN asks for a PIN: of which key, for what, and for which program. It tells
// whether the last one was wrong, and what the next one may cost.
func enterPIN(p ask.AuthPrompt) Question {
	q := Question{Question: p.Question, Kind: PIN}
	left := tries(p.TriesLeft)
	lines := append([]string{fold(append([]string{"Enter PIN for"}, keyWords(p.Name, p.Comment)...)...)}, about(p.Question)...)
	if p.Retry {
		q.Error = fold(append([]string{"Wrong PIN."}, left...)...)
	} else if p.TriesLeft > 0 {
		lines = append(lines, fold(left...))
	}
	if p.Waiting > 0 {
		lines = append(lines, "The answer also serves "+number(int64(p.Waiting), "other request")+" for this key.")
	}
	q.Text = strings.Join(lines, "\n")
	return q
}

// consent asks whether a key may be used. It begins with the words of OpenSSH's
// agent, which users and askpass programs know.
func consent(p ask.ConfirmPrompt) string {
	key := keyWords(p.Name, p.Comment)
	key[len(key)-1] += "?"
	lines := []string{
		fold(append([]string{"Allow use of key"}, key...)...),
		"Key fingerprint " + cut(printable(p.Fingerprint), maxHost, beginning) + ".",
	}
	p.Fingerprint = "" // is there already
	return strings.Join(append(lines, about(p.Question)...), "\n")
}

// keyWords names a key: by its file, its comment, or both. In a file, ~ stands for
// the user's home directory.
func keyWords(file, comment string) []string {
	file, comment = printable(file), label(comment)
	if home, err := os.UserHomeDir(); err == nil && home != "/" {
		if rest, below := strings.CutPrefix(file, filepath.Clean(home)+"/"); below {
			file = "~/" + rest
		}
	}
	switch {
	case file == "" && comment == "":
		return []string{"without a name"}
	case file == "":
		return []string{comment}
	case comment == "":
		return []string{word(file, maxFile, ending)}
	}
	return []string{word(file, maxFile, ending), "(" + comment + ")"}
}

// label returns a comment. Unlike a word it may have blanks, since it stands at
// the end of a sentence, or in parentheses, which it must not close.
func label(comment string) string {
	comment = cut(strings.Join(strings.Fields(printable(comment)), " "), maxComment, beginning)
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
	if sum := cut(printable(q.Fingerprint), maxHost, beginning); sum != "" {
		lines = append(lines, sum)
	}
	verb := "Requested by"
	if q.Use.Forwarded {
		lines = append(lines, forwarded(q.Use.Via))
		if len(q.Use.Via) > 0 && q.Use.Via[0] != "" {
			verb = "Forwarded by"
		}
	}
	lines = append(lines, purpose(q.Use))
	if q.Peer.PID > 0 {
		lines = append(lines, programs(verb, q.Peer.Chain(), q.Peer.PID))
	}
	return lines
}

// forwarded tells from where a forwarded request came. The last host sent it; what
// is known about the others is only what the nearer ones say.
func forwarded(via []string) string {
	if len(via) == 0 || len(via) == 1 && via[0] == "" {
		return "Perhaps FORWARDED: the host did not prove its identity"
	}
	words := []string{"FORWARDED from", hostWord(via[len(via)-1])}
	if between := len(via) - 2; between > 0 {
		words = append(words, "via", number(int64(between), "other host"), "and", hostWord(via[0]))
	} else if between == 0 {
		words = append(words, "via", hostWord(via[0]))
	}
	return fold(words...)
}

func hostWord(name string) string {
	if name == "" {
		return "an unproven host"
	}
	return word(name, maxHost, ending)
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
		words = []string{"To log in as", word(u.User, maxUser, beginning)}
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
		return append(words, "to an unknown host with the key", cut(printable(u.HostKey), maxHost, beginning))
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
	return []string{"To sign data", "in the namespace", word(namespace, maxNamespace, beginning)}
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
		words = append(words, word(name, maxPrincipal, beginning)+end)
	}
	if len(u.Principals) == 0 {
		words = append(words, "ANY name")
	}
	if u.KeyID != "" {
		words = append(words, "(key ID "+word(u.KeyID, maxKeyID, beginning)+")")
	}
	return words
}

// programs names the programs that ask. They choose their names themselves, so
// this helps the user but proves nothing.
func programs(verb string, names []string, pid int) string {
	if len(names) == 0 {
		return fmt.Sprintf("%s pid %d", verb, pid)
	}
	words := []string{verb}
	for i, name := range names {
		if i > 0 {
			words = append(words, "→")
		}
		words = append(words, word(name, maxProgram, beginning))
	}
	return fold(append(words, fmt.Sprintf("(pid %d)", pid))...)
}

// TriesLeft tells in a sentence how many wrong PINs are left before the TPM locks
// itself. It returns "" if n is negative: that is unknown, or without limit.
func TriesLeft(n int) string { return strings.Join(tries(n), " ") }

func tries(left int) []string {
	switch {
	case left < 0:
		return nil
	case left == 0:
		return []string{"The TPM has locked itself."}
	case left == 1:
		return []string{"This is the last try", "before the TPM locks itself."}
	}
	return []string{fmt.Sprintf("%d tries left", left), "before the TPM locks itself."}
}

// LastTryText returns the question of [Prompter.LastTry] for a command that asks on a
// terminal and judges the answer by [SaysYes]. file is the key's; wrong is set if
// the last PIN was wrong.
func LastTryText(file string, wrong bool) string {
	return risk(wrong, keyWords(file, "")...) + "\n" + GoOn
}

func lastTry(p ask.AuthPrompt) string {
	return strings.Join(append([]string{risk(p.Retry, keyWords(p.Name, p.Comment)...)}, about(p.Question)...), "\n")
}

// risk tells what a last try means, and asks whether to make it with a key.
func risk(wrong bool, key ...string) string {
	first := "One more wrong PIN locks the TPM."
	if wrong {
		first = "Wrong PIN. One more locks the TPM."
	}
	return first + "\n" +
		"It then refuses the PINs of all keys for minutes or hours,\n" +
		"and those of other programs, such as disk encryption.\n" +
		fold(append(append([]string{"Try the PIN of"}, key...), "anyway?")...)
}

// notice tells about a lockout, how long it lasts, and what helps.
func notice(n ask.Notice, now time.Time) string {
	lines := []string{"The TPM is locked: there were too many wrong PINs."}
	if n.Wait > 0 {
		lines = append(lines, fold("It accepts the next PIN in", Duration(n.Wait)+",", clock(now.Add(n.Wait), now)+"."))
	}
	lines = append(lines,
		"Keys without a PIN keep working. Restarting the machine",
		"does not help. The owner of the TPM can end the lockout:",
		"tpm2_dictionarylockout --clear-lockout",
		fold(append([]string{"Key:"}, keyWords(n.Name, n.Comment)...)...),
	)
	return strings.Join(append(lines, about(n.Question)...), "\n")
}

// Duration returns d in words, in the largest unit that is precise enough. It
// rounds up, because a try that comes too early is refused.
func Duration(d time.Duration) string {
	switch seconds, minutes, hours := up(d, time.Second), up(d, time.Minute), up(d, time.Hour); {
	case seconds < 100:
		return number(seconds, "second")
	case minutes < 100:
		return number(minutes, "minute")
	case hours < 49:
		return number(hours, "hour")
	}
	return number(up(d, 24*time.Hour), "day")
}

func up(d, unit time.Duration) int64 { return int64((d + unit - 1) / unit) }

func number(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// clock returns the time of day, and the day if it is not today.
func clock(t, now time.Time) string {
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("at 15:04")
	}
	return t.Format("on January 2 at 15:04")
}
