package prompt

import (
	"fmt"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt/way"
)

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

// LastTry returns the question of [Prompter.LastTry] for a command that asks on a
// terminal and judges the answer by [SaysYes]. file is the key's; wrong is set if
// the last PIN was wrong.
func LastTry(file string, wrong bool) string {
	return risk(wrong, word(shortFile(file), maxFile, cutBegin)) + "\n" + way.GoOn
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
