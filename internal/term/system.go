package term

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
)

// System holds what the process was started with.
type System struct {
	Stdin, Stdout, Stderr *os.File
	Environ               []string // as os.Environ returns it
	TPM                   string   // the address that --tpm names, or ""
}

// Getenv returns the last value of name, which overrides earlier ones.
func (s *System) Getenv(name string) (value string) {
	for _, entry := range s.Environ {
		if rest, ok := strings.CutPrefix(entry, name+"="); ok {
			value = rest
		}
	}
	return value
}

// Without returns the environment for a child. It leaves out the names given and
// the variables that are meant only for this process (sd_notify, sd_listen_fds).
func (s *System) Without(names ...string) []string {
	names = append(names, "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC")
	return slices.DeleteFunc(slices.Clone(s.Environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(names, name)
	})
}

// Home returns the user's home directory.
func (s *System) Home() (string, error) {
	if home := s.Getenv("HOME"); home != "" {
		return home, nil
	}
	return "", errors.New("HOME is not set")
}

// SSHDir returns the directory in which OpenSSH keeps a user's keys.
func (s *System) SSHDir() (string, error) {
	if home := s.Getenv("HOME"); home != "" {
		return filepath.Join(home, ".ssh"), nil
	}
	return "", errors.New("finding ~/.ssh: HOME is not set")
}

// KeyDirs returns the absolute paths of the key directories in asked, or ~/.ssh if
// there are none.
func (s *System) KeyDirs(asked []string) ([]string, error) {
	if len(asked) == 0 {
		dir, err := s.SSHDir()
		return []string{dir}, err
	}
	var dirs []string
	for _, dir := range asked {
		if dir == "" {
			return nil, Usage("--key-dir: the name is empty")
		}
		absolute, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, absolute)
	}
	return dirs, nil
}

// KnownHosts returns the known_hosts files to read: the files in asked, or those of
// ssh if there are none.
func (s *System) KnownHosts(asked []string) ([]string, error) {
	dir, err := s.SSHDir()
	if err != nil {
		return nil, err
	}
	if len(asked) == 0 {
		return []string{
			filepath.Join(dir, "known_hosts"), filepath.Join(dir, "known_hosts2"),
			"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2",
		}, nil
	}
	var files []string
	for _, file := range asked {
		if file == "" {
			return nil, Usage("--hostkeys: the name is empty")
		}
		if below, ok := strings.CutPrefix(file, "~/"); ok { // as ssh-add has it
			file = filepath.Join(filepath.Dir(dir), below)
		}
		files = append(files, file)
	}
	return files, nil
}

// SocketPath returns the path of the agent's socket: asked, or the default if it is
// empty.
func (s *System) SocketPath(asked string) (string, error) {
	if asked != "" {
		return filepath.Abs(asked)
	}
	dir := s.RuntimeDir()
	if dir == "" {
		return "", Hint(errors.New("XDG_RUNTIME_DIR is not set, so the agent's socket has no default path"),
			"log in by ssh or on a desktop (su and sudo do not set it), or choose a path with --socket PATH")
	}
	return filepath.Abs(filepath.Join(dir, "agent.sock"))
}

// RuntimeDir returns the directory of our sockets, or "" if XDG_RUNTIME_DIR is not
// set.
func (s *System) RuntimeDir() string {
	if dir := s.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "tpm-agent")
	}
	return ""
}

// TempDir returns the directory for temporary files.
func (s *System) TempDir() string { return cmp.Or(s.Getenv("TMPDIR"), "/tmp") }

// Address returns the address of the TPM to use: that of --tpm, or else of the
// environment, or else the machine's own.
func (s *System) Address() (tcti.Address, error) {
	asked, where := s.TPM, "--tpm"
	if asked == "" {
		asked, where = cmp.Or(s.Getenv("TPM_AGENT_TPM"), "auto"), "TPM_AGENT_TPM"
	}
	addr, err := tcti.Parse(asked)
	if err != nil {
		return addr, Usage("%s: %w", where, err)
	}
	return addr, nil
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Interruptible returns a context that ends at the first SIGINT, SIGTERM or SIGHUP,
// so that a command can clean up. The second signal has its usual effect. The
// cause is an error for [Report].
func Interruptible(parent context.Context) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(parent)
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case s := <-caught:
			signal.Stop(caught)
			cancel(&interruptedError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(caught)
		cancel(nil)
	}
}

// interruptedError is the cause of a context that ended because of a signal.
type interruptedError struct{ signal syscall.Signal }

func (e *interruptedError) Error() string { return "interrupted (" + e.signal.String() + ")" }

// OrInterrupted returns err, or the interruption that caused it: after Ctrl-C the
// user does not need the TPM's own error.
func OrInterrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
