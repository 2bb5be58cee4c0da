package prompt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/peer"
)

// Settings apply to all ways.
type Settings struct {
	Environ []string      // of the programs that are run
	Timeout time.Duration // for one dialog
	Grace   time.Duration // from SIGTERM to SIGKILL for a program that does not end
}

// Limit returns a context that ends after the time for one dialog.
func (s Settings) Limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("%w within %v", ask.ErrNoAnswer, s.Timeout))
}

// Program is a program that asks the user. It runs in a session of its own, so
// that it cannot meddle with the agent's terminal and can be ended together
// with everything that it started. It inherits no descriptors.
type Program struct {
	Path    string
	Args    []string
	Environ []string
	Stdin   *os.File      // nil: a pipe, Process.In
	Grace   time.Duration // from SIGTERM to SIGKILL; 0: no SIGKILL
}

// Process is a running Program.
type Process struct {
	In, Out *os.File // its standard input, if that is a pipe, and output

	cmd       *exec.Cmd
	running   context.Context // ends when the program has to
	stop      context.CancelCauseFunc
	wake      func() bool // undoes the end of reads and writes with running
	complaint complaint
}

// Start starts the program. When ctx ends it gets SIGTERM, and SIGKILL if it does
// not end.
func (p Program) Start(ctx context.Context) (*Process, error) {
	r := &Process{}
	r.running, r.stop = context.WithCancelCause(ctx)
	r.cmd = exec.CommandContext(r.running, p.Path, p.Args...)
	r.cmd.Env, r.cmd.Stderr = p.Environ, &r.complaint
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	r.cmd.Cancel = func() error { return syscall.Kill(-r.cmd.Process.Pid, syscall.SIGTERM) }
	r.cmd.WaitDelay = p.Grace
	if err := r.start(p.Stdin); err != nil {
		r.stop(nil)
		_ = r.In.Close() // closing nil is an error, no more
		_ = r.Out.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, Unusable("%w", err)
	}
	r.wake = context.AfterFunc(r.running, func() {
		_ = r.In.SetWriteDeadline(time.Unix(1, 0))
		_ = r.Out.SetReadDeadline(time.Unix(1, 0))
	})
	return r, nil
}

// start connects the program to pipes and starts it.
func (p *Process) start(stdin *os.File) (err error) {
	if stdin == nil {
		if stdin, p.In, err = os.Pipe(); err != nil {
			return err
		}
		defer stdin.Close()
	}
	var stdout *os.File
	if p.Out, stdout, err = os.Pipe(); err != nil {
		return err
	}
	defer stdout.Close()
	p.cmd.Stdin, p.cmd.Stdout = stdin, stdout
	// Go marks the descriptors that it opens, but not those that this process
	// inherited.
	if unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) != nil {
		closeOnExec()
	}
	return p.cmd.Start()
}

// closeOnExec marks descriptors before Linux 5.11. It cannot ask /proc/self/fd,
// which an undumpable process cannot read.
func closeOnExec() {
	for fd := 3; fd < 1024; fd++ {
		unix.CloseOnExec(fd)
	}
}

// Stop tells the program to end, for a cause that End returns.
func (p *Process) Stop(cause error) { p.stop(cause) }

// StopAfter calls Stop after a time, unless the timer is stopped first.
func (p *Process) StopAfter(limit time.Duration, cause error) *time.Timer {
	return time.AfterFunc(limit, func() { p.stop(cause) })
}

// End closes the program's input and waits for its end. It returns the cause if
// the program was stopped, or an [ExitError]. What a stopped program started is
// killed; what another one left running may be a service for others.
func (p *Process) End() error {
	_ = p.In.Close()
	err := p.cmd.Wait()
	if p.running.Err() != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		err = context.Cause(p.running)
	} else if status, ok := errors.AsType[*exec.ExitError](err); ok {
		first, _, _ := strings.Cut(strings.TrimSpace(string(p.complaint)), "\n")
		err = &ExitError{Plain(first), status}
	}
	p.wake()
	p.stop(nil)
	_ = p.In.Close()
	_ = p.Out.Close()
	return err
}

// complaint keeps the first octets that are written to it.
type complaint []byte

func (c *complaint) Write(data []byte) (int, error) {
	*c = append(*c, data[:min(len(data), maxPlain-len(*c))]...)
	return len(data), nil
}

// ExitError says that a program failed or was killed.
type ExitError struct {
	Complaint string // the first line of its standard error
	status    *exec.ExitError
}

func (e *ExitError) Error() string {
	if e.Complaint == "" {
		return e.status.Error()
	}
	return e.status.Error() + ": " + e.Complaint
}

// Run runs a program that prints the answer, for at most the time of one dialog.
// It returns a [Line], which the caller wipes.
func (s Settings) Run(ctx context.Context, p Program) ([]byte, error) {
	ctx, done := s.Limit(ctx)
	defer done()
	p.Grace = s.Grace
	r, err := p.Start(ctx)
	if err != nil {
		return nil, err
	}
	_ = r.In.Close()
	// The answer is read into one buffer of known size, so that no copies of a
	// PIN stay behind.
	buf := make([]byte, MaxAnswer+len("\r\n")+1)
	n, err := io.ReadFull(r.Out, buf)
	if err == nil {
		r.Stop(ErrTooLong)
	}
	if err := r.End(); err != nil {
		clear(buf)
		return nil, err
	}
	return Line(buf[:n])
}

