package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// killing runs serve -k with SSH_AGENT_PID set to pid.
func killing(t *testing.T, pid string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := program(t, append([]string{"serve", "-k"}, args...)...)
	cmd.Env = append(cmd.Env, "SSH_AGENT_PID="+pid)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	return string(out), said.String(), status(t, err)
}

// TestKill checks that serve -k waits until the agent and its socket are gone, even if
// the agent's parent has not waited for it yet.
func TestKill(t *testing.T) {
	t.Parallel()
	agent := program(t, "serve")
	path := filepath.Join(agent.Dir, "tpm-agent", "agent.sock")
	startAndWait(t, agent, path)
	pid := strconv.Itoa(agent.Process.Pid)
	stdout, stderr, code := killing(t, pid)
	if want := "unset SSH_AUTH_SOCK;\nunset SSH_AGENT_PID;\necho Agent pid " + pid + " killed;\n"; stdout != want || stderr != "" || code != 0 {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket still exists: %v", err)
	}
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	stdout, stderr, code = killing(t, pid)
	if stdout != "" || !strings.Contains(stderr, "there is no such process any more") || code != 1 {
		t.Errorf("the second serve -k: %d, %q, %q", code, stdout, stderr)
	}
}

// TestKillShellSyntax checks that serve -k prints commands for the shell of a flag.
func TestKillShellSyntax(t *testing.T) {
	t.Parallel()
	for form, want := range map[string]string{
		"-s":     "unset SSH_AUTH_SOCK;\nunset SSH_AGENT_PID;\necho Agent pid P killed;\n",
		"-c":     "unsetenv SSH_AUTH_SOCK;\nunsetenv SSH_AGENT_PID;\necho Agent pid P killed;\n",
		"--fish": "set -e SSH_AUTH_SOCK;\nset -e SSH_AGENT_PID;\necho Agent pid P killed;\n",
	} {
		pid := strconv.Itoa(forked(t, caller(t, "tpm-agent", "serve", "--fork")))
		stdout, stderr, code := killing(t, pid, form)
		if got := strings.ReplaceAll(stdout, pid, "P"); got != want || stderr != "" || code != 0 {
			t.Errorf("%s: %d, %q, %q", form, code, stdout, stderr)
		}
	}
}

// TestKillRefuses checks that serve -k sends a signal only to an agent of this user.
func TestKillRefuses(t *testing.T) {
	t.Parallel()
	decoys := map[string]*exec.Cmd{
		"is no tpm-agent serve (it is cat)":       exec.Command("cat"),
		"is no tpm-agent serve (it is tpm-agent)": decoy(t, "list"),
	}
	if os.Getuid() == 0 {
		other := decoy(t, "serve")
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		decoys["it belongs to another user (uid 65534)"] = other
	}
	for want, cmd := range decoys {
		pid := strconv.Itoa(living(t, cmd))
		stdout, stderr, code := killing(t, pid)
		if stdout != "" || !strings.Contains(stderr, "ending agent "+pid+": ") || !strings.Contains(stderr, want) || code != 1 {
			t.Errorf("%s: %d, %q, %q", want, code, stdout, stderr)
		}
		// The process now ends by itself; living checks that it got no signal.
		cmd.Stdin.(io.Closer).Close()
	}
	for value, want := range map[string]string{
		"": "SSH_AGENT_PID is not set", "x": "not the number of a process", "1": "not the number", "0": "not the number", "-1": "not the number",
		"-" + strconv.Itoa(os.Getpid()): "not the number", "99999999999": "not the number", "12 13": "not the number",
		"2147483647": "there is no such process",
	} {
		stdout, stderr, code := killing(t, value)
		if stdout != "" || !strings.Contains(stderr, want) || code != 1 {
			t.Errorf("SSH_AGENT_PID=%s: %d, %q, %q", value, code, stdout, stderr)
		}
	}
	for _, args := range [][]string{{"--socket", "s"}, {"-t", "1h"}, {"--tpm", "software"}, {"--", "true"}, {"-v"}} {
		stdout, stderr, code := killing(t, "", args...)
		if stdout != "" || !strings.HasPrefix(stderr, "tpm-agent: -k ends an agent: ") || code != 2 {
			t.Errorf("%q: %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

// decoy returns a command that looks like tpm-agent with an argument: it is a shell
// named tpm-agent, and the argument is the name of its script.
func decoy(t *testing.T, command string) *exec.Cmd {
	t.Helper()
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "decoy") // another user must be able to enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "tpm-agent")
	// Another test that starts a program now must not inherit the open file: one
	// that is open for writing cannot be run.
	syscall.ForkLock.RLock()
	copyErr := os.WriteFile(path, sh, 0o755)
	syscall.ForkLock.RUnlock()
	for _, err := range []error{copyErr, os.Chmod(dir, 0o755), os.Chmod(path, 0o755), os.WriteFile(filepath.Join(dir, command), []byte("read x\n"), 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path, command)
	cmd.Dir = dir
	return cmd
}

// living starts a process that ends when its standard input does. At the end of the
// test it checks that no signal ended the process.
func living(t *testing.T, cmd *exec.Cmd) (pid int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd.Stdin = w
	t.Cleanup(func() {
		w.Close()
		_ = cmd.Wait()
		if state := cmd.ProcessState.Sys().(syscall.WaitStatus); state.Signaled() {
			t.Errorf("%v got the signal %v", cmd.Args, state.Signal())
		}
	})
	return cmd.Process.Pid
}
