// Package child runs the programs that ask the user something: askpass
// programs and pinentries. Each runs in a session of its own, with none of this
// process's descriptors, and is ended with all that it started and that has not
// left the session.
package child

import (
	"context"
	"math"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is [exec.CommandContext] for a program in a session of its own, so
// that it can be ended with all that it started, and so that it cannot meddle
// with this process's terminal. When ctx ends it is told to go by SIGTERM, and
// grace later by SIGKILL. It is started by [Start] and awaited by [Wait].
func Command(ctx context.Context, grace time.Duration, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	return cmd
}

// Start starts a [Command] with no descriptor but its standard ones.
func Start(cmd *exec.Cmd) error {
	closeOnExec()
	return cmd.Start()
}

// Wait waits for a [Command] that was started with ctx. If ctx has ended it
// ends what the program left behind and did not go when it was told.
func Wait(ctx context.Context, cmd *exec.Cmd) error {
	err := cmd.Wait()
	if ctx.Err() != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return err
}

// closeOnExec marks every descriptor from 3 on, so that the child gets none of
// them: Go marks its own, but not those that the agent was started with. It
// asks the kernel and not /proc/self/fd, which a process that may not be traced
// (PR_SET_DUMPABLE) cannot read.
func closeOnExec() {
	if unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		limit.Cur = 1024
	}
	for fd := 3; fd < int(min(limit.Cur, 1<<16)); fd++ { // before Linux 5.11
		unix.CloseOnExec(fd)
	}
}

// Complaint keeps the beginning of what a program prints on stderr and lets the
// rest go by. The zero value is ready for use as [exec.Cmd]'s Stderr.
type Complaint struct{ head []byte }

// Write takes data and never fails.
func (c *Complaint) Write(data []byte) (int, error) {
	c.head = append(c.head, data[:min(len(data), 256-len(c.head))]...)
	return len(data), nil
}

// Line is the first line, cut off after 256 octets, as the program wrote it:
// who shows it makes it harmless first.
func (c *Complaint) Line() string {
	first, _, _ := strings.Cut(strings.TrimSpace(string(c.head)), "\n")
	return first
}
