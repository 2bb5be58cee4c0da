package socket

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// inheritedChild is a service. It prints what it inherited and serves one
// connection.
func inheritedChild() error {
	if os.Getenv("SOCKET_TEST_PID") == "own" { // only the process itself knows it
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	l, err := Inherited()
	if err != nil {
		return err
	}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "LISTEN_") {
			return fmt.Errorf("%s is still in the environment", v)
		}
	}
	if l == nil {
		fmt.Println("none")
		return nil
	}
	again, err := Inherited()
	if again != nil || err != nil {
		return fmt.Errorf("a second Inherited gives %v, %v", again, err)
	}
	fmt.Println("listening on", l.Addr())
	c, err := l.Accept()
	if err != nil {
		return err
	}
	pid, _, _ := c.(*Conn).Peer()
	fmt.Fprintf(c, "you are %d", pid)
	return closeAll(c, l)
}

func closeAll(c net.Conn, l *Listener) error {
	if err := c.Close(); err != nil {
		return err
	}
	return l.Close()
}

// pass starts inheritedChild with files as descriptors 3 and up.
func pass(t *testing.T, pid string, files ...*os.File) *child {
	t.Helper()
	cmd := self(t)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "LISTEN_PID="+pid, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES=agent", "LISTEN_PIDFDID=1", "SOCKET_TEST_PID="+pid)
	return startChild(t, cmd, "inherited")
}

func listeningFile(t *testing.T, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	must(t, err)
	must(t, l.Close())
	t.Cleanup(func() { f.Close() })
	return f
}

func TestInherited(t *testing.T) {
	t.Parallel()
	path := shortDir(t) + "/s"
	f := listeningFile(t, path)
	c := pass(t, "own", f)
	if got := c.line(); got != "listening on "+path {
		t.Fatalf("the service says %q", got)
	}
	wantGreeting(t, path)
	c.end()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the manager's socket is gone: %v", err)
	}
}

func wantGreeting(t *testing.T, path string) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	must(t, err)
	defer conn.Close()
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	must(t, err)
	if want := fmt.Sprintf("you are %d", os.Getpid()); string(buf[:n]) != want {
		t.Errorf("the answer is %q, want %q", buf[:n], want)
	}
}

func TestNothingInherited(t *testing.T) {
	t.Parallel()
	f := listeningFile(t, shortDir(t)+"/s")
	for name, c := range map[string]*child{
		"no socket":           pass(t, "own"),
		"for another process": pass(t, "1", f),
		"not a number":        pass(t, "x", f),
		"not activated":       startChild(t, self(t), "inherited"),
	} {
		if got := c.line(); got != "none" {
			t.Errorf("%s: the service says %q", name, got)
		}
	}
}

func TestInheritedUseless(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	good := listeningFile(t, dir+"/s")
	file, err := os.Open(os.DevNull)
	must(t, err)
	defer file.Close()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer tcp.Close()
	tcpFile, err := tcp.File()
	must(t, err)
	defer tcpFile.Close()
	for _, test := range []struct {
		files []*os.File
		want  string
	}{
		{[]*os.File{good, good}, "one listening unix stream socket is needed"},
		{[]*os.File{file}, "socket operation on non-socket"},
		{[]*os.File{tcpFile}, "one listening unix stream socket is needed"},
		{[]*os.File{rawSocket(t, unix.SOCK_DGRAM)}, "one listening unix stream socket is needed"},
		{[]*os.File{rawSocket(t, unix.SOCK_STREAM)}, "one listening unix stream socket is needed"},
	} {
		if got := pass(t, "own", test.files...).line(); !strings.Contains(got, test.want) {
			t.Errorf("the service says %q, want %q", got, test.want)
		}
	}
}

func rawSocket(t *testing.T, kind int) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

// TestSystemd has systemd's own program pass the socket.
func TestSystemd(t *testing.T) {
	t.Parallel()
	activate := needs.Program(t, "systemd-socket-activate")
	path := shortDir(t) + "/s"
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(activate, "--listen="+path, "--fdname=agent", "-E", childEnv, exe)
	stderr, w, err := os.Pipe()
	must(t, err)
	defer stderr.Close()
	cmd.Env = append(os.Environ(), childEnv+"=inherited")
	stdout, out, err := os.Pipe()
	must(t, err)
	defer stdout.Close()
	cmd.Stdout, cmd.Stderr = out, w
	must(t, cmd.Start())
	w.Close()
	out.Close()
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	// It reports when it listens, and becomes the service at the first connection.
	if got := readLine(t, stderr); !strings.Contains(got, "Listening on "+path) {
		t.Fatalf("systemd-socket-activate says %q", got)
	}
	wantGreeting(t, path)
	if got := readLine(t, stdout); got != "listening on "+path {
		t.Errorf("the service says %q", got)
	}
	must(t, cmd.Wait())
}

// readLine reads exactly one line.
func readLine(t *testing.T, f *os.File) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := f.Read(b); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}
