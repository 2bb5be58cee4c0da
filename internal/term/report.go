// Package term talks to the user of a command: errors with hints, questions, and
// the words that several commands share. Its rules:
//
//   - The result of a command goes to stdout, so it can be piped. Everything else
//     goes to stderr.
//   - An error is one line, `tpm-agent: what failed: why`, in lower case and
//     without a full stop. It names the file or device. If there is a fix, a second
//     line begins with `hint:` and tells the user what to type or do.
//   - Exit status 0 means success, 1 a failure, 2 an invalid command line, 3 a key
//     type or size that the TPM or tpm-agent does not support, and 128+n a signal.
//     `serve -- CMD` ends with CMD's own status.
//   - A bad option is an error; no default replaces it. An unsupported option or
//     type is refused by name.
//   - Texts for the user say PIN, not auth value; key file, not blob; storage key,
//     not parent or SRK. Only inspect shows the TPM's terms.
//   - A key of the software TPM is marked as unprotected wherever it is shown.
//   - Text from outside (file names, comments) is shown without control
//     characters.
package term

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/tpm-agent/tpm-agent/internal/privkey"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/socket"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// usageError is the error for an invalid command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Usage returns an error about the command line.
func Usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// A StatusError ends the program with the status of a command it ran, silently.
type StatusError int

