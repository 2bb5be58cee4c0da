package pinentry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

const (
	errCancelled    = "ERR 83886179 Operation cancelled <Pinentry>\n"
	errNotConfirmed = "ERR 83886194 Not confirmed <Pinentry>\n"
	errFully        = "ERR 83886278 Fully cancelled <Pinentry>\n"
	errTimedOut     = "ERR 83886142 Timeout <Pinentry>\n"
	errNoTTY        = "ERR 83918950 Inappropriate ioctl for device <Pinentry>\n"
	errNotKnown     = "ERR 536871187 Unknown IPC command <User defined source 1>\n"
)

func TestGetPIN(t *testing.T) {
	long := strings.Repeat("0123456789", 100)
	for name, test := range map[string]struct{ answer, want string }{
		"none":          {"OK\n", ""},
		"empty data":    {"D \nOK\n", ""},
		"one":           {"D x\nOK\n", "x"},
		"32":            {"D " + long[:32] + "\nOK\n", long[:32]},
		"33":            {"D " + long[:33] + "\nOK\n", long[:33]},
		"1000 in two":   {"D " + long[:600] + "\nD " + long[600:] + "\nOK\n", long},
		"1024":          {"D " + long[:998] + "\nD " + long[:26] + "\nOK\n", long[:998] + long[:26]},
		"CR LF":         {"D 1234\r\nOK\r\n", "1234"},
		"newline":       {"D 12%0A34\nOK\n", "12\n34"},
		"lower case":    {"D 12%0a34\nOK\n", "12\n34"},
		"percent":       {"D 100%25\nOK\n", "100%"},
		"blanks":        {"D  1 2 \nOK\n", " 1 2 "},
		"utf-8":         {"D pässwörd%C3%A4\nOK\n", "pässwördä"},
		"status first":  {"S BUTTON_INFO x\n# comment\n\nS PIN_REPEATED\nD 1234\nOK done\n", "1234"},
		"comment after": {"D 12\n# comment\nD 34\nOK\n", "1234"},
	} {
		t.Run(name, func(t *testing.T) {
			pin, err := part{Answers: map[string]string{"GETPIN": test.answer}}.getPIN(t)
			if err != nil || pin == nil || string(pin) != test.want {
				t.Errorf("got %q, %v; want %q", pin, err, test.want)
			}
		})
	}
}

// TestGetPINErrors tests what is made of other answers. They bring no PIN, and
// the errors do not show one.
func TestGetPINErrors(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		want   error // nil: unusable
	}{
		"cancel":             {errCancelled, ask.ErrRefused},
		"cancel after data":  {"D secret\n" + errCancelled, ask.ErrRefused},
		"cancel, no source":  {"ERR 99\n", ask.ErrRefused},
		"cancel, gpg-agent":  {"ERR 67108963 cancelled\n", ask.ErrRefused},
		"fully cancelled":    {errFully, ask.ErrRefused},
		"not confirmed":      {errNotConfirmed, ask.ErrRefused},
		"timeout":            {errTimedOut, ask.ErrNoAnswer},
		"escaped NUL":        {"D secret%00\nOK\n", errNUL},
		"no terminal":        {errNoTTY, nil},
		"no pinentry":        {"ERR 83886166 No pinentry\n", nil},
		"locale":             {"ERR 83886246 Locale problem\n", nil},
		"not known":          {errNotKnown, nil},
		"garbage":            {"secret\n", errProtocol},
		"no number":          {"ERR secret\n", errProtocol},
		"number too large":   {"ERR 4294967296 secret\n", errProtocol},
		"half an escape":     {"D secret%0\nOK\n", errProtocol},
		"no escape":          {"D secret%zz\nOK\n", errProtocol},
		"D without a blank":  {"Dsecret\nOK\n", errProtocol},
		"END":                {"END\n", errProtocol},
		"INQUIRE":            {"INQUIRE QUALITY secret\n", errProtocol},
		"1025 octets of PIN": {"D " + strings.Repeat("x", 998) + "\nD " + strings.Repeat("x", 27) + "\nOK\n", prompt.ErrTooLong},
		"NUL bytes":          {strings.Repeat("\x00", 5000), errProtocol},
		"HTTP":               {"HTTP/1.1 400 secret\r\n\r\n", errProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			pin, err := part{Answers: map[string]string{"GETPIN": test.answer}}.getPIN(t)
			if pin != nil || err == nil || !errors.Is(err, test.want) && test.want != errNUL && test.want != nil {
				t.Errorf("got %q, %v; want %v", pin, err, test.want)
			}
			if isUnusable(err) != (test.want == nil || test.want == errProtocol || test.want == prompt.ErrTooLong) {
				t.Errorf("unusable is %t: %v", isUnusable(err), err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") && !strings.Contains(test.answer, "ERR") {
				t.Errorf("the error has the PIN in it: %v", err)
			}
		})
	}
}

