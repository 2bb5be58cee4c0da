package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script writes an askpass program and returns a Prompter that uses it. The
// directory is $DIR to the script.
func script(t *testing.T, body string) (*Prompter, string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "askpass")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return New(Options{
		Ways:    []Way{Askpass},
		Askpass: path,
		Require: Force,
		Environ: append(os.Environ(), "DIR="+dir, "MARK=given"),
	}), dir
}

// ask asks for a PIN in all the ways that p has.
func ask(ctx context.Context, p *Prompter, text string) (pin []byte, err error) {
	err = p.try(ctx, func(w way) error {
		pin, err = w.pin(ctx, question{text: text})
		return err
	})
	return pin, err
}

func TestAskpassAnswers(t *testing.T) {
	long := strings.Repeat("x", maxAnswer)
	for name, test := range map[string]struct{ body, want string }{
		"newline":         {"echo 1234", "1234"},
		"no newline":      {"printf 1234", "1234"},
		"crlf":            {`printf '1234\r\n'`, "1234"},
		"one newline":     {`printf '12\n\n'`, "12\n"},
		"empty":           {"echo", ""},
		"nothing":         {"exit 0", ""},
		"utf-8":           {"echo pässwörd", "pässwörd"},
		"blanks":          {"echo '  1 2  '", "  1 2  "},
		"longest":         {"echo " + long, long},
		"in two parts":    {"printf 12; printf 34", "1234"},
		"environment":     {"echo $MARK", "given"},
		"stdin is closed": {"read line || echo eof", "eof"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := script(t, test.body)
			got, err := ask(t.Context(), p, "?")
			if err != nil || string(got) != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestAskpassRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		body    string
		refused bool
		text    string
	}{
		"exit status":     {"echo 1234; exit 1", true, "exit status 1"},
		"reason":          {`printf 'no such widget\033[2J\nmore' >&2; exit 3`, true, "exit status 3: no such widget[2J"},
		"killed":          {"kill -9 $$", true, "signal: killed"},
		"NUL":             {`printf '12\00034\n'`, false, "NUL"},
		"too long":        {"printf '%01025d\n' 1", false, "longer than 1024"},
		"never stops":     {"while :; do echo 0123456789; done", false, "longer than 1024"},
		"a million":       {"head -c 1000000 /dev/zero; sleep 60", false, "longer than 1024"},
		"noisy on stderr": {"head -c 1000000 /dev/zero >&2; exit 1", true, "exit status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := script(t, test.body)
			got, err := ask(t.Context(), p, "?")
			if err == nil || got != nil || errors.Is(err, agent.ErrRefused) != test.refused || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %q, %v; want an error with %q", got, err, test.text)
			}
		})
	}
}

func TestAskpassMissing(t *testing.T) {
	p := New(Options{Ways: []Way{Askpass}, Askpass: filepath.Join(t.TempDir(), "nowhere"), Require: Force})
	if _, err := ask(t.Context(), p, "?"); !errors.Is(err, os.ErrNotExist) || errors.Is(err, agent.ErrRefused) {
		t.Errorf("got %v", err)
	}
}

// The question reaches the program as its one argument, whatever is in it.
func TestAskpassArgument(t *testing.T) {
	p, _ := script(t, `[ $# = 1 ] && printf '%s' "$1"`)
	text := "Enter PIN for a \"b\" $HOME `id`\nsecond line"
	if got, err := ask(t.Context(), p, text); err != nil || string(got) != text {
		t.Errorf("got %q, %v", got, err)
	}
}

// A descriptor that the agent was started with, and that nobody marked, does
// not reach the program.
func TestAskpassDescriptors(t *testing.T) {
	fd, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	p, _ := script(t, fmt.Sprintf("[ -e /proc/self/fd/%d ] && echo leaked || echo clean", fd))
	if got, err := ask(t.Context(), p, "?"); err != nil || string(got) != "clean" {
		t.Errorf("got %q, %v", got, err)
	}
}

