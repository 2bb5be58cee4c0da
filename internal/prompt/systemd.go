package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
)

const systemdProgram = "systemd-ask-password"

// systemdWay asks by systemd-ask-password(1): whoever answers for the machine,
// on its console, by systemd-tty-ask-password-agent or in the boot splash. It is
// for services and servers.
type systemdWay struct{ *Prompter }

func (w systemdWay) pin(ctx context.Context, q question) ([]byte, error) {
	said, err := w.ask(ctx, q, oneLine(q.text)+":")
	if err != nil {
		return nil, err
	}
	return answer(said)
}

func (w systemdWay) lastTry(ctx context.Context, q question) error {
	said, err := w.ask(ctx, q, oneLine(q.text)+" Type yes to go on:", "--echo")
	defer clear(said)
	if err == nil && !SaysYes(said) {
		err = agent.ErrRefused
	}
	return err
}

func (w systemdWay) confirm(ctx context.Context, q question) (agent.Grant, error) {
	said, err := w.ask(ctx, q, oneLine(q.text)+" Type yes to allow it:", "--echo")
	defer clear(said)
	switch {
	case err != nil:
		return agent.GrantNo, err
	case !SaysYes(said):
		return agent.GrantNo, agent.ErrRefused
	}
	return agent.GrantOnce, nil
}

// inform cannot be done: whatever systemd-ask-password shows is a question.
func (w systemdWay) inform(context.Context, question) error {
	return unusable("it can only ask")
}

// ask runs the program, which leaves the question in a directory for whoever
// answers such questions.
func (w systemdWay) ask(ctx context.Context, q question, text string, options ...string) ([]byte, error) {
	program, err := exec.LookPath(systemdProgram)
	if err != nil {
		return nil, &unusableError{err}
	}
	environ := setenv(w.options.Environ, "LC_ALL", "C")
	args := []string{
		"--no-tty",
		fmt.Sprintf("--timeout=%d", (w.options.Timeout+2*time.Second-1)/time.Second), // a second behind our own
		"--id=tpm-agent:" + oneLine(plain(q.Fingerprint)),
		"--icon=dialog-password",
	}
	scope, err := systemdScope(environ)
	if err != nil {
		return nil, &unusableError{err}
	}
	args = append(append(append(args, scope...), options...), "--", text)
	said, complaint, err := w.run(ctx, environ, program, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, systemdError(exit, complaint)
	}
	return said, err
}

// systemdScope says whom to ask: root everybody who answers for the machine,
// others those who answer for this user, which systemd knows from 257 on. It is
// an error if there is nobody, for then the question would lie there until the
// limit is over.
func systemdScope(environ []string) (options []string, err error) {
	dir := "/run/systemd/ask-password"
	if os.Geteuid() != 0 {
		runtime := lookup(environ, "XDG_RUNTIME_DIR")
		if runtime == "" {
			return nil, errors.New("XDG_RUNTIME_DIR is not set")
		}
		dir = filepath.Join(runtime, "systemd/ask-password")
		options = []string{"--user"}
	} else if _, err := os.Lstat("/run/systemd/system"); err == nil {
		return nil, nil // systemd itself tells all terminals that there is a question
	}
	if !watched(dir) {
		return nil, errors.New("no agent for systemd-ask-password is running")
	}
	return options, nil
}

// systemdError tells by what the program says who did not answer.
func systemdError(exit *exec.ExitError, complaint string) error {
	switch {
	case strings.Contains(complaint, "Operation canceled"):
		return fmt.Errorf("%w: %s", agent.ErrRefused, systemdProgram)
	case strings.Contains(complaint, "Timer expired"):
		return fmt.Errorf("%w: %s", agent.ErrNoAnswer, systemdProgram)
	case strings.Contains(complaint, "--user"):
		return unusable("systemd before version 257 asks for root only")
	case complaint != "":
		return unusable("%w: %s", exit, complaint)
	}
	return unusable("%w", exit)
}

// watched says whether a process that may be looked at waits for files in dir,
// as those do who answer such questions.
func watched(dir string) bool {
	var stat unix.Stat_t
	if unix.Stat(dir, &stat) != nil {
		return false
	}
	mark := fmt.Sprintf(" ino:%x sdev:%x ", stat.Ino, unix.Major(stat.Dev)<<20|unix.Minor(stat.Dev))
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return false
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != "anon_inode:inotify" {
			continue
		}
		info, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(link)), "fdinfo", filepath.Base(link)))
		if err == nil && strings.Contains(string(info), mark) {
			return true
		}
	}
	return false
}

// oneLine joins the lines of a text into one. One that is indented goes on with
// the sentence of the line before.
func oneLine(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		words := strings.TrimSpace(line)
		switch said := b.String(); {
		case words == "" || said == "":
		case strings.HasPrefix(line, " ") || strings.ContainsAny(said[len(said)-1:], ".?!:,;"):
			b.WriteByte(' ')
		default:
			b.WriteString(", ")
		}
		b.WriteString(words)
	}
	return b.String()
}
