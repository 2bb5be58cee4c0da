// Package systemd asks with systemd-ask-password(1): on the machine's console,
// in the boot splash, or wherever an agent for such questions runs. It is meant
// for services and servers.
package systemd

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

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

const program = "systemd-ask-password"

type systemd struct{ prompt.Settings }

// New returns the way to ask with systemd-ask-password.
func New(s prompt.Settings) prompt.Way { return systemd{s} }

func (systemd) Name() string { return "systemd" }

func (systemd) Installed() error {
	_, err := exec.LookPath(program)
	return err
}

func (w systemd) Ask(ctx context.Context, q prompt.Question) (prompt.Answer, error) {
	text := oneLine(q.Whole())
	switch q.Kind {
	case prompt.PIN:
		pin, err := w.run(ctx, q, text+":")
		return prompt.Answer{PIN: pin}, err
	case prompt.LastTry:
		return prompt.Yes(w.run(ctx, q, text+" Type yes to go on:", "--echo"))
	case prompt.Consent:
		return prompt.Yes(w.run(ctx, q, text+" Type yes to allow it:", "--echo"))
	}
	return prompt.Answer{}, prompt.Unusable("it can only ask")
}

// run runs the program, which leaves the question in a directory where agents
// look for questions.
func (w systemd) run(ctx context.Context, q prompt.Question, text string, options ...string) ([]byte, error) {
	if err := w.Installed(); err != nil {
		return nil, prompt.Unusable("%w", err)
	}
	whom, err := scope(w.Environ)
	if err != nil {
		return nil, prompt.Unusable("%w", err)
	}
	args := append([]string{
		"--no-tty",
		fmt.Sprintf("--timeout=%d", (w.Timeout+2*time.Second-1)/time.Second), // a second after our own
		"--id=tpm-agent:" + prompt.Plain(q.Fingerprint),
		"--icon=dialog-password",
	}, whom...)
	said, err := w.Run(ctx, prompt.Program{
		Path: program, Args: append(append(args, options...), "--", text), Environ: prompt.Setenv(w.Environ, "LC_ALL", "C"),
	})
	if exit, exited := errors.AsType[*prompt.ExitError](err); exited {
		err = meaning(exit)
	}
	return said, err
}

// scope returns the options that choose the agents to ask: root asks those of the
// machine, other users ask their own, since systemd 257. Without an agent
// it returns an error, because the question would only lie there until the
// timeout.
func scope(environ []string) (options []string, err error) {
	dir := "/run/systemd/ask-password"
	if os.Geteuid() != 0 {
		runtime := prompt.Lookup(environ, "XDG_RUNTIME_DIR")
		if runtime == "" {
			return nil, errors.New("XDG_RUNTIME_DIR is not set")
		}
		dir = filepath.Join(runtime, "systemd/ask-password")
		options = []string{"--user"}
	} else if _, err := os.Lstat("/run/systemd/system"); err == nil {
		return nil, nil // systemd itself announces the question on all terminals
	}
	if !watched(dir) {
		return nil, errors.New("no agent for systemd-ask-password is running")
	}
	return options, nil
}

// meaning finds out from the program's complaint why it failed.
func meaning(exit *prompt.ExitError) error {
	switch {
	case strings.Contains(exit.Complaint, "Operation canceled"):
		return fmt.Errorf("%w: %s", ask.ErrRefused, program)
	case strings.Contains(exit.Complaint, "Timer expired"):
		return fmt.Errorf("%w: %s", ask.ErrNoAnswer, program)
	case strings.Contains(exit.Complaint, "--user"):
		return prompt.Unusable("systemd before version 257 asks for root only")
	}
	return prompt.Unusable("%w", exit)
}

// watched reports whether a visible process has an inotify watch on dir, as the
// agents for such questions do.
func watched(dir string) bool {
	var stat unix.Stat_t
	if unix.Stat(dir, &stat) != nil {
		return false
	}
	mark := fmt.Sprintf(" ino:%x sdev:%x ", stat.Ino, unix.Major(stat.Dev)<<20|unix.Minor(stat.Dev))
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
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

// oneLine joins the lines of a text. An indented line continues the sentence of
// the line before.
func oneLine(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		words := strings.TrimSpace(line)
		switch before := b.String(); {
		case words == "" || before == "":
		case strings.HasPrefix(line, " ") || strings.ContainsAny(before[len(before)-1:], ".?!:,;"):
			b.WriteByte(' ')
		default:
			b.WriteString(", ")
		}
		b.WriteString(words)
	}
	return b.String()
}
