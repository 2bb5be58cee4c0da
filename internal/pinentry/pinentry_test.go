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

	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
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

// What the fake says is an error, of a kind, and brings no PIN; the PIN is not
// in the error either.
func TestGetPINErrors(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		want   error
	}{
		"cancel":             {errCancelled, ErrCancelled},
		"cancel after data":  {"D secret\n" + errCancelled, ErrCancelled},
		"cancel, no source":  {"ERR 99\n", ErrCancelled},
		"cancel, gpg-agent":  {"ERR 67108963 cancelled\n", ErrCancelled},
		"fully cancelled":    {errFully, ErrCancelled},
		"not confirmed":      {errNotConfirmed, ErrCancelled},
		"timeout":            {errTimedOut, ErrTimeout},
		"no terminal":        {errNoTTY, ErrUnusable},
		"no pinentry":        {"ERR 83886166 No pinentry\n", ErrUnusable},
		"locale":             {"ERR 83886246 Locale problem\n", ErrUnusable},
		"not known":          {errNotKnown, ErrUnusable},
		"garbage":            {"secret\n", ErrProtocol},
		"no number":          {"ERR secret\n", ErrProtocol},
		"number too large":   {"ERR 4294967296 secret\n", ErrProtocol},
		"NUL":                {"D secret\x00\nOK\n", ErrProtocol},
		"escaped NUL":        {"D secret%00\nOK\n", ErrProtocol},
		"half an escape":     {"D secret%0\nOK\n", ErrProtocol},
		"no escape":          {"D secret%zz\nOK\n", ErrProtocol},
		"D without a blank":  {"Dsecret\nOK\n", ErrProtocol},
		"END":                {"END\n", ErrProtocol},
		"1001 octets":        {"D " + strings.Repeat("x", 999) + "\nOK\n", ErrProtocol},
		"1025 octets of PIN": {"D " + strings.Repeat("x", 998) + "\nD " + strings.Repeat("x", 27) + "\nOK\n", ErrProtocol},
		"NUL bytes":          {strings.Repeat("\x00", 5000), ErrProtocol},
		"HTTP":               {"HTTP/1.1 400 secret\r\n\r\n", ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			pin, err := part{Answers: map[string]string{"GETPIN": test.answer}}.getPIN(t)
			if pin != nil || !errors.Is(err, test.want) {
				t.Errorf("got %q, %v; want %v", pin, err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") && !strings.Contains(test.answer, "ERR") {
				t.Errorf("the error has the PIN in it: %v", err)
			}
		})
	}
}

// A program that is none, or that breaks off: another way may be tried.
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
			if pin != nil || !errors.Is(err, ErrUnusable) {
				t.Fatalf("got %q, %v", pin, err)
			}
			if p.Do == "exit" && !strings.Contains(err.Error(), `exit status 3: "cannot open display: \x1b[31m:0"`) {
				t.Errorf("does not say why: %v", err)
			}
		})
	}
	t.Run("no such program", func(t *testing.T) {
		if _, err := GetPIN(t.Context(), t.TempDir()+"/gone", Dialog{}); !errors.Is(err, ErrUnusable) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not a program", func(t *testing.T) {
		if _, err := GetPIN(t.Context(), t.TempDir(), Dialog{}); !errors.Is(err, ErrUnusable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("true", func(t *testing.T) {
		if _, err := GetPIN(t.Context(), "/bin/true", Dialog{}); !errors.Is(err, ErrUnusable) {
			t.Errorf("got %v", err)
		}
	})
}

// A program that says too much, or nonsense, is ended, though it does not want
// to.
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
		"asks for ever":        {Answers: map[string]string{"GETPIN": strings.Repeat("INQUIRE QUALITY x\n", 5000)}},
		"a flavour of 2000":    {Answers: map[string]string{"GETINFO": "D " + strings.Repeat("x", 990) + "\nD " + strings.Repeat("x", 990) + "\nOK\n"}},
		"garbage for a text":   {Answers: map[string]string{"SETDESC": "yes\n"}},
		"garbage for a flavor": {Answers: map[string]string{"GETINFO": "\x00\xff\n"}},
	} {
		for _, stubborn := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %v", name, stubborn), func(t *testing.T) {
				p.IgnoreTERM = stubborn
				pin, err := p.getPIN(t)
				if pin != nil || !errors.Is(err, ErrProtocol) {
					t.Errorf("got %q, %v", pin, err)
				}
				if err != nil && strings.ContainsAny(err.Error(), "\x1b\x00\n") {
					t.Errorf("the error is not harmless: %q", err)
				}
			})
		}
	}
}

// alive returns a FIFO for the fake to hold, and what waits until nobody does.
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

