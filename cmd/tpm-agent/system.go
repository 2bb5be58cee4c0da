package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/term"
)

// system is what the process was given from outside.
type system struct {
	stdin, stdout, stderr *os.File
	environ               []string // as os.Environ returns it
}

// getenv returns the last value of name, the one that counts.
func (s system) getenv(name string) (value string) {
	for _, entry := range s.environ {
		if rest, ok := strings.CutPrefix(entry, name+"="); ok {
			value = rest
		}
	}
	return value
}

// without returns the environment for a child: without what is meant for this
// process alone (sd_notify, sd_listen_fds) and without the names given.
func (s system) without(names ...string) []string {
	names = append(names, "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC", startedBlocked)
	environ := slices.DeleteFunc(slices.Clone(s.environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(names, name)
	})
	if s.getenv(startedBlocked) == "" {
		return environ
	}
	return unrestarted(environ)
}

// home is the user's home directory.
func (s system) home() (string, error) {
	if home := s.getenv("HOME"); home != "" {
		return home, nil
	}
	return "", errors.New("HOME is not set")
}

// sshDir is where OpenSSH keeps a user's keys.
func (s system) sshDir() (string, error) {
	home, err := s.home()
	if err != nil {
		return "", fmt.Errorf("finding ~/.ssh: %w", err)
	}
	return filepath.Join(home, ".ssh"), nil
}

// socketPath is the socket that was asked for, else the default one.
func (s system) socketPath(asked string) (string, error) {
	if asked != "" {
		return filepath.Abs(asked)
	}
	dir := s.runtimeDir()
	if dir == "" {
		return "", withHint(errors.New("XDG_RUNTIME_DIR is not set, so there is no default place for the agent's socket"),
			"a login by ssh or on a desktop sets it, su and sudo do not; or choose a place with --socket PATH")
	}
	return filepath.Abs(filepath.Join(dir, "agent.sock"))
}

// runtimeDir is where our sockets are, or "" where there is no such place.
func (s system) runtimeDir() string {
	if dir := s.getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "tpm-agent")
	}
	return ""
}

// tempDir is where everybody may put files for a while.
func (s system) tempDir() string {
	if dir := s.getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/tmp"
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
