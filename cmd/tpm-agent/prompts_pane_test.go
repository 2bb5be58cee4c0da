package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pane is a terminal in tmux with a shell. The test reads the screen and types.
type pane struct {
	t      *testing.T
	s      *scene
	socket string
	tty    string
	shell  int // the pid of the shell
}

// tmux opens a terminal whose shell has the agent in its environment.
func (d *agentRun) tmux(env ...string) *pane {
	d.t.Helper()
	if testing.Short() {
		d.t.Skip("takes seconds")
	}
	dir := must(os.MkdirTemp(d.home, "t"))
	p := &pane{t: d.t, s: d.scene, socket: filepath.Join(dir, "s")}
	start := d.command("tmux", "-S", p.socket, "-f", "/dev/null", "new-session", "-d", "-x", "90", "-y", "24", "exec env -u TMUX sh")
	start.Env = append(append(start.Env, "SSH_AUTH_SOCK="+d.socket, "PS1=$ ", "TERM=screen"), env...)
	if out, err := start.CombinedOutput(); err != nil {
		d.t.Fatalf("tmux: %v\n%s", err, out)
	}
	d.t.Cleanup(func() { _ = p.command("kill-server").Run() })
	p.tty = p.tell("#{pane_tty}")
	p.shell = must(strconv.Atoi(p.tell("#{pane_pid}")))
	p.s.daemons = append(p.s.daemons, must(strconv.Atoi(p.tell("#{pid}"))))
	p.waitFor("$")
	return p
}

// command returns a tmux command for the pane's server.
func (p *pane) command(args ...string) *exec.Cmd {
	return p.s.command("tmux", append([]string{"-S", p.socket}, args...)...)
}

// do runs a tmux command that must succeed, and returns its output.
func (p *pane) do(args ...string) string {
	p.t.Helper()
	out, err := p.command(args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// tell expands a tmux format.
func (p *pane) tell(format string) string {
	p.t.Helper()
	return strings.TrimSpace(p.do("display-message", "-p", format))
}

// runs types a command line.
func (p *pane) runs(line string) { p.types(line); p.key("Enter") }

// types types text. The text may be a PIN, so it is not passed as an argument.
func (p *pane) types(text string) {
	p.t.Helper()
	load := p.command("load-buffer", "-b", "typed", "-")
	load.Stdin = strings.NewReader(text)
	if out, err := load.CombinedOutput(); err != nil {
		p.t.Fatalf("tmux load-buffer: %v\n%s", err, out)
	}
	p.do("paste-buffer", "-d", "-b", "typed")
}

// key presses a key by its name in tmux, such as Enter or C-c.
func (p *pane) key(names ...string) { p.do(append([]string{"send-keys"}, names...)...) }

// screen returns the text on the screen. It fails the test if that contains a PIN.
func (p *pane) screen() string {
	screen := p.do("capture-pane", "-p")
	for _, pin := range p.s.secrets {
		if strings.Contains(screen, pin) {
			p.t.Fatalf("the screen shows the PIN:\n%s", screen)
		}
	}
	return screen
}

// waitFor waits until the screen shows a text, and returns the screen.
func (p *pane) waitFor(text string) string {
	p.t.Helper()
	return p.until("shows "+strconv.Quote(text), func(screen string) bool { return strings.Contains(screen, text) })
}

// until waits until is accepts the screen, and returns it.
func (p *pane) until(what string, is func(screen string) bool) (screen string) {
	p.t.Helper()
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(15 * time.Millisecond) {
		if screen = p.screen(); is(screen) {
			return screen
		}
	}
	p.t.Fatalf("the screen never %s; it is\n%s", what, screen)
	return ""
}

// usable fails the test unless the terminal is usable again: it echoes, is in line
// mode, and the shell runs a command.
func (p *pane) usable() {
	p.t.Helper()
	tty, err := os.OpenFile(p.tty, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer tty.Close()
	const wanted = unix.ECHO | unix.ICANON | unix.ISIG
	var modes uint32
	for start := time.Now(); modes != wanted && time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			p.t.Fatal(err)
		}
		modes = state.Lflag & wanted
	}
	if modes != wanted {
		p.t.Errorf("the terminal was left in mode %#x, want %#x", modes, wanted)
	}
	p.runs("clear; echo $((6*7))us$((0+0))able")
	p.waitFor("42us0able")
}

// hidden waits until the terminal does not echo, because a prompt is open.
func (p *pane) hidden() {
	p.t.Helper()
	tty, err := os.OpenFile(p.tty, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer tty.Close()
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		if state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err == nil && state.Lflag&unix.ECHO == 0 {
			return
		}
	}
	p.t.Fatal("the terminal still echoes")
}

// children returns the running child processes of a process.
func children(pid int) (pids []int) {
	for _, path := range must(filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))) {
		list, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for child := range strings.FieldsSeq(string(list)) {
			if alive(child) {
				pids = append(pids, must(strconv.Atoi(child)))
			}
		}
	}
	return pids
}

// descendants returns a process and all processes below it.
func descendants(pid int) []int {
	pids := []int{pid}
	for _, child := range children(pid) {
		pids = append(pids, descendants(child)...)
	}
	return pids
}

// childless waits until a process has no children.
func childless(t *testing.T, pid int) {
	t.Helper()
	for start := time.Now(); len(children(pid)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > longEnough {
			t.Errorf("process %d still has the children %v", pid, children(pid))
			return
		}
	}
}
