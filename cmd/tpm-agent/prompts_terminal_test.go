package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// terminalWays are the ways to ask on the client's terminal: two programs of GnuPG,
// and the agent itself.
var terminalWays = []struct {
	name     string
	pinentry string // program
	args     []string
	cancel   []string // keys
}{
	{"pinentry-curses", "pinentry-curses", []string{"--prompt", "pinentry"}, []string{"Tab", "Tab", "Enter"}},
	{"pinentry-tty", "pinentry-tty", []string{"--prompt", "pinentry"}, []string{"C-d"}},
	{"terminal", "", []string{"--prompt", "terminal"}, []string{"C-d"}},
}

// pinentry makes gpg-agent.conf name a pinentry.
func (s *scene) pinentry(program string) {
	s.t.Helper()
	if program == "" {
		return
	}
	path := s.command(program).Path
	if err := os.MkdirAll(filepath.Join(s.home, ".gnupg"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.write(".gnupg/gpg-agent.conf", "pinentry-program "+path+"\n", 0o600)
}

// TestPromptOnTerminal checks the prompts on a terminal: for login, signature and
// commit, with the PIN, cancelled, with a wrong PIN, and with a client that is killed
// while the prompt is open. Each time the terminal must be usable afterwards, and no
// PIN may appear on the screen, in processes or in memory.
func TestPromptOnTerminal(t *testing.T) {
	t.Parallel()
	for _, way := range terminalWays {
		t.Run(way.name, func(t *testing.T) {
			s := newScene(t, patient, randomPIN(memoryPIN))
			s.programs()
			s.pinentry(way.pinentry)
			d := s.serve(nil, way.args...)
			p := d.tmux()
			stop := s.watchProcesses()
			for _, use := range uses {
				s.costs(0, func() { p.answers(use.command, s.pin, use.done) })
				s.costs(0, func() { p.cancelled(d, use.command, way.cancel) })
			}
			s.costs(1, func() { p.answers(uses[0].command, s.wrong(6), "Wrong PIN", s.pin, uses[0].done) })
			s.costs(0, func() { p.killed(d) })
			p.answers(uses[0].command, s.pin, uses[0].done)
			stop()
			if found := inMemory(t, d.cmd.Process.Pid, s.pin); len(found) > 0 {
				t.Errorf("the PIN is in memory:\n%s", strings.Join(found, "\n"))
			}
		})
	}
}

// answers runs a command and answers each prompt with a PIN. pinsAndScreens alternates
// PINs with the text that the screen must show next.
func (p *pane) answers(command string, pinsAndScreens ...string) {
	p.t.Helper()
	p.runs("clear; " + command)
	for i := 0; i < len(pinsAndScreens); i += 2 {
		p.waitFor("id.tpm")
		p.hidden()
		p.types(pinsAndScreens[i])
		p.key("Enter")
		p.waitFor(pinsAndScreens[i+1])
	}
	p.usable()
}

var failedStatus = regexp.MustCompile(`status [1-9]`)

// cancelled runs a command and cancels its prompt. It checks that the command fails,
// and that `why` reports a refusal.
func (p *pane) cancelled(d *agentRun, command string, keys []string) {
	p.t.Helper()
	p.runs("clear; " + command + "; echo status $?")
	p.waitFor("id.tpm")
	p.hidden()
	p.key(keys...)
	p.until("shows a failure", failedStatus.MatchString)
	p.usable()
	childless(p.t, d.cmd.Process.Pid)
	d.whySays("refused at the prompt")
}

// killed kills a client while its prompt is open. It checks that the prompt leaves the
// screen, and that the program that showed it has ended.
func (p *pane) killed(d *agentRun) {
	p.t.Helper()
	p.runs("clear; " + uses[0].command + "; echo status $?")
	p.waitFor("id.tpm")
	p.hidden()
	clients := children(p.shell)
	if len(clients) != 1 {
		p.t.Fatalf("the shell has the children %v, want one", clients)
	}
	if err := syscall.Kill(clients[0], syscall.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
	// The shell may print to a screen that the dialog removes when it ends.
	childless(p.t, d.cmd.Process.Pid)
	p.t.Logf("after the end of the client:\n%s", strings.TrimRight(p.screen(), "\n"))
	p.usable()
	if screen := p.screen(); strings.Contains(screen, "id.tpm") {
		p.t.Errorf("the screen still shows the question:\n%s", screen)
	}
}

// whySays fails the test unless `tpm-agent why` reports the cause.
func (d *agentRun) whySays(cause string) {
	d.t.Helper()
	cmd := d.command("tpm-agent", "why", "-n", "1")
	cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), cause) {
		d.t.Errorf("why: %v; want %q in\n%s", err, cause, out)
	}
}
