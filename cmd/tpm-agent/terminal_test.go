package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/ptytest"
)

// seat is a terminal on which a program runs. The test plays the user.
type seat struct {
	*ptytest.Terminal
	t   *testing.T
	cmd *exec.Cmd
}

// sit starts cmd as the leader of a new session with its own terminal.
func sit(t *testing.T, cmd *exec.Cmd) *seat {
	t.Helper()
	s := &seat{Terminal: ptytest.New(t), t: t, cmd: cmd}
	s.Run(cmd)
	return s
}

// secretly answers a question, and checks that the terminal does not echo.
func (s *seat) secretly(question, answer string) {
	s.t.Helper()
	s.WaitFor(question)
	if s.Echoes() {
		s.t.Errorf("the terminal shows the answer to %q", question)
	}
	s.Type(answer + "\n")
}

// ends waits for the program to end, and checks its exit status and that the terminal
// echoes again.
func (s *seat) ends(status int) {
	s.t.Helper()
	_ = s.cmd.Wait()
	if got := s.cmd.ProcessState.ExitCode(); got != status {
		s.t.Errorf("exit status %d, want %d; the terminal shows %q", got, status, s.Seen())
	}
	if !s.Echoes() {
		s.t.Error("the terminal was left without echo")
	}
}

// TestKeygenOnTerminal checks the questions of keygen on a terminal, and that it does
// not show the PIN.
func TestKeygenOnTerminal(t *testing.T) {
	t.Parallel()
	s := sit(t, program(t, "keygen", "-C", "here"))
	s.WaitFor("Enter file in which to save the key (")
	s.Type("~/mine\n")
	s.WaitFor("Enter PIN (empty for no PIN): ")
	if s.Echoes() {
		t.Error("the terminal shows the PIN")
	}
	s.Type("first\n")
	s.WaitFor("Enter same PIN again: ")
	s.Type("second\n")
	s.WaitFor("PINs do not match.  Try again.")
	s.WaitFor("Enter PIN (empty for no PIN): ")
	s.Type("s3cret\n")
	s.WaitFor("Enter same PIN again: ")
	s.Type("s3cret\n")
	s.WaitFor("Your identification has been saved in ")
	s.WaitFor("The key lives in ")
	s.ends(0)
	checkKey(t, filepath.Join(s.cmd.Dir, "mine"))
}

// TestKeygenInBackground checks that keygen in the background does not read what the
// user types for the shell: it stops, and asks when it is in the foreground again.
func TestKeygenInBackground(t *testing.T) {
	t.Parallel()
	cmd := program(t, "keygen")
	shell := exec.Command("bash", "--norc", "-i")
	shell.Dir, shell.Env = cmd.Dir, append(cmd.Env, "KEYGEN="+cmd.Path, "PS1=ready> ")
	s := sit(t, shell)
	s.Type("set -b; $KEYGEN keygen -q -f id &\n")
	s.WaitFor("Stopped")
	s.Type("echo shell reads $((6*7))\n")
	s.WaitFor("shell reads 42")
	s.Type("fg\n")
	s.WaitFor("Enter PIN (empty for no PIN): ")
	s.Type("s3cret\n")
	s.WaitFor("Enter same PIN again: ")
	s.Type("s3cret\n")
	s.WaitFor("ready> ")
	s.Type("test -e id.tpm && echo made $((6*7))\n")
	s.WaitFor("made 42")
	s.Type("exit\n")
	_ = s.cmd.Wait()
}

// TestKeygenCancelled checks that Ctrl-C and Ctrl-D at a question end keygen, leave no
// key behind, and restore the terminal.
func TestKeygenCancelled(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		typed  string
		status int
		says   string
	}{"ctrl-c": {"\x03", 130, "interrupted"}, "ctrl-d": {"\x04", 1, "refused at the prompt"}} {
		t.Run(name, func(t *testing.T) {
			s := sit(t, program(t, "keygen", "-f", "id"))
			s.WaitFor("Enter PIN (empty for no PIN): ")
			s.Type(test.typed)
			s.WaitFor(test.says)
			s.ends(test.status)
			// keygen uses the software TPM before it asks, so that has saved its state.
			if files := list(t, s.cmd.Dir); len(files) != 1 || files[0] != "tpm-agent" {
				t.Errorf("left behind %q", files)
			}
		})
	}
}