// errNUL stands for the error of prompt.Line.
var errNUL = errors.New("NUL")

// Another way may be tried if the program is not a pinentry, or breaks off.
func TestUnusable(t *testing.T) {
	for name, p := range map[string]part{
		"ends at once":          {Do: "exit", At: "START"},
		"ends in the middle":    {Do: "exit", At: "SETDESC"},
		"ends when asked":       {Do: "exit", At: "GETPIN"},
		"refuses":               {Greeting: "ERR 83886166 no\n"},
		"closes at once":        {Do: "close", At: "START"},
		"closes in the middle":  {Do: "close", At: "OPTION"},
		"closes when asked":     {Do: "close", At: "GETPIN"},
		"shows no text":         {Answers: map[string]string{"SETDESC": errNotKnown}},
		"closes and stays":      {Do: "close", At: "GETPIN", IgnoreTERM: true},
		"ends within an answer": {Do: "half", At: "GETPIN"},
	} {
		t.Run(name, func(t *testing.T) {
			pin, err := p.getPIN(t)
			if pin != nil || !isUnusable(err) {
				t.Fatalf("got %q, %v", pin, err)
			}
			if p.Do == "exit" && !strings.Contains(err.Error(), "ended without an answer, exit status 3: cannot open display: [31m:0") {
				t.Errorf("does not say why: %v", err)
			}
		})
	}
	for _, path := range []string{t.TempDir() + "/gone", t.TempDir(), "/bin/true"} {
		w := pinentry{Settings: prompt.Settings{Timeout: time.Hour, Grace: time.Minute}}
		if _, err := w.run(t.Context(), path, nil, prompt.Question{}, nil); !isUnusable(err) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

// A program that says too much, or nonsense, is ended, even if it ignores
// SIGTERM.
func TestProtocolErrors(t *testing.T) {
	for name, p := range map[string]part{
		"greets otherwise":     {Greeting: "220 mail.example.org ESMTP\x1b[2J\n"},
		"endless greeting":     {Do: "endless", At: "START"},
		"endless line":         {Do: "endless", At: "GETPIN"},
		"endless comments":     {Do: "comments", At: "GETPIN"},
		"endless data":         {Do: "data", At: "GETPIN"},
		"data for an option":   {Do: "data", At: "OPTION"},
		"data for a text":      {Answers: map[string]string{"SETDESC": "D x\nOK\n"}},
		"a line of 1 MiB":      {Do: "long line", At: "GETPIN"},
		"a greeting of 1 MiB":  {Do: "long line", At: "START"},
		"a flavour of 2000":    {Answers: map[string]string{"GETINFO": "D " + strings.Repeat("x", 990) + "\nD " + strings.Repeat("x", 990) + "\nOK\n"}},
		"garbage for a text":   {Answers: map[string]string{"SETDESC": "yes\n"}},
		"garbage for a flavor": {Answers: map[string]string{"GETINFO": "\x00\xff\n"}},
	} {
		for _, stubborn := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %v", name, stubborn), func(t *testing.T) {
				p.IgnoreTERM = stubborn
				pin, err := p.getPIN(t)
				if pin != nil || !errors.Is(err, errProtocol) || !isUnusable(err) {
					t.Errorf("got %q, %v", pin, err)
				}
				if err != nil && strings.ContainsAny(err.Error(), "\x1b\x00\n") {
					t.Errorf("the error is not harmless: %q", err)
				}
			})
		}
	}
}

// alive returns a FIFO for the fake and its children to hold, and a function that
// waits until all of them are gone.
func alive(t *testing.T) (path string, gone func()) {
	t.Helper()
	path = t.TempDir() + "/alive"
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	// A writer of our own, so that there is no end of file before the fake came.
	writer, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return path, func() {
		t.Helper()
		defer reader.Close()
		writer.Close()
		if _, err := io.ReadAll(reader); err != nil {
			t.Error(err)
		}
	}
}