func (e StatusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// hintError is an error with a hint that was added where it occurred.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// Hint adds a hint to err: what the user can type or do.
func Hint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// NotSaid returns the error of a command that did its work but could not print its
// message. The format says what it did. NotSaid returns nil if err is nil.
func NotSaid(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s; but the message could not be printed: %w", fmt.Sprintf(format, args...), err)
}

// Exclusive returns an error if more than one flag of a group is given. A group is a
// list of flags, separated by spaces.
func Exclusive(given func(flag string) bool, groups ...string) error {
	for _, group := range groups {
		var both []string
		for name := range strings.FieldsSeq(group) {
			if given(name) {
				both = append(both, "--"+name)
			}
		}
		if len(both) > 1 {
			return Usage("%s cannot be used together", strings.Join(both, " and "))
		}
	}
	return nil
}

// Report prints err by the rules above, and returns the exit status. command is the
// command line up to the flags, such as "tpm-agent keygen".
func Report(stderr io.Writer, command string, err error) int {
	var status StatusError
	switch {
	case errors.As(err, &status):
		return int(status)
	case err == nil:
		return 0
	}
	fmt.Fprintf(stderr, "tpm-agent: %s\n", OneLine(err.Error()))
	var wrong *usageError
	isUsage := errors.As(err, &wrong)
	hints := hints(err)
	if isUsage && len(hints) == 0 {
		hints = []string{"see " + command + " --help"}
	}
	for _, hint := range hints {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
	var interrupted *interruptedError
	var key *privkey.UnsupportedError
	var tpm *tpmkey.UnsupportedError
	switch {
	case isUsage:
		return 2
	case errors.As(err, &interrupted):
		return 128 + int(interrupted.signal)
	case errors.As(err, &key), errors.As(err, &tpm):
		return 3
	}
	return 1
}

// hints returns the hints for err. A specific hint replaces a general one.
func hints(err error) []string {
	var own *hintError
	if errors.As(err, &own) {
		return []string{own.hint}
	}
	var key *privkey.UnsupportedError
	if errors.As(err, &key) {
		return key.Ways
	}
	for _, find := range []func(error) string{tpmHint, keyHint, fileHint} {
		if hint := find(err); hint != "" {
			return []string{hint}
		}
	}
	return nil
}

// tpmHint returns the hint for a TPM that cannot be reached, or "".
func tpmHint(err error) string {
	var denied *tcti.PermissionError
	switch {
	case errors.As(err, &denied):
		return denied.Advice()
	case errors.Is(err, tcti.ErrTPM12):
		return "a TPM 1.2 cannot be used; some machines can switch to TPM 2.0 (\"fTPM\", \"PTT\") in the firmware's setup"
	case errors.Is(err, tcti.ErrBusy):
		return "another program holds the TPM: use --tpm device:/dev/tpmrm0, which programs can share, or stop that program"
	case errors.Is(err, tcti.ErrNoChip):
		return "turn the TPM on in the firmware's setup (TPM, PTT, fTPM, Security Device). To try tpm-agent without a TPM: --tpm software (its keys are not protected)"
	case errors.Is(err, tcti.ErrNoTPM):
		return "choose the TPM with --tpm or TPM_AGENT_TPM; the default is /dev/tpmrm0"
	}
	return ""
}

// keyHint returns the hint for an error of the TPM about a key, or "".
func keyHint(err error) string {
	var (
		locked interface {
			error
			LockedOut() time.Duration
		}
		wrong interface {
			error
			TriesLeft() (int, bool)
		}
		unsupported *tpmkey.UnsupportedError
		state       *tpmkey.PCRError
	)
	switch {
	case errors.As(err, &state):
		return PCRHint(state)
	case errors.As(err, &locked) && locked.LockedOut() > 0:
		return fmt.Sprintf("wait %s; keys without a PIN keep working", prompt.Duration(locked.LockedOut()))
	case errors.As(err, &locked):
		return "keys without a PIN keep working; the TPM takes PINs again after a while"
	case errors.As(err, &wrong) && known(wrong.TriesLeft()):
		return "every wrong PIN counts towards the TPM's lockout, for any key"
	case errors.As(err, &unsupported) && unsupported.Why == "":
		return "tpm-agent keygen --list shows what this TPM can make"
	case errors.Is(err, tpmkey.ErrOwnerAuth):
		return "make a storage key at 0x81000001; tpm-agent then uses it and needs no password: tpm2_createprimary -G ecc -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt' -P PASSWORD -c srk.ctx && tpm2_evictcontrol -P PASSWORD -c srk.ctx 0x81000001"
	case errors.Is(err, tpmkey.ErrDamaged):
		return "this is the right TPM, but the key file is damaged: restore the file from a backup"
	case errors.Is(err, tpmkey.ErrNoParent):
		return "restore the storage key if you have it (tpm2_evictcontrol); otherwise make a new key with tpm-agent keygen, and replace the old public key on your servers"
	case errors.Is(err, tpmkey.ErrWrongTPM):
		return "this TPM cannot use the key: make a new one with tpm-agent keygen, and replace the old public key on your servers"
	case errors.Is(err, keyfile.ErrLegacy), errors.Is(err, keyfile.ErrSealed), errors.Is(err, keyfile.ErrNoKey):
		return "tpm-agent reads TPM 2.0 key files: PEM with a TSS2 PRIVATE KEY block"
	}
	return ""
}

// PCRHint returns the hint for a key whose PCRs do not match.
func PCRHint(e *tpmkey.PCRError) string {
	if e.Signed {
		return fmt.Sprintf("the PCR values (%s) are not the signed ones: the owner of the policy's key must sign a policy for the current values", PCRMeanings(e.PCRs))
	}
	return fmt.Sprintf("the PCR values (%s) differ from when the key was made, for example after an update. The key works again only if you undo that and restart the machine. Otherwise log in another way, make a new key with tpm-agent keygen --pcr, and replace the old public key on your servers",
		PCRMeanings(e.PCRs))
}

// fileHint returns the hint for an error of a private key file, the file system or
// the socket, or "".
func fileHint(err error) string {
	var live *socket.InUseError
	var path *fs.PathError
	switch {
	case errors.Is(err, privkey.ErrPassphrase):
		return "nothing was changed; give the passphrase with -P PASSPHRASE, or without -P you are asked for it"
	case errors.Is(err, privkey.ErrPublic):
		return "give the private key file, which has no .pub in its name"
	case errors.As(err, &path) && path.Path == os.Stdout.Name():
		return "" // standard output is not a file that the user can fix here
	case errors.As(err, &live):
		return "use it (eval \"$(tpm-agent env)\"), or choose a different path with --socket PATH"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "nothing was saved: free some space and try again"
	case errors.Is(err, syscall.EROFS):
		return "the file system is mounted read-only: choose a different directory"
	case errors.Is(err, fs.ErrPermission) && errors.As(err, &path):
		return "check the permissions: ls -ld " + Quote(filepath.Dir(path.Path))
	}
	return ""
}

func known(_ int, known bool) bool { return known }

// NotProtected marks keys of the software TPM.
const NotProtected = "not protected: software TPM"

// Plain removes characters that do not print: control characters, which can control
// a terminal, and those that change the direction of writing.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// OneLine joins the lines of an error into one, and removes what does not print.
func OneLine(s string) string {
	return Plain(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}

// JSON prints v as data for programs.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Duration writes a duration that the user chose: in seconds below two minutes, and
// in hours and minutes above. For waiting times use prompt.Duration, which rounds
// up.
func Duration(d time.Duration) string {
	minutes := int(d.Round(time.Minute) / time.Minute)
	hours := counted(minutes/60, "hour")
	switch {
	case d < 2*time.Minute:
		return counted(int(d.Round(time.Second)/time.Second), "second")
	case minutes < 120:
		return counted(minutes, "minute")
	case minutes%60 == 0:
		return hours
	}
	return hours + " " + counted(minutes%60, "minute")
}

func counted(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// ParseLifetime reads a time as OpenSSH writes it (sshd_config(5), TIME
// FORMATS): whole numbers, each with one of the units s, m, h, d and w, in
// either case; one without a unit counts seconds. 0 is for ever. The longest is
// what a lifetime constraint can say: 2^32-1 seconds (RFC 9987, section 5.2.7.1).
func ParseLifetime(s string) (time.Duration, error) {
	bad := func(why string) (time.Duration, error) {
		return 0, fmt.Errorf("%q is not a time: %s", Plain(s), why)
	}
	if s == "" {
		return bad("it is empty")
	}
	var total uint64
	seconds := false // were given already
	for rest := s; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseUint(rest[:digits], 10, 32)
		unit, long := uint64(1), digits
		if digits < len(rest) {
			long++
			unit = map[byte]uint64{'s': 1, 'm': 60, 'h': 3600, 'd': 24 * 3600, 'w': 7 * 24 * 3600}[rest[digits]|0x20]
		}
		switch total += n * unit; {
		case digits == 0 || unit == 0:
			return bad("write it as 90, 10m, 1h30m or 2w")
		case err != nil || total > math.MaxUint32:
			return bad("the longest is 4294967295 seconds, which is 136 years")
		case unit == 1 && seconds:
			return bad("it has seconds twice")
		}
		seconds = seconds || unit == 1
		rest = rest[long:]
	}
	return time.Duration(total) * time.Second, nil
}

// ParsePINLife reads how long a PIN is remembered: a time, "session", which means
// until something makes the agent forget, or, if off is set, "off".
func ParsePINLife(s string, off bool) (time.Duration, error) {
	switch {
	case s == "session":
		return restrict.Forever, nil
	case s == "off" && off:
		return 0, nil
	}
	life, err := ParseLifetime(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w, or session", err)
	case life == 0:
		return 0, fmt.Errorf("a PIN cannot be remembered for %s: leave the option out", Plain(s))
	}
	return life, nil
}

// PINLife writes how long a PIN is remembered.
func PINLife(life time.Duration) string {
	switch life {
	case restrict.Forever:
		return "until it is told to forget"
	case 0:
		return "not at all"
	}
	return "for " + Duration(life)
}

// PCRs names PCRs: "PCR 7" or "PCRs 7, 11".
func PCRs(list []int) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	if len(list) == 1 {
		return "PCR " + words[0]
	}
	return "PCRs " + strings.Join(words, ", ")
}

// PCRMeanings lists what is recorded in PCRs: "7: secure boot and its keys" (TCG PC
// Client Platform Firmware Profile, 3.3.4; the Linux TPM PCR Registry).
func PCRMeanings(list []int) string {
	meanings := map[int]string{
		0: "firmware", 1: "firmware settings", 2: "drivers from cards", 3: "settings of cards",
		4: "boot loader", 5: "partition table and boot loader settings", 6: "the machine's maker",
		7: "secure boot and its keys", 8: "commands of GRUB", 9: "files that GRUB or the kernel read",
		10: "files measured by the kernel (IMA)", 11: "kernel, as systemd-stub records it",
		12: "kernel command line, as systemd-stub records it", 13: "system extensions", 14: "keys of shim (MOK)",
		15: "machine and disks, as systemd records them", 16: "for debugging", 23: "for applications",
	}
	var words []string
	for _, n := range list {
		m := meanings[n]
		if n >= 17 && n <= 22 {
			m = "late launch (DRTM)"
		}
		if m != "" {
			words = append(words, fmt.Sprintf("%d: %s", n, m))
		}
	}
	return strings.Join(words, "; ")
}
