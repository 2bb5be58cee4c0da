package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/socket"
)

// A Go program cannot fork: `serve --fork` starts itself again, with --forked.
// The child does all that serve does, with the caller's stderr, until it
// serves. Then it lets go of everything that is the caller's and says so
// through a pipe; only then the parent tells the shell. So an agent that cannot
// start says why where it was started, with its exit status.

// parentFD is the pipe's descriptor in the child.
const parentFD = 3

// runFork starts the agent in the background and prints what the shell must
// run to use it.
func runFork(sys system, form shell) error {
	if passed, err := socket.Inherited(); err != nil || passed != nil {
		if passed != nil {
			err = errors.Join(usage("--fork cannot be used when the service manager passes a socket"), passed.Close())
		}
		return err
	}
	// A shell that has gone must not end this process before it has ended the
	// agent that nobody will know of.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)
	agent, path, err := startForked(sys)
	if err != nil {
		return err
	}
	pid := agent.Process.Pid
	_, err = fmt.Fprintf(sys.stdout, "%s\n%s\necho Agent pid %d;\n",
		form.set("SSH_AUTH_SOCK", path), form.set("SSH_AGENT_PID", strconv.Itoa(pid)), pid)
	if err != nil {
		_ = agent.Process.Signal(syscall.SIGTERM)
		_ = agent.Wait()
		return fmt.Errorf("telling the shell where the agent is: %w", err)
	}
	return nil
}

// startForked starts the child and waits until it serves at path.
func startForked(sys system) (agent *exec.Cmd, path string, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, "", fmt.Errorf("starting the agent: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", fmt.Errorf("starting the agent: %w", err)
	}
	defer r.Close()
	agent = exec.Command(program, append(os.Args[1:len(os.Args):len(os.Args)], "--forked")...)
	agent.Args[0] = os.Args[0]
	agent.Env = sys.without("JOURNAL_STREAM")
	agent.Stderr = sys.stderr
	agent.ExtraFiles = []*os.File{w}
	agent.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = errors.Join(keepDescriptors(), agent.Start())
	w.Close()
	if err != nil {
		return nil, "", fmt.Errorf("starting the agent: %w", err)
	}
	said, err := io.ReadAll(r)
	path, ready := strings.CutSuffix(string(said), "\x00")
	if err != nil || !ready {
		return nil, "", unready(agent.Wait())
	}
	return agent, path, nil
}

// unready is the error for a child that has ended; it has said why.
func unready(ended error) error {
	var exit *exec.ExitError
	if errors.As(ended, &exit) && exit.Exited() {
		return statusError(exit.ExitCode())
	}
	return fmt.Errorf("starting the agent: it ended before it could be used: %w", ended)
}

// keepDescriptors keeps what this process has inherited, beside the standard
// streams, from its children. Someone may be waiting for the other end of a
// pipe, which an agent would hold open for days.
func keepDescriptors() error {
	const dir = "/proc/self/fd"
	open, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("closing the caller's descriptors: %w", err)
	}
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// parentPipe takes the pipe to the process that has started this one. It is to
// be called before anything is opened.
func parentPipe() (*os.File, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(parentFD, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, withHint(usage("--forked is what --fork uses within"), "tpm-agent serve --fork")
	}
	unix.CloseOnExec(parentFD)
	return os.NewFile(parentFD, "parent"), nil
}

// runForked is the child's part.
func runForked(ctx context.Context, g *global, o serveOptions) error {
	parent, err := parentPipe()
	if err != nil {
		return err
	}
	defer parent.Close()
	return runAgent(ctx, g, o, func(path string) error { return leave(parent, path) })
}

// leave lets go of what is the caller's, and tells the parent that the agent
// serves at path. An error after the standard streams are gone can be logged
// only.
func leave(parent *os.File, path string) error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("letting go of the standard streams: %w", err)
		}
	}
	_, err = io.WriteString(parent, path+"\x00")
	err = errors.Join(err, parent.Close())
	if err != nil {
		return fmt.Errorf("telling the process that started the agent: %w", err)
	}
	return nil
}

// leaveDirectory makes the settings independent of the working directory.
func (set *settings) leaveDirectory(sys system) (err error) {
	if home := sys.getenv("HOME"); !filepath.IsAbs(home) {
		return usage("HOME=%s is not an absolute path", plain(home))
	}
	set.asking.Terminal = ""
	// A plain name is looked up in PATH, and stays.
	if strings.ContainsRune(set.asking.Askpass, filepath.Separator) {
		if set.asking.Askpass, err = filepath.Abs(set.asking.Askpass); err != nil {
			return err
		}
	}
	set.addr, err = set.addr.Abs()
	return err
}
