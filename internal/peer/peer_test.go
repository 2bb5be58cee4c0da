package peer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// chainOf runs a shell script in its own session. The script starts $TELL, which
// writes its pid and stays; that process is the peer. Tests that call chainOf must
// not run in parallel: a script cannot be run while a process that another test
// forks has it open for writing.
func chainOf(t *testing.T, dir, script string) []string {
	t.Helper()
	tell := filepath.Join(dir, "tell")
	writeScript(t, tell, "echo $$ >&3; read end <&4")
	said, say, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	ended, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", script+"; true")
	cmd.Env = append(os.Environ(), "TELL="+tell, "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1")
	cmd.Dir, cmd.ExtraFiles = dir, []*os.File{say, ended}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	say.Close()
	ended.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer end.Close() // ends all of them
	var pid int
	if _, err := fmt.Fscan(said, &pid); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return Peer{PID: pid}.Chain()
}

func writeScript(t *testing.T, path, body string) {
	t.Helper()
	// Another test that starts a program now must not inherit the open file: one
	// that is open for writing cannot be run.
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
}

// TestChain starts real processes below a shell that leads their session and is
// therefore not in the chain.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{
		"deploy":           `"$@"; true`,
		"a b) R (1":        `"$@"; true`,
		"x)\n1 (ssh) S 1":  `"$@"; true`,
		"\x1b[31m\u202e)(": `"$@"; true`,
		"leader":           `setsid "$@"; true`,
		"ssh":              `exec "$TELL"`,
	} {
		writeScript(t, filepath.Join(dir, name), body)
	}
	for script, want := range map[string][]string{
		`$TELL`:                                    {"tell"},
		`deploy $TELL`:                             {"deploy", "tell"},
		`deploy deploy deploy $TELL`:               {"deploy", "tell"},
		`'a b) R (1' deploy $TELL`:                 {"a b) R (1", "deploy", "tell"},
		"'x)\n1 (ssh) S 1' $TELL":                  {"x)\n1 (ssh) S 1", "tell"},
		"'\x1b[31m\u202e)(' $TELL":                 {"\x1b[31m\u202e)(", "tell"},
		`deploy leader sh -c 'deploy $TELL; true'`: {"deploy", "tell"},
		`deploy setsid $TELL`:                      {"tell"},
		`deploy nice sh -c 'deploy $TELL; true'`:   {"deploy", "sh", "deploy", "tell"},
		`deploy sh -c 'deploy sh -c "deploy sh -c \"deploy $TELL; true\"; true"; true'`: {"sh", "deploy", "sh", "deploy", "tell"},
	} {
		if got := chainOf(t, dir, script); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// TestChainOfGit has git start ssh, directly or by a shell.
func TestChainOfGit(t *testing.T) {
	needs.Programs(t, "git", "ssh-keygen")
	dir := t.TempDir()
	writeScript(t, filepath.Join(dir, "ssh"), `exec "$TELL"`)
	writeScript(t, filepath.Join(dir, "push-all"), `git ls-remote ssh://host.invalid/x; true`)
	for script, want := range map[string][]string{
		`git ls-remote ssh://host.invalid/x`: {"git", "tell"},
		`./push-all`:                         {"push-all", "git", "tell"},
		`git clone -q ssh://host.invalid/x`:  {"git", "tell"},
		`GIT_SSH_COMMAND="ssh; true" git ls-remote ssh://host.invalid/x`: {"git", "GIT_SSH_COMMAND", "tell"},
	} {
		got := chainOf(t, dir, script)
		if i := slices.Index(got, "sh"); i >= 0 && want[len(want)-2] == "GIT_SSH_COMMAND" {
			got[i] = "GIT_SSH_COMMAND"
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

func TestChainEnds(t *testing.T) {
	t.Parallel()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{-1, 0, gone.Process.Pid, 1<<31 - 1} {
		if got := (Peer{PID: pid}).Chain(); len(got) != 0 {
			t.Errorf("process %d: %q", pid, got)
		}
	}
	if got := (Peer{PID: 1}).Chain(); len(got) != 1 {
		t.Errorf("the first process: %q", got)
	}
	if got := (Peer{PID: os.Getpid()}).Chain(); len(got) == 0 || got[len(got)-1] != filepath.Base(os.Args[0])[:min(15, len(filepath.Base(os.Args[0])))] {
		t.Errorf("this process: %q", got)
	}
}

// TestIsFrom has processes that are no parent although they have its pid.
func TestIsFrom(t *testing.T) {
	t.Parallel()
	child := Process{Stat{PID: 30, Parent: 20, Session: 10, Start: 100}, 1000}
	for name, test := range map[string]struct {
		change func(*Process)
		want   bool
	}{
		"parent":          {func(*Process) {}, true},
		"started at once": {func(p *Process) { p.Start = 100 }, true},
		"younger":         {func(p *Process) { p.Start = 101 }, false},
		"other user":      {func(p *Process) { p.UID = 0 }, false},
		"other session":   {func(p *Process) { p.Session = 11 }, false},
		"leader":          {func(p *Process) { p.PID = 10 }, false},
		"first process":   {func(p *Process) { p.PID = 1 }, false},
	} {
		parent := Process{Stat{PID: 20, Parent: 10, Session: 10, Start: 50}, 1000}
		test.change(&parent)
		if got := child.isFrom(parent); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func BenchmarkChain(b *testing.B) {
	p := Peer{PID: os.Getpid()}
	for b.Loop() {
		p.Chain()
	}
}