// When the client goes, the program goes: also one that ignores SIGTERM, and
// what it has started.
func TestAskpassEndsWithContext(t *testing.T) {
	for name, body := range map[string]string{
		"obedient": `sleep 600 & echo $! > $DIR/child; echo $$ > $DIR/pid; mv $DIR/pid $DIR/ready; wait`,
		"stubborn": `trap '' TERM; sleep 600 & echo $! > $DIR/child; echo $$ > $DIR/pid; mv $DIR/pid $DIR/ready; while :; do wait; done`,
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := script(t, body)
			p.options.Grace = 100 * time.Millisecond
			ctx, cancel := context.WithCancelCause(t.Context())
			gone := errors.New("client gone")
			done := make(chan error, 1)
			go func() {
				_, err := ask(ctx, p, "?")
				done <- err
			}()
			pid := await(t, filepath.Join(dir, "ready"))
			child := await(t, filepath.Join(dir, "child"))
			cancel(gone)
			if err := <-done; !errors.Is(err, gone) {
				t.Errorf("got %v", err)
			}
			for _, p := range []int{pid, child} {
				awaitGone(t, p)
			}
		})
	}
}

func TestContextOverBeforeStart(t *testing.T) {
	p, dir := script(t, "touch $DIR/ran")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ask(ctx, p, "?"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("a dialog was shown for nobody")
	}
}

// await waits until a file is there and returns the number in it.
func await(t *testing.T, path string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if data, err := os.ReadFile(path); err == nil {
			if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				return n
			}
		}
	}
	t.Fatalf("%s did not appear", path)
	return 0
}

// awaitGone waits until a process has ended. One that nobody reaps counts.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d goes on", pid)
}

// Which way is taken, by SSH_ASKPASS_REQUIRE and the display.
func TestChoice(t *testing.T) {
	askpass := filepath.Join(t.TempDir(), "askpass")
	if err := os.WriteFile(askpass, []byte("#!/bin/sh\necho askpass"), 0o700); err != nil {
		t.Fatal(err)
	}
	const display, noDisplay = "DISPLAY=:0", "DISPLAY="
	for _, test := range []struct {
		environ string
		asked   bool
	}{
		{display, true},
		{"WAYLAND_DISPLAY=wayland-0", true},
		{noDisplay, false},
		{display + " SSH_ASKPASS_REQUIRE=never", false},
		{display + " SSH_ASKPASS_REQUIRE=prefer", true},
		{noDisplay + " SSH_ASKPASS_REQUIRE=prefer", false},
		{noDisplay + " SSH_ASKPASS_REQUIRE=force", true},
		{display + " SSH_ASKPASS_REQUIRE=never SSH_ASKPASS_REQUIRE=force", true},
	} {
		o, err := FromEnviron(append(strings.Fields(test.environ), "SSH_ASKPASS="+askpass))
		if err != nil {
			t.Fatal(err)
		}
		o.Ways = []Way{Askpass, Terminal}
		o.Terminal = filepath.Join(t.TempDir(), "no-terminal")
		got, err := ask(t.Context(), New(o), "?")
		if test.asked && string(got) != "askpass" || !test.asked && !errors.Is(err, agent.ErrNoPrompt) {
			t.Errorf("%s: got %q, %v", test.environ, got, err)
		}
	}
}

func TestRequireIsChecked(t *testing.T) {
	if _, err := FromEnviron([]string{"SSH_ASKPASS_REQUIRE=always"}); err == nil || !strings.Contains(err.Error(), "never, prefer or force") {
		t.Errorf("got %v", err)
	}
	if _, err := ask(t.Context(), New(Options{Ways: []Way{Askpass}, Require: Force}), "?"); !errors.Is(err, agent.ErrNoPrompt) {
		t.Errorf("got %v", err)
	}
	if _, err := ask(t.Context(), New(Options{Ways: []Way{}}), "?"); !errors.Is(err, agent.ErrNoPrompt) {
		t.Errorf("got %v", err)
	}
}

func TestAuthValue(t *testing.T) {
	p, _ := script(t, `printf '%s' "$1"`)
	ask := agent.AuthPrompt{
		Question: agent.Question{
			Name: "/home/u/.ssh/id\x1b[31m\u202egnp.tpm", Comment: "me@here\n", Fingerprint: "SHA256:abc",
			Peer: agent.Peer{PID: os.Getpid()},
		}, Retry: true, TriesLeft: 2,
	}
	got, err := p.AuthValue(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	want := wording(ask)
	if string(got) != want || !strings.Contains(want, "/id[31mgnp.tpm (me@here)\nSHA256:abc\n") {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	refusing, _ := script(t, "exit 1")
	if _, err := refusing.AuthValue(t.Context(), agent.AuthPrompt{Question: agent.Question{Name: "id.tpm"}}); !errors.Is(err, agent.ErrRefused) || !strings.Contains(err.Error(), "PIN of id.tpm") {
		t.Errorf("got %v", err)
	}
}
