package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/socket"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// A Go program cannot fork: `serve --fork` starts itself again, with --forked.
// The child does all that serve does, with the caller's stderr, until it
// serves. Then it lets go of everything that is the caller's and says so
// through a pipe; only then the parent tells the shell. So an agent that cannot
// start says why where it was started, with its exit status.

// parentFD is the pipe's descriptor in the child.
const parentFD = 3

// fork starts the agent in the background and prints what the shell must run to
// use it.
func fork(sys *term.System, shell term.Shell) error {
	if passed, err := socket.Inherited(); err != nil || passed != nil {
		if passed != nil {
			err = errors.Join(term.Usage("--fork cannot be used when the service manager passes a socket"), passed.Close())
		}
		return err
	}
	// If the shell is gone, this process must first end the agent, which nothing
	// else knows of.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)
	agent, path, err := startForked(sys)
	if err != nil {
		return err
	}
	pid := agent.Process.Pid
	_, err = fmt.Fprintf(sys.Stdout, "%s\n%s\necho Agent pid %d;\n",
		shell.Set("SSH_AUTH_SOCK", path), shell.Set("SSH_AGENT_PID", strconv.Itoa(pid)), pid)
	if err != nil {
		_ = agent.Process.Signal(syscall.SIGTERM)
		_ = agent.Wait()
		return fmt.Errorf("telling the shell where the agent is: %w", err)
	}
	return nil
}

// startForked starts the child and waits until it serves at path.
func startForked(sys *term.System) (agent *exec.Cmd, path string, err error) {
	defer func() {
		var status term.StatusError
		if err != nil && !errors.As(err, &status) {
			err = fmt.Errorf("starting the agent: %w", err)
		}
	}()
	program, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	agent = exec.Command(program, append(os.Args[1:len(os.Args):len(os.Args)], "--forked")...)
	agent.Args[0] = os.Args[0]
	agent.Env = sys.Without("JOURNAL_STREAM")
	agent.Stderr = sys.Stderr
	agent.ExtraFiles = []*os.File{w}
	agent.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = errors.Join(keepDescriptors(), agent.Start())
	w.Close()
	if err != nil {
		return nil, "", err
	}
	said, err := io.ReadAll(r)
	path, ready := strings.CutSuffix(string(said), "\x00")
	if err == nil && ready {
		return agent, path, nil
	}
	err = agent.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return nil, "", term.StatusError(exit.ExitCode()) // it has said why
	}
	return nil, "", fmt.Errorf("it ended before it could be used: %w", err)
}

// keepDescriptors keeps what this process has inherited, beside the standard
// streams, from its children. Another process may be waiting for the other end of
// a pipe, which an agent would hold open for days.
func keepDescriptors() error {
	open, err := os.ReadDir("/proc/self/fd")
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

// parentPipe takes the pipe to the process that has started this one. Call it
// before anything is opened.
func parentPipe() (*os.File, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(parentFD, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, term.Hint(term.Usage("--forked is what --fork uses within"), "tpm-agent serve --fork")
	}
	unix.CloseOnExec(parentFD)
	return os.NewFile(parentFD, "parent"), nil
}

// leave lets go of what is the caller's, and tells the parent that the agent
// serves at path. An error after the standard streams are gone can only be logged.
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
	if err := errors.Join(err, parent.Close()); err != nil {
		return fmt.Errorf("telling the process that started the agent: %w", err)
	}
	return nil
}

// endTime bounds the wait for an agent to end: it gives the requests in flight
// ten seconds.
const endTime = 15 * time.Second

// kill ends the agent that SSH_AGENT_PID names, and tells the shell to forget it.
// Nothing is printed for an agent that keeps running.
func kill(sys *term.System, shell term.Shell) error {
	value := sys.Getenv("SSH_AGENT_PID")
	if value == "" {
		return term.Hint(errors.New("SSH_AGENT_PID is not set: which agent to end is not known"),
			"tpm-agent serve --fork tells the shell; the service's agent ends with: systemctl --user stop tpm-agent.socket tpm-agent.service")
	}
	pid, err := strconv.ParseInt(value, 10, 32)
	if err != nil || pid < 2 {
		return fmt.Errorf("SSH_AGENT_PID=%s: not the number of a process", term.Plain(value))
	}
	if err := endAgent(int(pid)); err != nil {
		return fmt.Errorf("ending agent %d: %w", pid, err)
	}
	_, err = fmt.Fprintf(sys.Stdout, "%s\n%s\necho Agent pid %d killed;\n", shell.Unset("SSH_AUTH_SOCK"), shell.Unset("SSH_AGENT_PID"), pid)
	return err
}

// endAgent ends a tpm-agent of this user and waits until it is gone. The descriptor
// stands for the process that is checked: if that ends and another process gets its
// number, the other one gets no signal.
func endAgent(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return errors.New("there is no such process any more")
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := checkAgent(pid); err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return awaitEnd(fd, endTime)
}

// awaitEnd waits until the process behind a pidfd has ended.
func awaitEnd(fd int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return fmt.Errorf("it was told to end, and still runs after %s; one that runs a command ends with that", term.Duration(limit))
		default:
			return err
		}
	}
}

// checkAgent makes sure that a process is an agent of this user: SSH_AGENT_PID may
// be old, and its number may be another process's by now. The agent's executable
// cannot be read, so what counts is its name and command line.
func checkAgent(pid int) error {
	proc := fmt.Sprintf("/proc/%d/", pid)
	comm, err := os.ReadFile(proc + "comm")
	if err != nil {
		return err
	}
	own, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return err
	}
	line, err := os.ReadFile(proc + "cmdline")
	if err != nil {
		return err
	}
	if name := string(bytes.TrimSpace(comm)); name != "tpm-agent" && !bytes.Equal(comm, own) || !serves(line) {
		return fmt.Errorf("the process of that number is no tpm-agent serve (it is %s)", term.Plain(name))
	}
	uid, err := ownerOf(proc)
	if err == nil && uid != os.Getuid() {
		return fmt.Errorf("it belongs to another user (uid %d)", uid)
	}
	return err
}

// serves reports whether a command line, as /proc has it, is that of an agent.
func serves(line []byte) bool {
	words := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	for i := 1; i < len(words); i++ {
		switch {
		case words[i] == "--tpm":
			i++
		case !strings.HasPrefix(words[i], "-"):
			return words[i] == "serve"
		}
	}
	return false
}

// ownerOf returns the real uid of a process. The owner of its directory in /proc
// would not do: it is root if other processes cannot look into the process.
func ownerOf(proc string) (uid int, err error) {
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(status), "\nUid:")
	_, err = fmt.Sscan(line, &uid)
	return uid, err
}
