package prompt

import (
	"fmt"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
)

// TriesLeft says how many wrong PINs there may be until the TPM locks itself, in
// a sentence; nothing if n is -1, for where that is not known or not counted.
func TriesLeft(n int) string { return strings.Join(tries(n), " ") }

// LastTry asks whether a PIN is to be tried that locks the TPM if it is wrong, in
// the words of [Prompter.LastTry], for who asks on a terminal by himself. file is
// the key's, and wrong says that so was the PIN before. [SaysYes] judges the answer.
func LastTry(file string, wrong bool) string {
	lines := append(risk(wrong), fold("Try the PIN of", word(shortFile(file), maxFile, cutBegin), "all the same?"), goOn)
	return strings.Join(lines, "\n")
}

// goOn is the last line of a question on a terminal to which only yes is a yes.
const goOn = "Type yes to go on, anything else to stop: "

// risk is what a last try means.
func risk(wrong bool) []string {
	begin := "One more wrong PIN locks the TPM."
	if wrong {
		begin = "Wrong PIN. One more locks the TPM."
	}
	return []string{
		begin,
		"It then takes no PIN for minutes or hours, of any key, nor",
		"from other programs: unlocking a disk by PIN, for instance.",
	}
}

// lastTry asks whether to risk a lockout.
func lastTry(p agent.AuthPrompt) string {
	key := fold(append([]string{"Try the PIN of"}, append(keyWords(p.Name, p.Comment), "all the same?")...)...)
	return strings.Join(append(append(risk(p.Retry), key), about(p.Question)...), "\n")
}

// notice tells of a lockout. No answer is wanted.
func notice(n agent.Notice) string { return noticeAt(n, time.Now()) }

func noticeAt(n agent.Notice, now time.Time) string {
	lines := append(locked(n.Wait, now), fold(append([]string{"Key:"}, keyWords(n.Name, n.Comment)...)...))
	return strings.Join(append(lines, about(n.Question)...), "\n")
}

// locked tells of a lockout, for how long it is, and the ways out of it.
func locked(wait time.Duration, now time.Time) []string {
	lines := []string{"The TPM is locked: there were too many wrong PINs."}
	if wait > 0 {
		lines = append(lines, fold("It takes the next one in", Duration(wait)+",", clock(now.Add(wait), now)+"."))
	}
	return append(lines,
		"Keys without a PIN go on working. Restarting the machine",
		"does not help; who has the TPM's lockout password can end",
		"it at once: tpm2_dictionarylockout --clear-lockout",
	)
}

// Duration is d in words, in the largest unit that leaves it some precision, and
// rounded up: what is tried too early is refused.
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

// clock is a time of day, and the day if it is not today.
func clock(t, now time.Time) string {
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("at 15:04")
	}
	return t.Format("on January 2 at 15:04")
}

// tries says how often one may still be wrong.
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
