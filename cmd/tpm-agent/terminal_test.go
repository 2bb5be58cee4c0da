package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seat is a terminal with a program in it and somebody in front.
type seat struct {
	t      *testing.T
	person *os.File
	cmd    *exec.Cmd
	seen   bytes.Buffer
}

// sit starts cmd as the leader of a new session with a terminal of its own.
func sit(t *testing.T, cmd *exec.Cmd) *seat {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	s := &seat{t: t, person: person, cmd: cmd}
	var n int
	s.control(func(fd int) (err error) {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return s
}

func (s *seat) control(f func(fd int) error) {
	s.t.Helper()
	raw, err := s.person.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil || inner != nil {
		s.t.Fatal(err, inner)
	}
}

// waitFor reads until the screen shows text, which may come once only.
func (s *seat) waitFor(text string) {
	s.t.Helper()
	if err := s.person.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		if _, after, found := bytes.Cut(s.seen.Bytes(), []byte(text)); found {
			rest := bytes.Clone(after)
			s.seen.Reset()
			s.seen.Write(rest)
			return
		}
		n, err := s.person.Read(buf)
		s.seen.Write(buf[:n])
		if err != nil {
			s.t.Fatalf("waiting for %q: %v; seen %q", text, err, s.seen.String())
		}
	}
}

func (s *seat) types(text string) {
	s.t.Helper()
	if _, err := s.person.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

func (s *seat) echoes() (on bool) {
	s.t.Helper()
	s.control(func(fd int) error {
		state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		on = err == nil && state.Lflag&unix.ECHO != 0
		return err
	})
	return on
}

// The questions of keygen on a terminal: the PIN is not shown.
func TestKeygenOnTerminal(t *testing.T) {
	s := sit(t, program(t, "keygen", "-C", "here"))
	s.waitFor("Enter file in which to save the key (")
	s.types("~/mine\n")
	s.waitFor("Enter PIN (empty for no PIN): ")
	if s.echoes() {
		t.Error("the PIN can be seen")
	}
	s.types("first\n")
	s.waitFor("Enter same PIN again: ")
	s.types("second\n")
	s.waitFor("PINs do not match.  Try again.")
	s.waitFor("Enter PIN (empty for no PIN): ")
	s.types("s3cret\n")
	s.waitFor("Enter same PIN again: ")
	s.types("s3cret\n")
	s.waitFor("Your identification has been saved in ")
	s.waitFor("The key lives in ")
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
	checkKey(t, filepath.Join(s.cmd.Dir, "mine"))
	if !s.echoes() {
		t.Error("the terminal was left without echo")
	}
}

// In the background, keygen does not take what is typed for the shell: it is
// stopped, and asks when it is back.
func TestKeygenInBackground(t *testing.T) {
	cmd := program(t, "keygen")
	shell := exec.Command("bash", "--norc", "-i")
	shell.Dir, shell.Env = cmd.Dir, append(cmd.Env, "KEYGEN="+cmd.Path, "PS1=ready> ")
	s := sit(t, shell)
	s.types("set -b; $KEYGEN keygen -q -f id &\n")
	s.waitFor("Stopped")
	s.types("echo shell reads $((6*7))\n")
	s.waitFor("shell reads 42")
	s.types("fg\n")
	s.waitFor("Enter PIN (empty for no PIN): ")
	s.types("s3cret\n")
	s.waitFor("Enter same PIN again: ")
	s.types("s3cret\n")
	s.waitFor("ready> ")
	s.types("test -e id.tpm && echo made $((6*7))\n")
	s.waitFor("made 42")
	s.types("exit\n")
	_ = s.cmd.Wait()
}

// Ctrl-C and Ctrl-D at a question end keygen, and give the terminal back.
func TestKeygenGivenUp(t *testing.T) {
	for name, test := range map[string]struct {
		typed  string
		status int
		says   string
	}{"ctrl-c": {"\x03", 130, "interrupted"}, "ctrl-d": {"\x04", 1, "refused at the prompt"}} {
		t.Run(name, func(t *testing.T) {
			s := sit(t, program(t, "keygen", "-f", "id"))
			s.waitFor("Enter PIN (empty for no PIN): ")
			s.types(test.typed)
			s.waitFor(test.says)
			_ = s.cmd.Wait()
			if got := s.cmd.ProcessState.ExitCode(); got != test.status {
				t.Errorf("exit status %d, want %d", got, test.status)
			}
			if !s.echoes() {
				t.Error("the terminal was left without echo")
			}
			if files := list(t, s.cmd.Dir); len(files) > 0 {
				t.Errorf("left behind %q", files)
			}
		})
	}
}

// Without a display the PIN is asked for on the terminal of serve.
func TestServeAsksOnTerminal(t *testing.T) {
	cmd := program(t, "keygen", "-q", "-N", "s3cret", "-f", "id")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	serve := program(t, "serve", "--key-dir", ".", "--", "ssh-keygen", "-Y", "sign", "-n", "file", "-f", "id.pub", "id.pub")
	serve.Dir, serve.Env = cmd.Dir, cmd.Env
	s := sit(t, serve)
	s.waitFor("Enter PIN for ")
	s.waitFor("id.tpm")
	s.waitFor("for ssh-keygen (process ")
	s.types("wrong\n")
	s.waitFor("Wrong PIN. ")
	s.types("s3cret\n")
	s.waitFor("Write signature to id.pub.sig")
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("%v; seen %q", err, s.seen.String())
	}
	if !s.echoes() {
		t.Error("the terminal was left without echo")
	}
}

// A shell under serve gives the terminal to its jobs, and the agent is in the
// background there. It asks all the same where its client is in front of
// somebody, and not where that one is in the background too: then it neither
// takes the shell's input nor is stopped for trying.
func TestServeInBackground(t *testing.T) {
	cmd := program(t, "keygen", "-q", "-N", "s3cret", "-f", "id")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	serve := program(t, "serve", "--prompt", "terminal", "--key-dir", ".", "--", "bash", "--norc", "-i")
	serve.Dir, serve.Env = cmd.Dir, cmd.Env
	s := sit(t, serve)
	s.types("ssh-keygen -Y sign -n file -f id.pub id.pub; read line; echo \"over: $line\"\n")
	s.waitFor("Enter PIN for ")
	s.waitFor(": ")
	if s.echoes() {
		t.Error("the PIN can be seen")
	}
	s.types("s3cret\n")
	s.waitFor("Write signature to id.pub.sig")
	s.types("typed\n")
	s.waitFor("over: typed")
	s.types("ssh-keygen -Y sign -n file -f id.pub id.pub &\n")
	s.waitFor("no way to ask the user; terminal: the client is in the background of its terminal, and the agent's terminal, /dev/tty, is in use by another program")
	s.types("exit 5\n")
	_ = s.cmd.Wait()
	if got := s.cmd.ProcessState.ExitCode(); got != 5 {
		t.Errorf("exit status %d; seen %q", got, s.seen.String())
	}
}

// Ctrl-C in a command under serve is the command's: the agent goes on until it
// ends.
func TestCtrlCUnderServe(t *testing.T) {
	s := sit(t, program(t, "serve", "--", "sh", "-c", `n=0; trap 'n=$((n+1)); echo "interrupt $n"' INT; echo ready; read a; read b; exit $n`))
	s.waitFor("ready")
	s.types("\x03")
	s.waitFor("interrupt 1")
	s.types("\n\n")
	_ = s.cmd.Wait()
	if got := s.cmd.ProcessState.ExitCode(); got != 1 {
		t.Errorf("the command saw %d interrupts, want 1; seen %q", got, s.seen.String())
	}
	if strings.Contains(s.seen.String(), "interrupt 2") {
		t.Error("the signal came twice")
	}
}
