package askpass

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script writes an askpass program and returns the way to ask with it, without a
// display.
func script(t *testing.T, body string, environ ...string) prompt.Way {
	t.Helper()
	path := filepath.Join(t.TempDir(), "askpass")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	environ = append([]string{"PATH=" + os.Getenv("PATH")}, environ...)
	return New(prompt.Settings{Environ: environ, Timeout: time.Hour, Grace: time.Minute}, path, Force)
}

func pin(ctx context.Context, w prompt.Way, text string) (string, error) {
	answer, err := w.Ask(ctx, prompt.Question{Kind: prompt.PIN, Text: text})
	return string(answer.PIN), err
}

// The question is the program's one argument, and the kind of question is in
// SSH_ASKPASS_PROMPT, whatever the agent's environment says.
func TestProgramGetsTheQuestion(t *testing.T) {
	for _, inherited := range []string{"SSH_ASKPASS_PROMPT=none", "SSH_ASKPASS_PROMPT=confirm", "OTHER="} {
		out := filepath.Join(t.TempDir(), "out")
		w := script(t, `[ $# = 1 ] && printf '%s' "${SSH_ASKPASS_PROMPT-unset} $1" >"$OUT"`, inherited, "OUT="+out)
		for kind, hint := range map[prompt.Kind]string{prompt.PIN: "unset", prompt.LastTry: "confirm", prompt.Consent: "confirm", prompt.Notice: "none"} {
			q := prompt.Question{Kind: kind, Error: "Wrong PIN.", Text: "Enter PIN for \"b\" $HOME `id`\nsecond line"}
			if _, err := w.Ask(t.Context(), q); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(out); err != nil || string(got) != hint+" "+q.Error+"\n"+q.Text {
				t.Errorf("got %q, %v; want %q and the text", got, err, hint)
			}
		}
	}
}

func TestPIN(t *testing.T) {
	if got, err := pin(t.Context(), script(t, "echo ' 1234'"), "?"); err != nil || got != " 1234" {
		t.Errorf("got %q, %v", got, err)
	}
	for body, why := range map[string]string{"echo 1234; exit 1": "exit status 1", "echo no widget >&2; exit 3": "exit status 3: no widget", "kill -9 $$": "signal: killed"} {
		if got, err := pin(t.Context(), script(t, body), "?"); got != "" || !errors.Is(err, ask.ErrRefused) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: got %q, %v", body, got, err)
		}
	}
}

// A program that could not open its window has not asked the user.
func TestWindowDoesNotOpen(t *testing.T) {
	for _, body := range []string{
		"echo 'Gtk-WARNING **: cannot open display: :7' >&2; exit 1",
		"echo 'qt.qpa.xcb: could not connect to display :7' >&2; kill -ABRT $$",
	} {
		_, err := pin(t.Context(), script(t, body), "?")
		if _, unusable := errors.AsType[*prompt.UnusableError](err); !unusable || errors.Is(err, ask.ErrRefused) {
			t.Errorf("%s: got %v", body, err)
		}
	}
}

// A yes is what OpenSSH's ask_permission takes for one, from the same programs.
func TestConsent(t *testing.T) {
	for body, allow := range map[string]bool{
		"exit 0": true, "echo": true, `printf '\r\n'`: true, "echo yes": true, "echo YES": true, "printf yes": true,
		`printf 'yes\nno\n'`: true, `printf '\nno\n'`: true,
		"echo y": false, "echo no": false, "echo ' '": false, "echo yes sir": false, "exit 1": false,
		"echo yes; exit 1": false, "echo yes; kill -9 $$": false,
	} {
		for _, kind := range []prompt.Kind{prompt.Consent, prompt.LastTry} {
			answer, err := script(t, body).Ask(t.Context(), prompt.Question{Kind: kind})
			if allow && (err != nil || answer.Grant != ask.GrantOnce) || !allow && (!errors.Is(err, ask.ErrRefused) || answer.Grant != ask.GrantNo) {
				t.Errorf("%s: got %+v, %v", body, answer, err)
			}
		}
	}
}

// A broken program has said neither yes nor no, and allows nothing.
func TestConsentFromBrokenProgram(t *testing.T) {
	for _, body := range []string{`printf 'yes\000'`, `printf '\000'`, "printf '%01025d\n' 1", "while :; do echo; done"} {
		answer, err := script(t, body).Ask(t.Context(), prompt.Question{Kind: prompt.Consent})
		if err == nil || errors.Is(err, ask.ErrRefused) || answer.Grant != ask.GrantNo {
			t.Errorf("%s: got %+v, %v", body, answer, err)
		}
	}
}

// The button that closes a notice may be called Cancel.
func TestNotice(t *testing.T) {
	for _, body := range []string{"exit 0", "exit 1"} {
		if _, err := script(t, body).Ask(t.Context(), prompt.Question{Kind: prompt.Notice}); err != nil {
			t.Errorf("%s: got %v", body, err)
		}
	}
}

// TestRequire tests when the program is used, by SSH_ASKPASS_REQUIRE and the
// display.
func TestRequire(t *testing.T) {
	path := filepath.Join(t.TempDir(), "askpass")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho askpass"), 0o700); err != nil {
		t.Fatal(err)
	}
	const display, noDisplay = "DISPLAY=:0", "DISPLAY="
	for environ, asked := range map[string]bool{
		display:                                   true,
		"WAYLAND_DISPLAY=wayland-0":               true,
		noDisplay:                                 false,
		display + " SSH_ASKPASS_REQUIRE=never":    false,
		display + " SSH_ASKPASS_REQUIRE=prefer":   true,
		noDisplay + " SSH_ASKPASS_REQUIRE=prefer": false,
		noDisplay + " SSH_ASKPASS_REQUIRE=force":  true,
		display + " SSH_ASKPASS_REQUIRE=never SSH_ASKPASS_REQUIRE=force": true,
	} {
		s := prompt.Settings{Environ: append(strings.Fields(environ), "SSH_ASKPASS="+path), Timeout: time.Hour, Grace: time.Minute}
		program, require, err := FromEnviron(s.Environ)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pin(t.Context(), New(s, program, require), "?")
		_, unusable := errors.AsType[*prompt.UnusableError](err)
		if asked && got != "askpass" || !asked && !unusable {
			t.Errorf("%s: got %q, %v", environ, got, err)
		}
	}
	if _, _, err := FromEnviron([]string{"SSH_ASKPASS_REQUIRE=always"}); err == nil || !strings.Contains(err.Error(), "never, prefer or force") {
		t.Errorf("got %v", err)
	}
}

func TestInstalled(t *testing.T) {
	if err := New(prompt.Settings{}, "", Auto).Installed(); err == nil || err.Error() != "SSH_ASKPASS is not set, and no ssh-askpass is installed" {
		t.Errorf("got %v", err)
	}
	missing := New(prompt.Settings{}, filepath.Join(t.TempDir(), "gone"), Force)
	if err := missing.Installed(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	_, err := pin(t.Context(), missing, "?")
	if _, unusable := errors.AsType[*prompt.UnusableError](err); !unusable {
		t.Errorf("got %v", err)
	}
}
