package main

import (
	"os/exec"
	"testing"
)

// step is a text to wait for on the screen, and the keys to press then.
type step struct {
	text string
	keys []string
}

// consents are the steps to allow one use, to refuse it, and to allow all for a while.
var consents = map[string]struct{ once, no, longer []step }{
	"pinentry-curses": {
		[]step{{"Allow once", []string{"Enter"}}},
		[]step{{"Allow once", []string{"Tab", "Tab", "Enter"}}},
		[]step{{"15 minutes", []string{"Tab", "Enter"}}},
	},
	"pinentry-tty": {
		[]step{{"[adm]?", []string{"a"}}},
		[]step{{"[adm]?", []string{"d"}}},
		[]step{{"[adm]?", []string{"m"}}},
	},
	"terminal": {
		[]step{{"[y/p/m/l/N]", []string{"y", "Enter"}}},
		[]step{{"[y/p/m/l/N]", []string{"Enter"}}},
		[]step{{"[y/p/m/l/N]", []string{"l", "Enter"}}},
	},
}

// TestPromptConsent checks that with --confirm the agent asks before each use, does not
// ask while a longer consent holds, and asks again after lock.
func TestPromptConsent(t *testing.T) {
	t.Parallel()
	const command, done = "./login plain 'echo $((6*7))in'", "42in"
	for _, way := range terminalWays {
		t.Run(way.name, func(t *testing.T) {
			s := newScene(t, patient, "")
			s.programs()
			s.pinentry(way.pinentry)
			d := s.serve(nil, append(way.args, "--confirm")...)
			p := d.tmux()
			consent := consents[way.name]
			for range 2 {
				p.steps(command, consent.once, done)
			}
			p.steps(command+"; echo status $?", consent.no, "status 255")
			d.whySays("refused at the prompt")
			p.steps(command, consent.longer, done)
			for range 2 {
				p.steps(command, nil, done)
			}
			if out, err := d.lock().CombinedOutput(); err != nil {
				t.Errorf("lock: %v\n%s", err, out)
			}
			p.steps(command+"; echo status $?", consent.no, "status 255")
			childless(t, d.cmd.Process.Pid)
		})
	}
}

// steps runs a command, takes the steps in order, and waits for done. Without steps,
// the agent must not ask.
func (p *pane) steps(command string, steps []step, done string) {
	p.t.Helper()
	p.runs("clear; " + command)
	for _, step := range steps {
		p.waitFor(step.text)
		p.key(step.keys...)
	}
	p.waitFor(done)
	p.usable()
}

// lock returns the command that makes the agent forget PINs and consent.
func (d *agentRun) lock() *exec.Cmd {
	cmd := d.command("tpm-agent", "lock")
	cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
	return cmd
}
