package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestPromptUnusualPINs checks that short, long and non-ASCII PINs work in the same way
// for each way to give them.
func TestPromptUnusualPINs(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for name, pin := range map[string]string{
		"1 octet":     "~",
		"32 octets":   randomPIN(32),
		"33 octets":   randomPIN(33),
		"1000 octets": randomPIN(1000),
		"UTF-8":       "пароль-" + randomPIN(4) + "-ключ🔑é",
		"a blank":     randomPIN(4) + " " + randomPIN(4),
		"escapes":     `%25%0A\n"'` + randomPIN(4),
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, patient, pin)
			if len(pin) < 4 {
				s.secrets = nil // a short PIN occurs everywhere by chance
			}
			s.programs()
			a := newAskpass(t)
			d := s.serve(a.env())
			s.costs(0, func() {
				if _, err := d.asked(a, s.public, "say "+pin); err != nil {
					t.Errorf("askpass: %v\n%s", err, d.logged())
				}
				if out, code := d.unlocks(pin); code != 0 {
					t.Errorf("unlock: status %d\n%s", code, out)
				}
				d.stop()
			})
			for _, way := range terminalWays {
				if len(pin) == 32 || len(pin) == 33 {
					break // typing these tests nothing new
				}
				s.pinentry(way.pinentry)
				d := s.serve(nil, way.args...)
				s.costs(0, func() { d.tmux("LC_CTYPE=C.UTF-8").answers(uses[0].command, pin, uses[0].done) })
				d.stop()
			}
		})
	}
}

// TestPromptTerminalClosed checks that the agent ends a prompt when its terminal is
// closed, that this costs no try, and that other clients are still asked.
func TestPromptTerminalClosed(t *testing.T) {
	t.Parallel()
	for _, way := range terminalWays {
		t.Run(way.name, func(t *testing.T) {
			s := newScene(t, patient, "")
			s.programs()
			s.pinentry(way.pinentry)
			d := s.serve(nil, way.args...)
			p := d.tmux()
			p.do("new-window", "-d", "exec sh") // keeps the tmux server running without the other pane
			s.costs(0, func() {
				p.runs("clear; " + uses[0].command)
				p.waitFor("id.tpm")
				p.hidden()
				p.do("kill-pane")
				childless(t, d.cmd.Process.Pid)
				d.signs(s.pinless)
			})
			// The agent still asks another client.
			p.tty = p.tell("#{pane_tty}")
			p.runs("export SSH_AUTH_SOCK=" + d.socket + "; cd; " + uses[0].command)
			p.waitFor("id.tpm")
			p.hidden()
			p.types(s.pin)
			p.key("Enter")
			p.waitFor(uses[0].done)
		})
	}
}

// TestPromptSmallTerminal checks that the agent itself asks, line by line, if the
// dialog of pinentry does not fit the terminal.
func TestPromptSmallTerminal(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	s.programs()
	s.pinentry("pinentry-curses")
	d := s.serve(nil)
	p := d.tmux()
	p.do("resize-window", "-x", "60", "-y", "8")
	p.runs("clear; " + uses[0].command)
	p.waitFor("31 tries left before the TPM locks")
	p.hidden()
	p.types(s.pin)
	p.key("Enter")
	p.waitFor(uses[0].done)
	p.usable()
}

// TestPromptInvalidPINs checks that no command sets a PIN that a prompt could not ask
// for: one with a newline, or one that is too long.
func TestPromptInvalidPINs(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	software := filepath.Join(s.home, "software")
	s.mustRun("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", software)
	for _, pin := range []string{"12\n34", "1234\n", "\n", strings.Repeat("x", 1025)} {
		for _, args := range [][]string{
			{"keygen", "-q", "-N", pin, "-f", "keys/new"},
			{"import", "-q", "-N", pin, software, "-f", "keys/new"},
			{"passwd", "-P", s.pin, "-N", pin, "keys/id.tpm"},
		} {
			out, err := s.command("tpm-agent", args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "line break") && !strings.Contains(string(out), "longer than 1024") {
				t.Errorf("%s -N %.8q: %v\n%s", args[0], pin, err, out)
			}
		}
	}
	if found := must(filepath.Glob(filepath.Join(s.keys, "new*"))); len(found) > 0 {
		t.Errorf("the commands made %q", found)
	}
	s.costs(0, func() { s.mustTry("id", s.pin) })
}
