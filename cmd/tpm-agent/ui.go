package main

// The rules for what a user reads on the terminal.
//
//   - What was asked for goes to stdout, and nothing else does: it can be piped.
//     Everything else goes to stderr.
//   - An error is one line, `tpm-agent: what failed: why`: lower case, no full
//     stop, the file or device named. Where there is a fix, a line that begins
//     with `hint:` says what to type or to do.
//   - Exit status 0 means that the command did what it says. 1 is a failure, 2 a
//     command line that makes no sense, 3 a key or a size that the TPM or we do
//     not take, 128+n a signal. `serve -- CMD` ends with CMD's own status.
//   - A bad option is an error, never a default. What is not supported is
//     refused by name.
//   - The user reads PIN, not auth value; key file, not blob; storage key, not
//     parent or SRK, except where he looks inside (inspect).
//   - A key of the software TPM is said to be unprotected wherever it is shown.
//   - What comes from outside (file names, comments) is shown without control
//     characters.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/tpm-agent/tpm-agent/internal/privkey"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/socket"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// notProtected marks keys of the software TPM.
const notProtected = "not protected: software TPM"

// The exit statuses.
const (
	exitDone    = 0
	exitFailure = 1
	exitUsage   = 2
	// exitUnsupported is for what is right but cannot be had.
	exitUnsupported = 3
	exitSignal      = 128 // plus the signal's number
)

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// statusError ends the program with the status of a command it ran, silently.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// hintError is an error whose fix is known where it is made.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// report prints err by the rules, and returns the exit status. command is the
// command line up to the flags, such as "tpm-agent keygen".
func report(stderr io.Writer, command string, err error) int {
	var status statusError
	if errors.As(err, &status) {
		return int(status)
	}
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(stderr, "tpm-agent: %s\n", oneLine(err.Error()))
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
	switch {
	case isUsage:
		return exitUsage
	case errors.As(err, &interrupted):
		return exitSignal + int(interrupted.signal)
	case unsupported(err):
		return exitUnsupported
	}
	return exitFailure
}

// unsupported says whether err is the refusal of something for what it is.
func unsupported(err error) bool {
	var key *privkey.UnsupportedError
	var tpm *tpmkey.UnsupportedError
	var kind *notInTPMError
	return errors.As(err, &key) || errors.As(err, &tpm) || errors.As(err, &kind)
}

// hints says what can be done about err: what is known of the TPM, of keys and
// of files, from the particular to the general.
func hints(err error) []string {
	var own *hintError
	if errors.As(err, &own) {
		return []string{own.hint}
	}
	var key *privkey.UnsupportedError
	if errors.As(err, &key) {
		return key.Ways
	}
	for _, find := range []func(error) string{tpmHint, keyHint, importHint, fileHint} {
		if hint := find(err); hint != "" {
			return []string{hint}
		}
	}
	return nil
}

// tpmHint is for a TPM that cannot be reached.
func tpmHint(err error) string {
	var denied *tcti.PermissionError
	switch {
	case errors.As(err, &denied):
		return denied.Advice()
	case errors.Is(err, tcti.ErrTPM12):
		return "a TPM 1.2 cannot be used; some machines can switch to TPM 2.0 (\"fTPM\", \"PTT\") in the firmware's setup"
	case errors.Is(err, tcti.ErrBusy):
		return "another program holds the TPM: use --tpm device:/dev/tpmrm0, which many can use at once, or end it"
	case errors.Is(err, tcti.ErrNoChip):
		return "is it turned on in the firmware's setup (TPM, PTT, fTPM, Security Device)? To try things out without one: --tpm software (its keys are not protected)"
	case errors.Is(err, tcti.ErrNoTPM):
		return "--tpm or TPM_AGENT_TPM says which TPM is used; without them it is /dev/tpmrm0"
	}
	return ""
}

// keyHint is for what the TPM says about a key.
func keyHint(err error) string {
	var (
		locked      *tpmkey.LockoutError
		wrong       *tpmkey.AuthError
		unsupported *tpmkey.UnsupportedError
		state       *tpmkey.PCRError
	)
	switch {
	case errors.As(err, &state):
		return pcrHint(state)
	case errors.As(err, &locked) && locked.Wait > 0:
		return fmt.Sprintf("wait %s; keys without a PIN go on working", prompt.Duration(locked.Wait))
	case errors.As(err, &locked):
		return "keys without a PIN go on working; the TPM takes PINs again after a while"
	case errors.As(err, &wrong) && wrong.Left >= 0:
		return "every wrong PIN counts towards the TPM's lockout, whichever key it was for"
	case errors.As(err, &unsupported) && unsupported.Why == "":
		return "tpm-agent keygen --list shows what this TPM can make"
	case errors.Is(err, tpmkey.ErrOwnerAuth):
		return "a storage key at 0x81000001 needs no password, and takes the place of the owner's: tpm2_createprimary -G ecc -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt' -P PASSWORD -c srk.ctx && tpm2_evictcontrol -P PASSWORD -c srk.ctx 0x81000001"
	case errors.Is(err, tpmkey.ErrDamaged):
		return "this is the right TPM: take the key file from a backup"
	case errors.Is(err, tpmkey.ErrNoParent):
		return "who took the storage key away can put it back there (tpm2_evictcontrol); else make a new key with tpm-agent keygen, and put it where the old one's public key is"
	case errors.Is(err, tpmkey.ErrWrongTPM):
		return "the key cannot be used here any more: make a new one with tpm-agent keygen, and put it where the old one's public key is"
	case errors.Is(err, keyfile.ErrLegacy), errors.Is(err, keyfile.ErrSealed), errors.Is(err, keyfile.ErrNoKey):
		return "tpm-agent reads TPM 2.0 key files: PEM with a TSS2 PRIVATE KEY block"
	}
	return ""
}

// importHint is for private keys that are imported.
func importHint(err error) string {
	switch {
	case errors.Is(err, privkey.ErrPassphrase):
		return "nothing was changed; -P PASSPHRASE gives it, else it is asked for"
	case errors.Is(err, privkey.ErrPublic):
		return "give the private key, which has no .pub in its name"
	}
	return ""
}

// fileHint is for what the file system and the socket say.
func fileHint(err error) string {
	var live *socket.InUseError
	var path *fs.PathError
	switch {
	case errors.As(err, &path) && path.Path == os.Stdout.Name():
		return "" // whatever it is, it is not the command's
	case errors.As(err, &live):
		return "use it (eval \"$(tpm-agent env)\"), or choose another place with --socket PATH"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "nothing was kept: make room and try again"
	case errors.Is(err, syscall.EROFS):
		return "the file system is mounted read-only: choose another place"
	case errors.Is(err, fs.ErrPermission) && errors.As(err, &path):
		return "look who may do that: ls -ld " + shQuote(filepath.Dir(path.Path))
	}
	return ""
}

// duration says a time that was chosen, to the second below two minutes and to
// the minute above. For how long to wait there is prompt.Duration, which rounds
// up.
func duration(d time.Duration) string {
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

// oneLine makes an error one line.
func oneLine(s string) string {
	return plain(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}

// plain drops what does not print: control characters, which steer terminals,
// and those that turn the direction of writing.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// notSaid is the error of a message about something that is done all the same.
func notSaid(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s; but that could not be said: %w", fmt.Sprintf(format, args...), err)
}

// checkedWriter remembers that writing failed, for who writes and does not look.
type checkedWriter struct {
	to  io.Writer
	err error
}

func (w *checkedWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

// writeJSON prints v as data for programs.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
