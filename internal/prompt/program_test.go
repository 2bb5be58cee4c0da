package prompt

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/ask"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell is a program that runs a script with the given grace time.
func shell(script string, grace time.Duration) Program {
	return Program{Path: "/bin/sh", Args: []string{"-c", script}, Grace: grace}
}

// unhurried are settings for a dialog that is answered at once.
var unhurried = Settings{Timeout: time.Hour, Grace: time.Minute}

// A program and its children end with the context, even if they ignore SIGTERM.
// The FIFO that all of them hold tells when the last one is gone.
func TestProgramEndsWithAllItStarted(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"obedient": `exec 3>"$1"; sleep 1000 & echo ready; wait`,
		"stubborn": `exec 3>"$1"; trap '' TERM; (sleep 1000 & sleep 1000) & echo ready; while :; do sleep 1000; done`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			alive := filepath.Join(t.TempDir(), "alive")
			if err := syscall.Mkfifo(alive, 0o600); err != nil {
				t.Fatal(err)
			}
			reader, err := os.OpenFile(alive, os.O_RDONLY|syscall.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			ctx, cancel := context.WithCancelCause(t.Context())
			program := shell(script, 10*time.Millisecond)
			program.Args = append(program.Args, "sh", alive)
			p, err := program.Start(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(p.Out, make([]byte, len("ready\n"))); err != nil {
				t.Fatal(err)
			}
			gone := errors.New("client gone")
			cancel(gone)
			if err := p.End(); !errors.Is(err, gone) {
				t.Errorf("got %v", err)
			}
			if rest, err := io.ReadAll(reader); err != nil || len(rest) != 0 {
				t.Errorf("after the end: %q, %v", rest, err)
			}
		})
	}
}

// What a program leaves running when it ends by itself may be a service that it
// started for others.
func TestProgramLeavesServicesAlone(t *testing.T) {
	t.Parallel()
	p, err := shell(`sleep 1000 >&- 2>&- & echo $!`, time.Minute).Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.End(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Errorf("the service was ended: %v", err)
	}
}

func TestProgramHasItsOwnSession(t *testing.T) {
	t.Parallel()
	out, err := unhurried.Run(t.Context(), shell(`cut -d' ' -f1,5,6 /proc/$$/stat`, 0))
	if err != nil {
		t.Fatal(err)
	}
	ids := strings.Fields(string(out))
	if len(ids) != 3 || ids[0] != ids[1] || ids[0] != ids[2] {
		t.Errorf("pid, group and session are %q", ids)
	}
}

// A descriptor that the agent inherited, and that Go does not know, does not
// reach the program.
func TestProgramInheritsNoDescriptor(t *testing.T) {
	t.Parallel()
	held := t.TempDir()
	fd, err := unix.Open(held, unix.O_RDONLY, 0) // no O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	out, err := unhurried.Run(t.Context(), shell(`for fd in /proc/$$/fd/*; do readlink $fd; done; true`, 0))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), held) || !strings.Contains(string(out), "pipe:") {
		t.Errorf("the program holds\n%s", out)
	}
}

func TestRunAnswers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", MaxAnswer)
	for script, want := range map[string]string{
		"echo 1234":                  "1234",
		"printf 1234":                "1234",
		`printf '1234\r\n'`:          "1234",
		`printf '12\n\n'`:            "12\n",
		"echo":                       "",
		"exit 0":                     "",
		"echo pässwörd":              "pässwörd",
		"echo '  1 2  '":             "  1 2  ",
		"echo " + long:               long,
		"printf 12; printf 34":       "1234",
		"read line || echo no stdin": "no stdin",
	} {
		got, err := unhurried.Run(t.Context(), shell(script, 0))
		if err != nil || string(got) != want {
			t.Errorf("%.30s: got %q, %v; want %q", script, got, err, want)
		}
	}
}

func TestRunErrors(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]string{
		"echo 1234; exit 1": "exit status 1",
		`printf '\nno such widget\033[2J\nmore' >&2; exit 3`: "exit status 3: no such widget[2J",
		"kill -9 $$":                            "signal: killed",
		`printf '12\00034\n'`:                   "NUL",
		"printf '%01025d\n' 1":                  "longer than 1024",
		"while :; do echo 0123456789; done":     "longer than 1024",
		"head -c 1000000 /dev/zero; sleep 60":   "longer than 1024",
		"head -c 1000000 /dev/zero >&2; exit 1": "exit status 1",
		"printf '%01000d' 1 >&2; exit 1":        "exit status 1: " + strings.Repeat("0", maxPlain),
	} {
		got, err := unhurried.Run(t.Context(), shell(script, 0))
		if err == nil || got != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %q, %v; want an error with %q", script, got, err, want)
		}
		if _, exited := errors.AsType[*ExitError](err); exited != (strings.Contains(want, "exit") || strings.Contains(want, "signal")) {
			t.Errorf("%s: %T", script, err)
		}
	}
}

// A program that cannot be started leaves the question to the next way.
func TestRunCannotStart(t *testing.T) {
	t.Parallel()
	for _, path := range []string{filepath.Join(t.TempDir(), "gone"), t.TempDir()} {
		_, err := unhurried.Run(t.Context(), Program{Path: path})
		if _, unusable := errors.AsType[*UnusableError](err); !unusable {
			t.Errorf("got %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unhurried.Run(ctx, shell("true", 0)); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the client: %v", err)
	}
}

func TestRunTimesOut(t *testing.T) {
	t.Parallel()
	s := Settings{Timeout: 50 * time.Millisecond, Grace: 10 * time.Millisecond}
	if _, err := s.Run(t.Context(), shell("trap '' TERM; sleep 1000 & while :; do wait; done", 0)); !errors.Is(err, ask.ErrNoAnswer) {
		t.Errorf("got %v", err)
	}
}

func TestYes(t *testing.T) {
	t.Parallel()
	for line, yes := range map[string]bool{"yes": true, " YES ": true, "y": false, "": false, "yes1": false, "1234": false} {
		typed := []byte(line)
		answer, err := Yes(typed, nil)
		if yes && (err != nil || answer.Grant != ask.GrantOnce) || !yes && !errors.Is(err, ask.ErrRefused) {
			t.Errorf("%q: got %+v, %v", line, answer, err)
		}
		if strings.Trim(string(typed), "\x00") != "" {
			t.Errorf("%q is still there", typed)
		}
	}
}
