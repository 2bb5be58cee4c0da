package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/socket"
)

// server is the running agent: it serves until a signal or the end of its
// command.
type server struct {
	sys      system
	agent    *agent.Agent
	index    *keydir.Index
	listener *socket.Listener
	log      *slog.Logger
	path     string                  // of the socket
	tell     func(path string) error // when it can be used
	signals  chan os.Signal
}

// catchSignals takes over the signals of serve. That comes before the socket is
// made: one who sees it may send a signal, and it is to be removed in the end.
// SIGUSR1 is not among them if it is blocked: see blockForget.
func catchSignals(blocked bool) (signals chan os.Signal, done func()) {
	signals = make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if !blocked {
		signal.Notify(signals, syscall.SIGUSR1)
	}
	// A log that nobody reads any more (stderr is a closed pipe) must not end
	// the agent. Ignoring the signal would reach the command; catching does not.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return signals, func() {
		signal.Stop(signals)
		signal.Stop(broken)
	}
}

// run serves, with command if there is one.
func (s *server) run(ctx context.Context, command []string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- s.agent.Serve(ctx, s.listener) }()
	err := s.ready()
	switch {
	case err != nil:
	case len(command) > 0:
		err = s.withCommand(command)
	default:
		err = s.untilSignal(served)
	}
	s.notify(daemon.SdNotifyStopping)
	stop()
	return errors.Join(err, <-served)
}

// ready tells whoever started the agent that it can be used.
func (s *server) ready() error {
	s.log.Info("serving", "socket", s.path, "keys", len(s.index.Entries()))
	s.notify(daemon.SdNotifyReady)
	return s.tell(s.path)
}

// notify tells the service manager, if there is one.
func (s *server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("telling the service manager", "state", state, "cause", err)
	}
}

// untilSignal serves until it is told to end, or the listener fails.
func (s *server) untilSignal(served chan error) error {
	for {
		select {
		case caught := <-s.signals:
			switch caught {
			case syscall.SIGHUP:
				s.reload()
			case syscall.SIGUSR1:
				s.agent.Forget()
			default:
				s.log.Info("ending", "signal", caught)
				return nil
			}
		case err := <-served:
			served <- nil
			return fmt.Errorf("serving on %s: %w", s.path, err)
		}
	}
}

// reload reads all keys again and brings back those that clients removed.
func (s *server) reload() {
	s.index.Rescan()
	s.agent.Reload()
	s.log.Info("read the keys again", "keys", len(s.index.Entries()))
}

// notStarted is about the file of a command, not about that of an agent.
func notStarted(err error) error {
	var file *fs.PathError
	if !errors.As(err, &file) {
		return fmt.Errorf("running the command: %w", err)
	}
	err = fmt.Errorf("running the command %s: %s", plain(file.Path), file.Err)
	if errors.Is(file.Err, fs.ErrPermission) {
		return withHint(err, "may you run it? ls -l %s", shQuote(file.Path))
	}
	return err
}

// withCommand runs a command under the agent. Its status becomes ours.
func (s *server) withCommand(command []string) error {
	signal.Notify(s.signals, syscall.SIGQUIT, syscall.SIGUSR2)
	changed := make(chan os.Signal, 1) // the command, or another child
	signal.Notify(changed, syscall.SIGCHLD)
	defer signal.Stop(changed)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.sys.stdin, s.sys.stdout, s.sys.stderr
	cmd.Env = append(s.sys.without("SSH_AUTH_SOCK", "SSH_AGENT_PID"), "SSH_AUTH_SOCK="+s.path, "SSH_AGENT_PID="+strconv.Itoa(os.Getpid()))
	if err := withSignals(cmd.Start); err != nil {
		return notStarted(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for {
		select {
		case caught := <-s.signals:
			s.pass(cmd.Process, caught)
		case <-changed:
			suspendWith(cmd.Process)
		case err := <-exited:
			return commandStatus(err)
		}
	}
}

// pass gives a signal on to the command, but for SIGUSR1, which is for an agent
// and would end most commands. What is typed on the terminal (Ctrl-C, Ctrl-\)
// has reached it already.
func (s *server) pass(p *os.Process, caught os.Signal) {
	switch caught {
	case syscall.SIGUSR1:
		s.agent.Forget()
		return
	case syscall.SIGHUP:
		s.reload()
	}
	if (caught == syscall.SIGINT || caught == syscall.SIGQUIT) && inForeground() {
		return
	}
	if err := p.Signal(caught); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.log.Warn("passing on a signal", "signal", caught, "cause", err)
	}
}

// inForeground reports whether the terminal sends its signals to this process,
// and so to a command in the same process group.
func inForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// commandStatus is the exit status that a shell would give the command.
func commandStatus(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return fmt.Errorf("waiting for the command: %w", err)
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return statusError(exitSignal + int(status.Signal()))
	}
	return statusError(exit.ExitCode())
}