// TestServeAsksOnTerminal checks that without a display the agent asks for the PIN on
// the terminal of serve.
func TestServeAsksOnTerminal(t *testing.T) {
	t.Parallel()
	cmd := program(t, "keygen", "-q", "-N", "s3cret", "-f", "id")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	serve := program(t, "serve", "--key-dir", ".", "--", "ssh-keygen", "-Y", "sign", "-n", "file", "-f", "id.pub", "id.pub")
	serve.Dir, serve.Env = cmd.Dir, cmd.Env
	s := sit(t, serve)
	s.WaitFor("Enter PIN for ")
	s.WaitFor("id.tpm")
	s.WaitFor("Requested by ssh-keygen (pid ")
	s.Type("wrong\n")
	s.WaitFor("Wrong PIN. ")
	s.Type("s3cret\n")
	s.WaitFor("Write signature to id.pub.sig")
	s.ends(0)
}

// TestServeSuspended checks that a command that suspends itself gives the terminal back
// to the shell that started the agent, with and without its own process group.
func TestServeSuspended(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ command, suspend string }{
		"shell":   {"bash --norc -i", "suspend\n"},
		"program": {"sh -c 'while read line; do eval \"$line\"; done'", "kill -STOP $$\n"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := program(t, "serve")
			shell := exec.Command("bash", "--norc", "-i")
			shell.Dir, shell.Env = cmd.Dir, append(cmd.Env, "SERVE="+cmd.Path, "PS1=> ")
			s := sit(t, shell)
			s.Type("$SERVE serve -- " + test.command + "\n")
			s.Type("ssh-add -l\n")
			s.WaitFor("no identities")
			for range 2 {
				s.Type(test.suspend)
				s.WaitFor("Stopped")
				s.Type("echo outside $((6*7))\n")
				s.WaitFor("outside 42")
				s.Type("fg\n")
				s.WaitFor("serve -- ")
				s.Type("ssh-add -l\n")
				s.WaitFor("no identities")
			}
			s.Type("exit 7\n")
			s.Type("echo status $?\n")
			s.WaitFor("status 7")
			s.Type("exit\n")
			_ = s.cmd.Wait()
		})
	}
}

// TestServeSuspendWithoutShell checks that the command keeps running after it suspends
// itself if no shell could continue it.
func TestServeSuspendWithoutShell(t *testing.T) {
	t.Parallel()
	serve := program(t, "serve", "--", "bash", "--norc", "-i")
	serve.Env = append(serve.Env, "PS1=> ")
	s := sit(t, serve)
	s.Type("echo inside $((6*7))\n")
	s.WaitFor("inside 42")
	s.Type("suspend\n")
	s.Type("echo still inside $((7*7))\n")
	s.WaitFor("inside 49")
	s.Type("exit 7\n")
	_ = s.cmd.Wait()
	if got := s.cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit status %d, want 7", got)
	}
}

// TestServeInBackground checks an agent in the background of its terminal, because the
// shell under serve gives the terminal to its jobs. The agent must ask if its client is
// in the foreground. If the client is in the background too, the agent must neither
// take the shell's input nor be stopped.
func TestServeInBackground(t *testing.T) {
	t.Parallel()
	cmd := program(t, "keygen", "-q", "-N", "s3cret", "-f", "id")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	serve := program(t, "serve", "--prompt", "terminal", "--key-dir", ".", "--", "bash", "--norc", "-i")
	serve.Dir, serve.Env = cmd.Dir, cmd.Env
	s := sit(t, serve)
	s.Type("ssh-keygen -Y sign -n file -f id.pub id.pub; read line; echo \"over: $line\"\n")
	s.WaitFor("Enter PIN for ")
	s.WaitFor(": ")
	if s.Echoes() {
		t.Error("the terminal shows the PIN")
	}
	s.Type("s3cret\n")
	s.WaitFor("Write signature to id.pub.sig")
	s.Type("typed\n")
	s.WaitFor("over: typed")
	s.Type("ssh-keygen -Y sign -n file -f id.pub id.pub &\n")
	s.WaitFor("no way to ask the user; terminal: the client is in the background of its terminal, and the agent's terminal, /dev/tty, is in use by another program")
	s.Type("exit 5\n")
	s.ends(5)
}

// TestCtrlCUnderServe checks that Ctrl-C only interrupts the command: the agent keeps
// running until the command ends.
func TestCtrlCUnderServe(t *testing.T) {
	t.Parallel()
	s := sit(t, program(t, "serve", "--", "sh", "-c", `n=0; trap 'n=$((n+1)); echo "interrupt $n"' INT; echo ready; read a; read b; exit $n`))
	s.WaitFor("ready")
	s.Type("\x03")
	s.WaitFor("interrupt 1")
	s.Type("\n\n")
	s.ends(1) // the command exits with the number of its interrupts
	if strings.Contains(s.Seen(), "interrupt 2") {
		t.Error("the command got the signal twice")
	}
}