// errNoDisplay is the error for a window without a display to open it on.
var errNoDisplay = errors.New("there is no display")

// Display returns the environment for a program that opens a window, and an error
// if there is no display. If the agent's own environment names none, the client's
// may: an agent that systemd starts is often older than the user's desktop.
func (s Settings) Display(q ask.Question) (environ []string, err error) {
	named := func(environ []string) bool {
		return Lookup(environ, "DISPLAY") != "" || Lookup(environ, "WAYLAND_DISPLAY") != ""
	}
	if named(s.Environ) {
		return s.Environ, nil
	}
	if _, err := Client(q); err == nil {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", q.Peer.PID))
		if theirs := strings.Split(string(data), "\x00"); named(theirs) {
			return borrowDisplay(s.Environ, theirs, "/tmp/.X11-unix")
		}
	}
	return s.Environ, errNoDisplay
}

// borrowDisplay adds the client's display to environ. It takes nothing else,
// and only displays of this machine whose sockets, for X11 in the directory
// x11, belong to the user, or to root, who also runs X servers: the owner of a
// display can say yes to everything.
func borrowDisplay(environ, client []string, x11 string) ([]string, error) {
	err := errNoDisplay
	runtime := Lookup(environ, "XDG_RUNTIME_DIR")
	if runtime == "" {
		runtime = privateDir(Lookup(client, "XDG_RUNTIME_DIR"))
	}
	if display := Lookup(client, "WAYLAND_DISPLAY"); waylandListens(runtime, display) {
		environ = Setenv(Setenv(environ, "WAYLAND_DISPLAY", display), "XDG_RUNTIME_DIR", runtime)
		err = nil
	}
	if display := Lookup(client, "DISPLAY"); x11Listens(x11, display) {
		environ = Setenv(environ, "DISPLAY", display)
		if cookies := Lookup(client, "XAUTHORITY"); filepath.IsAbs(cookies) {
			environ = Setenv(environ, "XAUTHORITY", cookies)
		}
		err = nil
	}
	return environ, err
}

// privateDir returns dir if it is a directory that only the user can enter, and
// "" otherwise.
func privateDir(dir string) string {
	info, err := os.Lstat(dir)
	if err != nil || !filepath.IsAbs(dir) || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || owner(info) != os.Geteuid() {
		return ""
	}
	return dir
}

// waylandListens reports whether a compositor of the user listens at a
// WAYLAND_DISPLAY: a path, or a name in the runtime directory.
func waylandListens(runtime, display string) bool {
	if !filepath.IsAbs(display) {
		if display == "" || runtime == "" || strings.ContainsRune(display, '/') {
			return false
		}
		display = filepath.Join(runtime, display)
	}
	return isSocket(display, os.Geteuid())
}

// x11Listens reports whether an X server of the user or of root listens at a
// DISPLAY of this machine, :N or :N.SCREEN.
func x11Listens(dir, display string) bool {
	number, local := strings.CutPrefix(strings.TrimPrefix(display, "unix"), ":")
	number, screen, _ := strings.Cut(number, ".")
	if !local || number == "" || strings.Trim(number+screen, "0123456789") != "" {
		return false
	}
	return isSocket(filepath.Join(dir, "X"+number), os.Geteuid(), 0)
}

// isSocket reports whether path is a socket of one of the users.
func isSocket(path string, users ...int) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket && slices.Contains(users, owner(info))
}

// owner returns the user that a file belongs to, or -1.
func owner(info os.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

// Lookup returns the last value of name, which is the one that counts.
func Lookup(environ []string, name string) (value string) {
	for _, entry := range environ {
		if rest, ok := strings.CutPrefix(entry, name+"="); ok {
			value = rest
		}
	}
	return value
}

// Setenv returns environ with one value for name, or none if that is empty.
func Setenv(environ []string, name, value string) []string {
	changed := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		return strings.HasPrefix(entry, name+"=")
	})
	if value != "" {
		changed = append(changed, name+"="+value)
	}
	return changed
}

// Client returns the process that caused a question. It returns an error unless
// that is a process of this user on this machine: then what /proc says about
// it is as reliable as the user's own programs.
func Client(q ask.Question) (peer.Process, error) {
	switch {
	case q.Peer.PID <= 0:
		return peer.Process{}, errors.New("the client is not known")
	case q.Use.Forwarded:
		return peer.Process{}, errors.New("the request was forwarded from another machine")
	}
	client, ok := peer.LookAt(q.Peer.PID)
	switch {
	case !ok:
		return client, errors.New("the client has gone")
	case q.Peer.UID != os.Geteuid() || int(client.UID) != os.Geteuid():
		return client, errors.New("the client belongs to another user")
	}
	return client, nil
}
