package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// catchSignals takes over the signals of serve, until stop is called. It comes
// before the socket is made: a program that sees the socket may send a signal, and
// the socket must be removed in the end.
func (d *daemon) catchSignals() (stop func()) {
	d.signals = make(chan os.Signal, 16)
	signal.Notify(d.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1)
	d.forgetting = &forgetting{pending: make(chan os.Signal, 1)}
	signal.Notify(d.forgetting.pending, syscall.SIGUSR1)
	// A log whose reader is gone (stderr is a closed pipe) must not end the
	// agent. Ignoring the signal would reach the command; catching does not.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() {
		signal.Stop(d.signals)
		signal.Stop(d.forgetting.pending)
		signal.Stop(broken)
	}
}

// serve serves, with the command if there is one.
func (d *daemon) serve(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- d.agent.Serve(ctx, d.listener) }()
	d.log.Info("serving", "socket", d.path, "keys", len(d.keys.index.Entries()))
	d.notify(systemd.SdNotifyReady)
	err := d.tell(d.path)
	switch {
	case err != nil:
	case len(d.Command) > 0:
		err = d.withCommand()
	default:
		err = d.untilSignal(served)
	}
	d.notify(systemd.SdNotifyStopping)
	stop()
	return errors.Join(err, <-served)
}

// notify tells the service manager, if there is one.
func (d *daemon) notify(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		d.log.Warn("telling the service manager", "state", state, "cause", err)
	}
}

// untilSignal serves until a signal, or until the listener fails.
func (d *daemon) untilSignal(served chan error) error {
	for {
		select {
		case caught := <-d.signals:
			if !d.obey(caught) {
				d.log.Info("ending", "signal", caught)
				return nil
			}
		case err := <-served:
			served <- nil
			return fmt.Errorf("serving on %s: %w", d.path, err)
		}
	}
}

// obey does what a signal asks the agent for, unless that is to end.
func (d *daemon) obey(caught os.Signal) bool {
	switch caught {
	case syscall.SIGHUP: // read all keys again, also those that clients removed
		d.keys.index.Rescan()
		d.agent.Reload()
		d.log.Info("read the keys again", "keys", len(d.keys.index.Entries()))
	case syscall.SIGUSR1:
		d.forgetting.check()
	default:
		return false
	}
	return true
}

// forgetting makes the agent forget on SIGUSR1. A client that sends the signal
// and then a request must not find what was to be forgotten, so check looks for
// the signal before each request.
type forgetting struct {
	forget  func()
	mu      sync.Mutex // held while the agent forgets
	pending chan os.Signal
}

// check forgets if the signal was sent before this moment. The signal may still
// be in the kernel, in the runtime or in the channel.
func (f *forgetting) check() {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent := takePending()
	flushed := make(chan os.Signal, 1)
	signal.Notify(flushed, syscall.SIGUSR1)
	signal.Stop(flushed) // returns when the runtime has delivered what it caught
	select {
	case <-f.pending:
		sent = true
	default:
	}
	if sent {
		f.forget()
	}
}

// takePending takes a SIGUSR1 that no thread has taken yet.
func takePending() bool {
	set, now := uint64(1)<<(unix.SIGUSR1-1), unix.Timespec{}
	taken, _, _ := unix.RawSyscall6(unix.SYS_RT_SIGTIMEDWAIT,
		uintptr(unsafe.Pointer(&set)), 0, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(set), 0, 0)
	return taken == uintptr(unix.SIGUSR1)
}

// withCommand runs the command under the agent. Its status becomes ours.
func (d *daemon) withCommand() error {
	signal.Notify(d.signals, syscall.SIGQUIT, syscall.SIGUSR2)
	changed := make(chan os.Signal, 1) // the command, or another child
	signal.Notify(changed, syscall.SIGCHLD)
	defer signal.Stop(changed)
	cmd := exec.Command(d.Command[0], d.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.sys.Stdin, d.sys.Stdout, d.sys.Stderr
	cmd.Env = append(d.sys.Without("SSH_AUTH_SOCK", "SSH_AGENT_PID"), "SSH_AUTH_SOCK="+d.path, "SSH_AGENT_PID="+strconv.Itoa(os.Getpid()))
	if err := cmd.Start(); err != nil {
		return notStarted(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for {
		select {
		case caught := <-d.signals:
			d.pass(cmd.Process, caught)
		case <-changed:
			suspendWith(cmd.Process)
		case err := <-exited:
			return commandStatus(err)
		}
	}
}

// notStarted returns an error about the file of a command, not that of an agent.
func notStarted(err error) error {
	var file *fs.PathError
	if !errors.As(err, &file) {
		return fmt.Errorf("running the command: %w", err)
	}
	err = fmt.Errorf("running the command %s: %s", term.Plain(file.Path), file.Err)
	if errors.Is(file.Err, fs.ErrPermission) {
		return term.Hint(err, "check that you may run it: ls -l %s", term.Quote(file.Path))
	}
	return err
}

// pass passes a signal on to the command, except SIGUSR1, which is for an agent
// and would end most commands. What is typed on the terminal (Ctrl-C, Ctrl-\)
// has reached it already.
func (d *daemon) pass(p *os.Process, caught os.Signal) {
	d.obey(caught)
	typed := caught == syscall.SIGINT || caught == syscall.SIGQUIT
	if caught == syscall.SIGUSR1 || typed && inForeground() {
		return
	}
	if err := p.Signal(caught); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.log.Warn("passing on a signal", "signal", caught, "cause", err)
	}
}

// openTerminal opens the terminal that this process was started on.
func openTerminal() (*os.File, error) {
	return os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
}

// inForeground reports whether the terminal sends its signals to this process,
// and so to a command in the same process group.
func inForeground() bool {
	tty, err := openTerminal()
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// commandStatus returns the exit status that a shell would give the command.
func commandStatus(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return fmt.Errorf("waiting for the command: %w", err)
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return term.StatusError(128 + int(status.Signal()))
	}
	return term.StatusError(exit.ExitCode())
}

// suspendWith stops this process if the command has stopped itself, as ssh does
// with ~^Z and a shell with suspend, and there is a terminal to go back to: the
// user's shell waits for the agent, which it has started, and not for the command.
// When the agent is continued, so is the command.
func suspendWith(command *os.Process) {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, command.Pid, &info, unix.WSTOPPED|unix.WNOHANG, nil)
	if err != nil || info.Signo == 0 {
		return // not stopped, or continued since
	}
	tty, err := openTerminal()
	if err != nil {
		return
	}
	defer tty.Close()
	stopHere()
	giveTerminal(int(tty.Fd()), command.Pid)
	_ = command.Signal(syscall.SIGCONT) // it may have ended meanwhile
}

// stopHere returns when this process was continued; at once if no process could do
// that, for then the kernel ignores this signal. The signal is for the thread that
// sends it: one for the process could be taken by another thread later.
func stopHere() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGTSTP)
}

// giveTerminal puts a child that leads a process group of its own, as shells do,
// in the foreground, if that is where this process is.
func giveTerminal(tty, pid int) {
	group, err := unix.Getpgid(pid)
	if err != nil || group == unix.Getpgrp() {
		return
	}
	if front, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP); err == nil && front == unix.Getpgrp() {
		_ = unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, group)
	}
}
