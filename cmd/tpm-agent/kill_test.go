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
	"time"

	"golang.org/x/sys/unix"
)

// killing runs serve -k with the value of SSH_AGENT_PID.
func killing(t *testing.T, pid string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := program(t, append([]string{"serve", "-k"}, args...)...)
	cmd.Env = append(cmd.Env, "SSH_AGENT_PID="+pid)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	return string(out), said.String(), status(t, err)
}

// TestKill: -k waits until the agent is gone, its socket with it, even if
// nobody has taken note of its end yet.
func TestKill(t *testing.T) {
	agent := program(t, "serve")
	path := filepath.Join(agent.Dir, "tpm-agent", "agent.sock")
	startAndWait(t, agent, path)
	pid := strconv.Itoa(agent.Process.Pid)
	stdout, stderr, code := killing(t, pid)
	if want := "unset SSH_AUTH_SOCK;\nunset SSH_AGENT_PID;\necho Agent pid " + pid + " killed;\n"; stdout != want || stderr != "" || code != 0 {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket: %v", err)
	}
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent: %v", err)
	}
	stdout, stderr, code = killing(t, pid)
	if stdout != "" || !strings.Contains(stderr, "there is no such process any more") || code != 1 {
		t.Errorf("once more: %d, %q, %q", code, stdout, stderr)
	}
}

func TestKillForms(t *testing.T) {
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

// TestKillRefuses: nothing but an agent of this user gets a signal.
func TestKillRefuses(t *testing.T) {
	decoys := map[string]*exec.Cmd{
		"is no tpm-agent serve (it is cat)":       exec.Command("cat"),
		"is no tpm-agent serve (it is tpm-agent)": decoy(t, "-c", "read x", "list"),
	}
	if os.Getuid() == 0 {
		other := decoy(t, "-c", "read x", "serve")
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		decoys["it is of another user (uid 65534)"] = other
	}
	for want, cmd := range decoys {
		pid := strconv.Itoa(living(t, cmd))
		stdout, stderr, code := killing(t, pid)
		if stdout != "" || !strings.Contains(stderr, "ending agent "+pid+": ") || !strings.Contains(stderr, want) || code != 1 {
			t.Errorf("%s: %d, %q, %q", want, code, stdout, stderr)
		}
		// It ends by itself: it got no signal.
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

// decoy is a shell under the agent's name.
func decoy(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "decoy") // others may enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "tpm-agent")
	for _, err := range []error{os.Chmod(dir, 0o755), os.WriteFile(path, sh, 0o755), os.Chmod(path, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return exec.Command(path, args...)
}

// living starts a process that reads its standard input to the end, and checks
// when the test is over that this was its end.
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

// TestAwaitEnd: the wait for an agent that goes on has an end.
func TestAwaitEnd(t *testing.T) {
	fd, err := unix.PidfdOpen(living(t, exec.Command("cat")), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := awaitEnd(fd, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "goes on") {
		t.Error(err)
	}
}

func TestServes(t *testing.T) {
	for line, want := range map[string]bool{
		"tpm-agent\x00serve\x00":                        true,
		"/usr/bin/tpm-agent\x00serve\x00--\x00sh\x00":   true,
		"tpm-agent\x00--tpm\x00software\x00serve\x00-v": true,
		"tpm-agent\x00serve\x00--fork\x00--forked\x00":  true,
		"tpm-agent\x00list\x00":                         false,
		"tpm-agent\x00keygen\x00-C\x00serve\x00":        false,
		"tpm-agent\x00help\x00serve\x00":                false,
		"tpm-agent\x00--tpm\x00serve\x00list\x00":       false,
		"tpm-agent": false,
		"":          false,
		"\x00":      false,
		"serve\x00": false,
		"tpm-agent\x00no-such-command\x00serve\x00":      false,
		"tpm-agent\x00env\x00--socket\x00serve\x00serve": false,
	} {
		if got := serves([]byte(line)); got != want {
			t.Errorf("serves(%q) = %v", line, got)
		}
	}
}

// FuzzServes: whatever a process calls itself, looking at it does no harm, and
// only what has the word in it counts as an agent.
func FuzzServes(f *testing.F) {
	for _, line := range []string{"tpm-agent\x00serve\x00", "tpm-agent\x00--tpm\x00x\x00serve\x00-t", "\x00\x00serve", "", "a\x00-\x00--\x00serve", "x\x00--tpm=\x00serve\x00--"} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if serves(line) && !strings.Contains("\x00"+string(line)+"\x00", "\x00serve\x00") {
			t.Errorf("%q counts as an agent", line)
		}
	})
}
