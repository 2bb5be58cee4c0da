package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// caller returns a command that may start agents in the background. They end with
// the test.
func caller(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path := needs.Program(t, name)
	cmd := program(t)
	home := cmd.Dir
	t.Cleanup(func() { endForked(home) })
	cmd.Path, cmd.Args = path, append([]string{name}, args...)
	return cmd
}

// status returns the exit status of a command from the error of its Run.
func status(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		t.Fatal(err)
	}
	return exit.ExitCode()
}

// TestForkInShells checks that real shells can evaluate the output of serve --fork
// and -k. The directory's name contains characters that are special in each shell.
func TestForkInShells(t *testing.T) {
	t.Parallel()
	const posix = `eval "$(tpm-agent serve --fork %[1]s)"; echo "pid $SSH_AGENT_PID"; ssh-add -l; echo "status $?"
kill -0 $SSH_AGENT_PID && echo alive; S=$SSH_AUTH_SOCK; eval "$(tpm-agent serve -k %[1]s)"
test -e "$S" || echo ended; echo "${SSH_AUTH_SOCK-unset} ${SSH_AGENT_PID-unset}"`
	const csh = "eval `tpm-agent serve --fork %[1]s`; echo pid $SSH_AGENT_PID; ssh-add -l; echo status $status; " +
		"kill -0 $SSH_AGENT_PID && echo alive; set S=\"$SSH_AUTH_SOCK\"; eval `tpm-agent serve -k %[1]s`; " +
		"test -e \"$S\" || echo ended; if (! $?SSH_AUTH_SOCK && ! $?SSH_AGENT_PID) echo unset unset"
	const fish = `tpm-agent serve --fork %[1]s | source; echo pid $SSH_AGENT_PID; ssh-add -l; echo status $status
kill -0 $SSH_AGENT_PID; and echo alive; set S $SSH_AUTH_SOCK; tpm-agent serve -k %[1]s | source
test -e "$S"; or echo ended; set -q SSH_AUTH_SOCK; or set -q SSH_AGENT_PID; or echo unset unset`
	for _, test := range []struct{ shell, flag, form, script string }{
		{"dash", "-c", "", posix},
		{"bash", "-c", "-s", posix},
		{"csh", "-fc", "-c", csh},
		{"tcsh", "-fc", "--csh", csh},
		{"fish", "-c", "--fish", fish},
	} {
		t.Run(test.shell, func(t *testing.T) {
			cmd := caller(t, test.shell, test.flag, fmt.Sprintf(test.script, test.form))
			run := filepath.Join(cmd.Dir, `a 'b' $(c) !d`)
			if err := os.Mkdir(run, 0o700); err != nil {
				t.Fatal(err)
			}
			cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+run, "SHELL="+cmd.Path)
			out, err := cmd.CombinedOutput()
			want := regexp.MustCompile(`^Agent pid (\d+)\npid (\d+)\nThe agent has no identities\.\nstatus 1\nalive\nAgent pid (\d+) killed\nended\nunset unset\n$`)
			pids := want.FindStringSubmatch(string(out))
			if err != nil || pids == nil || pids[1] != pids[2] || pids[1] != pids[3] {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

// TestForkShellSyntax checks that without a flag, serve --fork prints commands for
// $SHELL.
func TestForkShellSyntax(t *testing.T) {
	t.Parallel()
	for shell, want := range map[string]string{
		"/bin/bash": "SSH_AUTH_SOCK=S; export SSH_AUTH_SOCK;\nSSH_AGENT_PID=P; export SSH_AGENT_PID;\necho Agent pid P;\n",
		"/bin/tcsh": "setenv SSH_AUTH_SOCK S;\nsetenv SSH_AGENT_PID P;\necho Agent pid P;\n",
		"/bin/fish": "set -gx SSH_AUTH_SOCK S;\nset -gx SSH_AGENT_PID P;\necho Agent pid P;\n",
	} {
		cmd := caller(t, "tpm-agent", "serve", "--fork")
		cmd.Env = append(cmd.Env, "SHELL="+shell)
		out, err := cmd.Output()
		got := strings.ReplaceAll(string(out), filepath.Join(cmd.Dir, "tpm-agent", "agent.sock"), "S")
		if got = regexp.MustCompile(`[0-9]+`).ReplaceAllString(got, "P"); err != nil || got != want {
			t.Errorf("%s: %v, %q, want %q", shell, err, out, want)
		}
	}
}

// forked runs cmd, which starts an agent in the background, and returns the agent's
// pid.
func forked(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	out, err := cmd.Output()
	m := regexp.MustCompile(`\necho Agent pid (\d+);\n$`).FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v, %q", err, out)
	}
	pid, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestForkDetaches checks that an agent in the background keeps nothing of its
// caller: no descriptor, directory, terminal or session. A process that waits for the
// end of a pipe must not wait for the agent.
func TestForkDetaches(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := caller(t, "tpm-agent", "serve", "--fork")
	cmd.Stdin, cmd.Stderr = w, w
	for range 7 { // 3 to 9
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	pid := forked(t, cmd)
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(longEnough)); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(r); err != nil || len(said) > 0 {
		t.Errorf("reading the caller's pipe to its end: %q, %v", said, err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the agent does not run: %v", err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("the agent is in session %d, want its own: %v", sid, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !regexp.MustCompile(`Max core file size +0 `).Match(limits) {
		t.Errorf("%v\n%s", err, limits)
	}
	if os.Getuid() != 0 {
		return // only root can read /proc of the agent
	}
	if at, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); at != "/" {
		t.Errorf("the agent's directory is %s, want /: %v", at, err)
	}
	for fd := range 3 {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); to != os.DevNull {
			t.Errorf("descriptor %d is %s, %v", fd, to, err)
		}
	}
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(open) < 4 {
		t.Errorf("%v, %v", open, err)
	}
	for _, fd := range open {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "pipe:") {
			t.Errorf("%s is %s", fd, to)
		}
	}
}

// TestForkRelativePaths checks that relative paths still work after the agent has
// changed its directory.
func TestForkRelativePaths(t *testing.T) {
	t.Parallel()
	cmd := caller(t, "sh", "-c", `set -e
mkdir keys
tpm-agent keygen -q -N 2468 -f keys/mine -C here
printf '#!/bin/sh\necho 2468\n' >askpass
chmod 700 askpass
export SSH_ASKPASS=./askpass SSH_ASKPASS_REQUIRE=force
eval "$(tpm-agent serve --fork --socket ./s --key-dir keys)"
echo "$SSH_AUTH_SOCK"
ssh-add -l
ssh-keygen -Y sign -n file -f keys/mine.pub askpass
eval "$(tpm-agent serve -k)"
test ! -e s`)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\n"+filepath.Join(cmd.Dir, "s")+"\n") || !strings.Contains(string(out), " here (") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestForkWithoutTerminal checks that an agent without a terminal asks on the
// client's terminal. If the client has none either, the agent refuses and keeps
// running.
func TestForkWithoutTerminal(t *testing.T) {
	t.Parallel()
	cmd := caller(t, "sh", "-c", `set -e
mkdir -m 700 .ssh
tpm-agent keygen -q -N 2468 -f .ssh/id_ecdsa
eval "$(tpm-agent serve --fork --prompt terminal)"
! setsid ssh-keygen -Y sign -n file -f .ssh/id_ecdsa.pub .ssh/id_ecdsa.pub </dev/null
ssh-keygen -Y sign -n file -f .ssh/id_ecdsa.pub .ssh/id_ecdsa.pub
eval "$(tpm-agent serve -k)"`)
	s := sit(t, cmd)
	s.WaitFor("agent refused operation")
	s.WaitFor("Enter PIN for ")
	s.Type("2468\n")
	s.WaitFor("Write signature to ")
	s.WaitFor("killed")
	s.ends(0)
}

// TestForkFails checks that the caller sees why an agent cannot start.
func TestForkFails(t *testing.T) {
	t.Parallel()
	first := program(t, "serve")
	path := filepath.Join(first.Dir, "tpm-agent", "agent.sock")
	startAndWait(t, first, path)
	for _, test := range []struct {
		args   []string
		env    string
		status int
		says   string
	}{
		{[]string{"--socket", path}, "", 1, fmt.Sprintf("^tpm-agent: starting the agent: .* in use by process %d\nhint: use it .*\n$", first.Process.Pid)},
		{[]string{"--no-such-option"}, "", 2, "^tpm-agent: unknown flag --no-such-option\nhint: see tpm-agent serve --help\n$"},
		{[]string{"-s", "-c"}, "", 2, "^tpm-agent: only one of .*\nhint: .*\n$"},
		{[]string{"-k", "--fork"}, "", 2, "^tpm-agent: -k ends an agent: .*\nhint: .*\n$"},
		{[]string{"--key-dir", ""}, "", 2, "^tpm-agent: --key-dir: the name is empty\nhint: .*\n$"},
		{[]string{"--upstream", path, "--socket", path + "2", "--upstream", path + "2"}, "", 2, "^tpm-agent: --upstream .*2: that is the socket of this agent itself\nhint: .*\n$"},
		{[]string{"--log-level", "loud"}, "", 2, "^tpm-agent: --log-level loud: must be .*\nhint: .*\n$"},
		{[]string{"-t", "soon"}, "", 2, `^tpm-agent: -t: "soon" is not a time: .*` + "\nhint: .*\n$"},
		{[]string{"--tpm", "none"}, "", 2, "^tpm-agent: --tpm: .*\nhint: .*\n$"},
		{nil, "SSH_ASKPASS_REQUIRE=perhaps", 2, "^tpm-agent: SSH_ASKPASS_REQUIRE=perhaps: .*\nhint: .*\n$"},
		{nil, "XDG_RUNTIME_DIR=", 1, "^tpm-agent: XDG_RUNTIME_DIR is not set.*\nhint: .*--socket PATH\n$"},
		{nil, "XDG_RUNTIME_DIR=/dev/null", 1, "^tpm-agent: starting the agent: .*not a directory\n$"},
		{nil, "HOME=here", 2, "^tpm-agent: HOME=here is not an absolute path\nhint: .*\n$"},
	} {
		cmd := caller(t, "tpm-agent", append([]string{"serve", "--fork"}, test.args...)...)
		if test.env != "" {
			cmd.Env = append(cmd.Env, test.env)
		}
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		got := status(t, cmd.Run())
		if got != test.status || stdout.Len() > 0 || !regexp.MustCompile(test.says).Match(stderr.Bytes()) {
			t.Errorf("%q %s: status %d, stdout %q, stderr\n%s", test.args, test.env, got, stdout.Bytes(), stderr.Bytes())
		}
	}
}

// startAndWait starts an agent and waits until it listens at path.
func startAndWait(t *testing.T, cmd *exec.Cmd, path string) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return
		}
	}
	t.Fatalf("no agent listens at %s", path)
}

// TestForkWithoutReader checks that the agent ends if it cannot tell the shell where
// it is.
func TestForkWithoutReader(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()

	// The shell has closed the pipe.
	cmd := caller(t, "tpm-agent", "serve", "--fork")
	cmd.Stdout = w
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if got := status(t, cmd.Run()); got != 1 || !strings.Contains(stderr.String(), "telling the shell where the agent is: ") {
		t.Errorf("status %d, %s", got, stderr.Bytes())
	}
	if left, err := os.ReadDir(filepath.Join(cmd.Dir, "tpm-agent")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	// The process that started the agent has ended.
	cmd = caller(t, "tpm-agent", "serve", "--forked")
	cmd.ExtraFiles = []*os.File{w}
	if got := status(t, cmd.Run()); got != 1 {
		t.Errorf("status %d", got)
	}
	if left, err := os.ReadDir(filepath.Join(cmd.Dir, "tpm-agent")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	// A user gives the internal flag --forked.
	cmd = caller(t, "tpm-agent", "serve", "--forked")
	if out, err := cmd.CombinedOutput(); status(t, err) != 2 || !strings.Contains(string(out), "hint: tpm-agent serve --fork\n") {
		t.Errorf("%v, %s", err, out)
	}
}

// TestForkWithSocket checks that --fork is refused if a service manager passes a
// socket.
func TestForkWithSocket(t *testing.T) {
	t.Parallel()
	cmd := caller(t, "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec tpm-agent serve --fork`)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(cmd.Dir, "passed"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	if out, err := cmd.CombinedOutput(); status(t, err) != 2 || !strings.Contains(string(out), "--fork cannot be used when the service manager passes a socket") {
		t.Errorf("%v, %s", err, out)
	}
}
