package main

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A command may suspend itself alone, as ssh does with ~^Z and a shell with
// suspend. The shell that the user is to be back in waits for the agent, which
// it has started, and not for the command: the agent has to stop as well.

// suspendWith stops this process if the command has stopped and there is a
// terminal to go back to, and continues the command when it is continued.
func suspendWith(command *os.Process) {
	if !hasStopped(command.Pid) {
		return
	}
	tty, err := os.OpenFile(terminal, os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer tty.Close()
	stopHere()
	giveTerminal(int(tty.Fd()), command.Pid)
	_ = command.Signal(syscall.SIGCONT) // it may have ended meanwhile
}

// hasStopped reports whether a child has stopped since it was last asked, and
// not been continued.
func hasStopped(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WNOHANG, nil)
	return err == nil && info.Signo != 0
}

// stopHere returns when this process was continued; at once if there is nobody
// who could do that, for then the kernel ignores this signal. It is for the thread
// that sends it: one for the process could be taken by another thread, after
// this one has gone on.
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