// The program and all that it started end with the context.
func TestEndsWithContext(t *testing.T) {
	for name, p := range map[string]part{
		"before the greeting": {Do: "hang", At: "START"},
		"while it is set up":  {Do: "hang", At: "SETDESC"},
		"while it asks":       {Do: "hang", At: "GETPIN"},
		"no SIGTERM":          {Do: "hang", At: "GETPIN", IgnoreTERM: true},
		"with its children":   {Do: "children", At: "GETPIN"},
		"nobody wants to go":  {Do: "children", At: "GETPIN", IgnoreTERM: true},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			var gone func()
			p.Alive, gone = alive(t)
			p.Log = t.TempDir() + "/log"
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			reason := errors.New("the client hung up")
			done := make(chan result, 1)
			go func() {
				pin, err := GetPIN(ctx, self(t), p.dialog(t))
				done <- result{pin: pin, err: err}
			}()
			waitForHang(t, p)
			cancel(reason)
			if got := <-done; got.pin != nil || !errors.Is(got.err, reason) {
				t.Errorf("got %q, %v", got.pin, got.err)
			}
			gone()
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
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
	t.Fatal("it does not get to where it hangs")
}

func TestContextAlreadyEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	log := t.TempDir() + "/log"
	if _, err := GetPIN(ctx, self(t), part{Log: log}.dialog(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(log); err == nil {
		t.Error("the program was started")
	}
}

// A program that knows no timeout is ended by ours.
func TestTimeout(t *testing.T) {
	p := part{Do: "hang", At: "GETPIN", Log: t.TempDir() + "/log"}
	d := p.dialog(t)
	d.Timeout = 10 * time.Millisecond
	if pin, err := GetPIN(t.Context(), self(t), d); pin != nil || !errors.Is(err, ErrTimeout) {
		t.Errorf("got %q, %v", pin, err)
	}
	if !slices.Contains(commands(t, p.Log), "SETTIMEOUT 1") {
		t.Errorf("was told %q", commands(t, p.Log))
	}
}

// An answer is an answer, though the program does not go afterwards.
func TestStaysAfterTheAnswer(t *testing.T) {
	p := part{Answers: map[string]string{"GETPIN": "D 1234\nOK\n"}, Do: "hang", At: "BYE", IgnoreTERM: true}
	if pin, err := p.getPIN(t); err != nil || string(pin) != "1234" {
		t.Errorf("got %q, %v", pin, err)
	}
}

func TestWhatItIsTold(t *testing.T) {
	p := part{Log: t.TempDir() + "/log"}
	tty := ptytest.New(t)
	d := p.dialog(t)
	d.Title = "tpm-agent"
	d.Description = "Enter PIN for 100%\nof id_ecdsa\x1b[31m\x00\xff\u0085 ä\t."
	d.Prompt, d.Error = "PIN:", "Wrong PIN"
	d.OK, d.NotOK, d.Cancel = "_Use", "_Not", "_No"
	d.KeyInfo = "s/0123\nOPTION allow-external-password-cache"
	d.Owner, d.Timeout = 4711, 90*time.Second
	d.Terminal = named(tty)
	if _, err := GetPIN(t.Context(), self(t), d); err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GETINFO flavor",
		"OPTION no-grab",
		"OPTION ttyname=" + tty.Path(),
		"OPTION ttytype=xterm",
		"OPTION lc-ctype=C.UTF-8",
		"OPTION lc-messages=C",
		fmt.Sprintf("OPTION owner=4711/%d %s", os.Getuid(), host),
		"OPTION default-ok=_OK",
		"OPTION default-cancel=_Cancel",
		"SETKEYINFO s/0123%0AOPTION allow-external-password-cache",
		"SETTIMEOUT 90",
		"SETTITLE tpm-agent",
		"SETDESC Enter PIN for 100%25%0Aof id_ecdsa\uFFFD[31m\uFFFD\uFFFD\uFFFD ä .",
		"SETPROMPT PIN:",
		"SETERROR Wrong PIN",
		"SETOK _Use",
		"SETCANCEL _No",
		"GETPIN",
		"BYE",
	}
	if got := commands(t, p.Log); !slices.Equal(got, want) {
		t.Errorf("was told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// FLTK has a meaning for at signs.
func TestAtSigns(t *testing.T) {
	for flavour, want := range map[string]string{"fltk": "alice@@example.org", "fltk, no display": "alice@example.org", "gtk2": "alice@example.org"} {
		flavour, noDisplay := strings.CutSuffix(flavour, ", no display")
		p := part{Log: t.TempDir() + "/log", Answers: map[string]string{"GETINFO": "D " + flavour + "\nOK\n"}}
		d := p.dialog(t)
		if !noDisplay {
			d.Display = ":0"
		}
		d.Description, d.Error, d.Title = "alice@example.org", "alice@example.org", "alice@example.org"
		if _, err := GetPIN(t.Context(), self(t), d); err != nil {
			t.Fatal(err)
		}
		told := commands(t, p.Log)
		for _, line := range []string{"SETTITLE alice@example.org", "SETDESC " + want, "SETERROR " + want} {
			if !slices.Contains(told, line) {
				t.Errorf("%s: %q is not in %q", flavour, line, told)
			}
		}
	}
}

func TestWhatItIsNotTold(t *testing.T) {
	p := part{Log: t.TempDir() + "/log"}
	d := p.dialog(t)
	d.Description = ""
	d.Terminal = Terminal{Name: t.TempDir(), Type: "xterm"} // which is no terminal
	if _, err := GetPIN(t.Context(), self(t), d); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GETINFO flavor", "OPTION no-grab", "OPTION default-ok=_OK",
		"OPTION default-cancel=_Cancel", "SETKEYINFO --clear", "GETPIN", "BYE",
	}
	if got := commands(t, p.Log); !slices.Equal(got, want) {
		t.Errorf("was told %q, want %q", got, want)
	}
}

// What a program does not know it need not know; questions that it asks itself
// are refused.
func TestOldProgram(t *testing.T) {
	p := part{Log: t.TempDir() + "/log", Answers: map[string]string{
		"GETINFO": errNotKnown, "OPTION": errNotKnown, "SETTIMEOUT": errNotKnown, "SETKEYINFO": errNotKnown,
		"SETTITLE": "INQUIRE WHY\n", "CAN": "ERR 83886181 cancelled\n", "GETPIN": "D 1234\nOK\n",
	}}
	d := p.dialog(t)
	d.Timeout, d.Title = time.Minute, "tpm-agent"
	if pin, err := GetPIN(t.Context(), self(t), d); err != nil || string(pin) != "1234" {
		t.Errorf("got %q, %v", pin, err)
	}
}

func TestDisplay(t *testing.T) {
	tells := "/bin/sh"
	script := t.TempDir() + "/pinentry"
	text := "#!" + tells + "\necho \"OK $0 $* $DISPLAY $OTHER\" >&2; exit 1\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := GetPIN(t.Context(), script, Dialog{Display: ":7", Environ: []string{"DISPLAY=:0", "OTHER=x"}})
	if err == nil || !strings.Contains(err.Error(), "--display :7 :7 x") {
		t.Errorf("got %v", err)
	}
}

func TestConfirm(t *testing.T) {
	knows := map[string]string{"GETINFO": "D gtk2\nOK\n"}
	for name, test := range map[string]struct {
		notOK   string
		answers map[string]string
		answer  string
		want    Button
		err     error
	}{
		"ok":                     {"", knows, "OK\n", ButtonOK, nil},
		"ok of three":            {"Other", knows, "OK\n", ButtonOK, nil},
		"cancel":                 {"", knows, errCancelled, 0, ErrCancelled},
		"cancel of three":        {"Other", knows, errCancelled, 0, ErrCancelled},
		"middle":                 {"Other", knows, errNotConfirmed, ButtonNotOK, nil},
		"no middle button":       {"", knows, errNotConfirmed, 0, ErrCancelled},
		"fully":                  {"Other", knows, errFully, 0, ErrCancelled},
		"timeout":                {"Other", knows, errTimedOut, 0, ErrTimeout},
		"unusable":               {"Other", knows, errNoTTY, 0, ErrUnusable},
		"data":                   {"Other", knows, "D yes\nOK\n", 0, ErrProtocol},
		"unknown flavour":        {"Other", nil, errNotConfirmed, 0, ErrCancelled},
		"two buttons":            {"Other", map[string]string{"GETINFO": "D gnome3\nOK\n"}, errNotConfirmed, 0, ErrCancelled},
		"gnome without a screen": {"Other", map[string]string{"GETINFO": "D gnome3:curses\nOK\n"}, errNotConfirmed, ButtonNotOK, nil},
		"takes Escape for a yes": {"", map[string]string{"GETINFO": "D fltk\nOK\n"}, "OK\n", 0, ErrUnusable},
		"does not know SETNOTOK": {"Other", map[string]string{"GETINFO": "D gtk2\nOK\n", "SETNOTOK": errNotKnown}, errNotConfirmed, 0, ErrCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			p := part{Answers: map[string]string{"CONFIRM": test.answer}}
			for command, answer := range test.answers {
				p.Answers[command] = answer
			}
			d := p.dialog(t)
			d.NotOK, d.Display = test.notOK, ":0"
			got, err := Confirm(t.Context(), self(t), d)
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %v, %v; want %v, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	p := part{Log: t.TempDir() + "/log"}
	if err := Message(t.Context(), self(t), p.dialog(t)); err != nil {
		t.Error(err)
	}
	if got := commands(t, p.Log); !slices.Contains(got, "CONFIRM --one-button") {
		t.Errorf("was told %q", got)
	}
	p.Answers = map[string]string{"CONFIRM": errNoTTY}
	if err := Message(t.Context(), self(t), p.dialog(t)); !errors.Is(err, ErrUnusable) {
		t.Errorf("got %v", err)
	}
}

// pinentry-tty says cancelled where it has no terminal, which would be taken
// for somebody's no.
func TestTTYWithoutTerminal(t *testing.T) {
	p := part{Answers: map[string]string{"GETINFO": "D tty\nOK\n", "GETPIN": errCancelled}}
	if pin, err := p.getPIN(t); pin != nil || !errors.Is(err, ErrUnusable) || errors.Is(err, ErrCancelled) {
		t.Errorf("got %q, %v", pin, err)
	}
}
