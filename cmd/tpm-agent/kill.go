package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endTime bounds the wait for an agent to end: it gives the requests in flight
// ten seconds.
const endTime = 15 * time.Second

// runKill ends the agent that SSH_AGENT_PID names, and tells the shell to
// forget it. Nothing is printed for an agent that goes on.
func runKill(sys system, form shell) error {
	value := sys.getenv("SSH_AGENT_PID")
	if value == "" {
		return withHint(errors.New("SSH_AGENT_PID is not set: which agent to end is not known"),
			"tpm-agent serve --fork tells the shell; the service's agent ends with: systemctl --user stop tpm-agent.socket tpm-agent.service")
	}
	pid, err := strconv.ParseInt(value, 10, 32)
	if err != nil || pid < 2 {
		return fmt.Errorf("SSH_AGENT_PID=%s: not the number of a process", plain(value))
	}
	if err := endAgent(int(pid)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(sys.stdout, "%s\n%s\necho Agent pid %d killed;\n", form.unset("SSH_AUTH_SOCK"), form.unset("SSH_AGENT_PID"), pid)
	return err
}

// endAgent ends a tpm-agent of this user and waits until it is gone. The
// descriptor stands for the process that was looked at: should that end and
// its number be given to another one, the other one gets no signal.
func endAgent(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending agent %d: there is no such process any more", pid)
	}
	if err != nil {
		return fmt.Errorf("ending agent %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := checkAgent(pid); err != nil {
		return fmt.Errorf("ending agent %d: %w", pid, err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending agent %d: %w", pid, err)
	}
	if err := awaitEnd(fd, endTime); err != nil {
		return fmt.Errorf("ending agent %d: %w", pid, err)
	}
	return nil
}

// awaitEnd waits until the process behind a pidfd has ended.
func awaitEnd(fd int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it was told to, and goes on after %s; one that runs a command ends with that", duration(limit))
		default:
			return nil
		}
	}
}

// checkAgent makes sure that a process is an agent of this user: SSH_AGENT_PID
// may be old, and its number another process's by now. The agent lets nobody
// look at its executable, so what counts is its name and command line.
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
		return fmt.Errorf("the process of that number is no tpm-agent serve (it is %s)", plain(name))
	}
	uid, err := ownerOf(proc)
	if err == nil && uid != os.Getuid() {
		return fmt.Errorf("it is of another user (uid %d)", uid)
	}
	return err
}

// serves reports whether a command line, as /proc has it, is that of an agent.
func serves(line []byte) bool {
	words := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	cmd, _, err := newRootCmd(system{}).Find(words[1:])
	return err == nil && cmd.Name() == "serve"
}

// ownerOf is the real uid of a process. The owner of its directory in /proc
// would not do: a process that lets nobody look into it belongs to root there.
func ownerOf(proc string) (uid int, err error) {
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Uid:" {
			return strconv.Atoi(fields[1])
		}
	}
	return 0, fmt.Errorf("%sstatus names no user", proc)
}