// The program and everything that it started end with the context.
func TestEndsWithContext(t *testing.T) {
	for name, p := range map[string]part{
		"before the greeting": {Do: "hang", At: "START"},
		"while it is set up":  {Do: "hang", At: "SETDESC"},
		"while it asks":       {Do: "hang", At: "GETPIN"},
		"no SIGTERM":          {Do: "hang", At: "GETPIN", IgnoreTERM: true},
		"with its children":   {Do: "children", At: "GETPIN"},
		"all ignore SIGTERM":  {Do: "children", At: "GETPIN", IgnoreTERM: true},
	} {
		t.Run(name, func(t *testing.T) {
			var gone func()
			p.Alive, gone = alive(t)
			p.Log = t.TempDir() + "/log"
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			reason := errors.New("the client hung up")
			done := make(chan error, 1)
			go func() {
				_, err := p.ask(t, ctx, prompt.Question{Kind: prompt.PIN})
				done <- err
			}()
			waitForHang(t, p)
			cancel(reason)
			if err := <-done; !errors.Is(err, reason) {
				t.Errorf("got %v", err)
			}
			gone()
		})
	}
}

// waitForHang waits until the fake says that it hangs.
func waitForHang(t *testing.T, p part) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if text, _ := os.ReadFile(p.Log); strings.HasSuffix(string(text), "hangs\n") {
			return
		}
	}
	t.Fatal("it does not hang")
}

func TestContextAlreadyEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	log := t.TempDir() + "/log"
	if _, err := (part{Log: log}).ask(t, ctx, prompt.Question{Kind: prompt.PIN}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(log); err == nil {
		t.Error("the program was started")
	}
}

// A program that ignores SETTIMEOUT is ended.
func TestTimeout(t *testing.T) {
	p := part{Do: "hang", At: "GETPIN", timeout: 50 * time.Millisecond}
	if pin, err := p.getPIN(t); pin != nil || !errors.Is(err, ask.ErrNoAnswer) {
		t.Errorf("got %q, %v", pin, err)
	}
}

// An answer counts even if the program does not exit afterwards.
func TestStaysAfterTheAnswer(t *testing.T) {
	p := part{Answers: map[string]string{"GETPIN": "D 1234\nOK\n"}, Do: "hang", At: "BYE", IgnoreTERM: true}
	if pin, err := p.getPIN(t); err != nil || string(pin) != "1234" {
		t.Errorf("got %q, %v", pin, err)
	}
}

