package ptytest

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A program has the terminal as its own, and each text is found once, in order.
func TestTerminal(t *testing.T) {
	t.Parallel()
	p := New(t)
	cmd := p.Run(exec.Command("sh", "-c", `tty; stty size; read a </dev/tty; echo "a $a"; read b; echo "a $b"`))
	p.WaitFor(p.Path() + "\r\n")
	if got := p.WaitFor("\r\n"); got != "24 80" {
		t.Errorf("the size is %q", got)
	}
	p.Type("one\n")
	p.WaitFor("a ")
	p.WaitFor("one\r\n")
	p.Type("two\n")
	if got := p.WaitFor("a "); got != "two\r\n" {
		t.Errorf("between two waits: %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got, want := p.Seen(), "24 80\r\none\r\na one\r\ntwo\r\na two\r\n"; got != p.Path()+"\r\n"+want {
		t.Errorf("seen %q, want %q at the end", got, want)
	}
}

// Seen returns text that no wait has found, even if it was just written. It never
// contains the mark, and the next wait begins after it.
func TestSeen(t *testing.T) {
	t.Parallel()
	p := New(t)
	for i := range 100 {
		if out, err := exec.Command("sh", "-c", `printf x >"$0"`, p.Path()).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got, want := p.Seen(), strings.Repeat("x", i+1); got != want {
			t.Fatalf("seen %q, want %q", got, want)
		}
	}
	p.Type("y")
	if before := p.WaitFor("y"); before != "" {
		t.Errorf("the wait began before: %q", before)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	p := New(t)
	before := p.Settings()
	if !p.Echoes() {
		t.Error("a new terminal does not echo")
	}
	p.Change(func(s *unix.Termios) { s.Lflag &^= unix.ECHO })
	if p.Echoes() || p.Settings() == before {
		t.Error("the change made no difference")
	}
	p.Change(func(s *unix.Termios) { *s = before })
	if p.Settings() != before {
		t.Errorf("got %+v, want %+v", p.Settings(), before)
	}
}

// The leader of the process session receives SIGHUP when the terminal hangs up.
func TestHangUp(t *testing.T) {
	t.Parallel()
	p := New(t)
	// End of file may arrive before the signal.
	cmd := p.Run(exec.Command("sh", "-c", "trap 'exit 7' HUP; echo ready; while :; do read line; done"))
	p.WaitFor("ready")
	p.HangUp()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit status %d", got)
	}
}
