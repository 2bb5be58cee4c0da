package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/pinsource"
)

// hardened is a command of the tests. It prints what Harden changes in a process.
func hardened() {
	if err := pinsource.Harden(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var limit unix.Rlimit
	limitErr := unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	fmt.Println("dumpable", dumpable, err, "core", limit.Cur, limitErr)
}

// TestHarden checks that Harden turns off core dumps and access by other processes.
func TestHarden(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("hardened").CombinedOutput()
	if want := "dumpable 0 <nil> core 0 <nil>\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}

// TestNotify checks that the agent tells the service manager when it is ready and when
// it stops.
func TestNotify(t *testing.T) {
	t.Parallel()
	cmd := program(t, "serve")
	path := filepath.Join(cmd.Dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if got := hears(t, manager); got != "READY=1" {
		t.Errorf("the service manager received %q", got)
	}
	conn, err := net.Dial("unix", filepath.Join(cmd.Dir, "tpm-agent", "agent.sock"))
	if err != nil {
		t.Errorf("the agent reported that it is ready, but does not listen: %v", err)
	} else {
		conn.Close()
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if got := hears(t, manager); got != "STOPPING=1" {
		t.Errorf("the service manager received %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// hears returns the next message to the service manager.
func hears(t *testing.T, manager *net.UnixConn) string {
	t.Helper()
	if err := manager.SetReadDeadline(time.Now().Add(longEnough)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := manager.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// TestLogWithoutReader checks that the agent keeps running if its standard error is a
// pipe without a reader.
func TestLogWithoutReader(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "serve", "-v")
	cmd.Stderr = w
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	w.Close()
	r.Close()
	buf := make([]byte, 256)
	if n, err := out.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "SSH_AUTH_SOCK=") {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	_ = cmd.Process.Signal(syscall.SIGHUP) // the agent logs this
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestLogPipeFull checks that a full pipe at standard error blocks neither the agent's
// clients nor its end.
func TestLogPipeFull(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := program(t, "serve")
	cmd.Stderr = w
	startAndWait(t, cmd, filepath.Join(cmd.Dir, "tpm-agent", "agent.sock"))
	w.Close()
	conn, err := net.Dial("unix", filepath.Join(cmd.Dir, "tpm-agent", "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	const refused = 5 // each one logs at least 100 bytes, and the pipe holds 64 KiB
	for range 2000 {
		if _, err := conn.Write([]byte{0, 0, 0, 1, 0xf0}); err != nil {
			t.Fatal(err)
		}
		answer, err := readFrame(conn)
		if err != nil || len(answer) != 1 || answer[0] != refused {
			t.Fatalf("answer %x, %v", answer, err)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestManOnTerminal checks that man(1) shows the page on a terminal.
func TestManOnTerminal(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("man"); err != nil {
		t.Skip("needs man: install the package man-db")
	}
	cmd := program(t, "man", "keygen")
	cmd.Env = append(cmd.Env, "PAGER=cat", "MANPAGER=cat", "TERM=dumb")
	s := sit(t, cmd)
	for range 3 { // twice in the first line and once in the last
		s.WaitFor("TPM-AGENT-KEYGEN(1)")
	}
	s.ends(0)
}
