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
)

// hardened is a command of the tests: it prints what harden has changed in a
// process of its own.
func hardened() {
	if err := harden(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var limit unix.Rlimit
	limitErr := unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	fmt.Println("dumpable", dumpable, err, "core", limit.Cur, limitErr)
}

func TestHarden(t *testing.T) {
	out, err := exec.Command("hardened").CombinedOutput()
	if want := "dumpable 0 <nil> core 0 <nil>\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}

// TestNotify: the service manager hears when the agent can be used, and when it
// ends.
func TestNotify(t *testing.T) {
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
		t.Errorf("heard %q", got)
	}
	conn, err := net.Dial("unix", filepath.Join(cmd.Dir, "tpm-agent", "agent.sock"))
	if err != nil {
		t.Errorf("ready, but: %v", err)
	} else {
		conn.Close()
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if got := hears(t, manager); got != "STOPPING=1" {
		t.Errorf("heard %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

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

// TestNobodyReadsTheLog: an agent whose stderr is a pipe to nobody goes on.
func TestNobodyReadsTheLog(t *testing.T) {
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
	_ = cmd.Process.Signal(syscall.SIGHUP) // is logged
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestNobodyTakesTheLog: neither does an agent whose stderr is a pipe that is
// full wait for it, nor a client, nor its end.
func TestNobodyTakesTheLog(t *testing.T) {
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
	const refused = 5 // of 100 bytes and more in the log, and the pipe takes 64 KiB
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

// TestManOnTerminal: man(1) shows the page where there is a terminal.
func TestManOnTerminal(t *testing.T) {
	if _, err := exec.LookPath("man"); err != nil {
		t.Skip("there is no man(1) here")
	}
	cmd := program(t, "man", "keygen")
	cmd.Env = append(cmd.Env, "PAGER=cat", "MANPAGER=cat", "TERM=dumb")
	s := sit(t, cmd)
	for range 3 { // left and right in the first line, and in the last
		s.WaitFor("TPM-AGENT-KEYGEN(1)")
	}
	s.ends(0)
}