// TestCommands tests what the program is told for each kind of question.
func TestCommands(t *testing.T) {
	for name, test := range map[string]struct {
		flavour string
		q       prompt.Question
		want    []string
	}{
		"PIN": {"gtk2", prompt.Question{Kind: prompt.PIN, Text: "Enter PIN for 100%\nof id_ecdsa", Error: "Wrong PIN."}, []string{
			"SETPROMPT PIN:", "SETERROR Wrong PIN.", "SETDESC Enter PIN for 100%25%0Aof id_ecdsa", "GETPIN",
		}},
		"last try": {"gtk2", prompt.Question{Kind: prompt.LastTry, Text: "Try the PIN?"}, []string{
			"SETPROMPT yes:", "SETOK _Go on", "SETCANCEL _Stop", "SETDESC Try the PIN?%0A%0AType yes to go on.", "GETPIN",
		}},
		"consent": {"gtk2", prompt.Question{Kind: prompt.Consent, Text: "Allow?"}, []string{
			"SETOK _Allow once", "SETCANCEL _Deny", "SETNOTOK 15 _minutes", "SETDESC Allow?", "CONFIRM",
		}},
		"consent with two buttons": {"gnome3", prompt.Question{Kind: prompt.Consent, Text: "Allow?"}, []string{
			"SETOK _Allow once", "SETCANCEL _Deny", "SETDESC Allow?", "CONFIRM",
		}},
		"notice": {"gtk2", prompt.Question{Kind: prompt.Notice, Text: "Locked."}, []string{"SETDESC Locked.", "CONFIRM --one-button"}},
		// FLTK has a meaning for at signs.
		"FLTK": {"fltk", prompt.Question{Kind: prompt.PIN, Text: "alice@example.org"}, []string{
			"SETPROMPT PIN:", "SETDESC alice@@example.org", "GETPIN",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := part{Log: t.TempDir() + "/log", Answers: map[string]string{"GETINFO": "D " + test.flavour + "\nOK\n", "GETPIN": "D yes\nOK\n"}}
			if _, err := p.ask(t, t.Context(), test.q); err != nil {
				t.Fatal(err)
			}
			want := append([]string{"GETINFO flavor", "OPTION no-grab", "SETTIMEOUT 3600", "SETTITLE tpm-agent"}, append(test.want, "BYE")...)
			if got := commands(t, p.Log); !slices.Equal(got, want) {
				t.Errorf("was told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// A program need not know more than how to show the question.
func TestOldProgram(t *testing.T) {
	p := part{Answers: map[string]string{
		"GETINFO": errNotKnown, "OPTION": errNotKnown, "SETTIMEOUT": errNotKnown, "SETTITLE": errNotKnown, "SETPROMPT": errNotKnown, "GETPIN": "D 1234\nOK\n",
	}}
	if pin, err := p.getPIN(t); err != nil || string(pin) != "1234" {
		t.Errorf("got %q, %v", pin, err)
	}
}

// Only a typed yes is a yes: return presses the first button.
func TestLastTry(t *testing.T) {
	for answer, yes := range map[string]bool{
		"D yes\nOK\n": true, "D YES\nOK\n": true, "OK\n": false, "D 1234\nOK\n": false, "D yes1\nOK\n": false, errCancelled: false,
	} {
		p := part{Answers: map[string]string{"GETPIN": answer}}
		_, err := p.ask(t, t.Context(), prompt.Question{Kind: prompt.LastTry})
		if yes && err != nil || !yes && !errors.Is(err, ask.ErrRefused) {
			t.Errorf("%q: got %v", answer, err)
		}
	}
}

func TestConsent(t *testing.T) {
	for name, test := range map[string]struct {
		flavour string
		answer  string
		want    ask.Grant
		err     error // nil without a grant: unusable
	}{
		"ok":                     {"gtk2", "OK\n", ask.GrantOnce, nil},
		"middle":                 {"gtk2", errNotConfirmed, ask.GrantMinutes, nil},
		"cancel":                 {"gtk2", errCancelled, ask.GrantNo, ask.ErrRefused},
		"fully":                  {"gtk2", errFully, ask.GrantNo, ask.ErrRefused},
		"timeout":                {"gtk2", errTimedOut, ask.GrantNo, ask.ErrNoAnswer},
		"cannot ask":             {"gtk2", errNoTTY, ask.GrantNo, nil},
		"data":                   {"gtk2", "D yes\nOK\n", ask.GrantNo, errProtocol},
		"unknown flavour, ok":    {"", "OK\n", ask.GrantOnce, nil},
		"unknown flavour, no":    {"", errNotConfirmed, ask.GrantNo, ask.ErrRefused},
		"two buttons, no":        {"gnome3", errNotConfirmed, ask.GrantNo, ask.ErrRefused},
		"takes Escape for a yes": {"fltk", "OK\n", ask.GrantNo, nil},
		"does not know SETNOTOK": {"qt", errNotConfirmed, ask.GrantNo, ask.ErrRefused},
		"finds no display":       {"gnome3:curses", "OK\n", ask.GrantNo, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := part{Answers: map[string]string{"CONFIRM": test.answer, "GETINFO": "D " + test.flavour + "\nOK\n"}}
			if test.flavour == "qt" {
				p.Answers["SETNOTOK"] = errNotKnown
			}
			got, err := p.ask(t, t.Context(), prompt.Question{Kind: prompt.Consent})
			switch {
			case got.Grant != test.want, test.want != ask.GrantNo && err != nil:
				t.Errorf("got %v, %v", got.Grant, err)
			case test.want == ask.GrantNo && test.err == nil && !isUnusable(err), !errors.Is(err, test.err) && test.err != nil:
				t.Errorf("got %v; want %v", err, test.err)
			}
		})
	}
}

// The button for more than one time says how long that is.
func TestGrantTime(t *testing.T) {
	if ask.GrantTime != 15*time.Minute {
		t.Errorf("consent holds for %v, and the button says 15 minutes", ask.GrantTime)
	}
}

// pinentry-tty says cancelled where it has no terminal. That is not the user's no.
func TestTTYWithoutTerminal(t *testing.T) {
	p := part{Answers: map[string]string{"GETINFO": "D tty\nOK\n", "GETPIN": errCancelled}}
	if pin, err := p.getPIN(t); pin != nil || !isUnusable(err) || errors.Is(err, ask.ErrRefused) {
		t.Errorf("got %q, %v", pin, err)
	}
}
