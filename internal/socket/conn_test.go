package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// accept runs Accept once and sends its result.
func accept(l *Listener) (conns chan net.Conn, errs chan error) {
	conns, errs = make(chan net.Conn, 1), make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			errs <- err
			return
		}
		conns <- c
	}()
	return conns, errs
}

func TestPeer(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	l := listen(t, path)
	if l.Addr().String() != path {
		t.Errorf("the address is %v", l.Addr())
	}
	c := startChild(t, self(t), "connect", path)
	got, err := l.Accept()
	must(t, err)
	pid, uid, _ := got.(*Conn).Peer()
	if pid != c.cmd.Process.Pid || uid != os.Geteuid() {
		t.Errorf("the peer is process %d of uid %d, want %d of %d", pid, uid, c.cmd.Process.Pid, os.Geteuid())
	}
	buf := make([]byte, 5)
	_, err = io.ReadFull(got, buf)
	must(t, err)
	got.Write([]byte("answer"))
	must(t, got.Close())
	if line := c.line(); line != `read "answer", reset false` {
		t.Errorf("the peer %s", line)
	}
}

// TestOtherUser lets another user connect, as after a mistaken chmod, and
// checks that the connection is closed unanswered.
func TestOtherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	dir := shortDir(t)
	path := dir + "/s"
	l := listen(t, path)
	refused := make(chan int, 10)
	l.Refused = func(uid int) { refused <- uid }
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(path, 0o666))

	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	// Another test that starts a program now must not inherit the open file: one
	// that is open for writing cannot be run.
	syscall.ForkLock.RLock()
	err = os.WriteFile(dir+"/test", exe, 0o755) // where the other user can run it
	syscall.ForkLock.RUnlock()
	must(t, err)
	cmd := self(t)
	cmd.Path, cmd.Dir = dir+"/test", "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	conns, errs := accept(l)
	c := startChild(t, cmd, "connect", path)
	// The kernel reports a reset if the peer wrote before the connection was
	// closed.
	if got := c.line(); got != `read "", reset true` && got != `read "", reset false` {
		t.Errorf("the other user %s", got)
	}
	if uid := <-refused; uid != 65534 {
		t.Errorf("uid %d was refused", uid)
	}
	// The same Accept still waits, and serves the right user.
	mine, err := net.Dial("unix", path)
	must(t, err)
	defer mine.Close()
	select {
	case got := <-conns:
		if _, uid, _ := got.(*Conn).Peer(); uid != 0 {
			t.Errorf("uid %d was accepted", uid)
		}
		got.Close()
	case err := <-errs:
		t.Error(err)
	}
}

func TestAcceptErrors(t *testing.T) {
	path := shortDir(t) + "/s"
	l := listen(t, path)
	c, err := net.Dial("unix", path)
	must(t, err)
	defer c.Close()
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}))
	_, err = l.Accept()
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("without descriptors Accept gives %v", err)
	}
	got, err := l.Accept() // the connection is still queued
	must(t, err)
	got.Close()
	_, errs := accept(l)
	must(t, l.Close())
	if err := <-errs; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close Accept gives %v", err)
	}
}

// TestConnSurvives checks that Close leaves connections open.
func TestConnSurvives(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	l := listen(t, path)
	c, err := net.Dial("unix", path)
	must(t, err)
	defer c.Close()
	got, err := l.Accept()
	must(t, err)
	defer got.Close()
	must(t, l.Close())
	_, err = got.Write([]byte("x"))
	must(t, err)
	buf := make([]byte, 1)
	_, err = io.ReadFull(c, buf)
	must(t, err)
}
