package socket

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary run childMain instead of the tests.
const childEnv = "SOCKET_TEST_CHILD"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		if err := childMain(strings.Fields(args)); err != nil {
			fmt.Println("error:", err)
		}
		return
	}
	syscall.Umask(0o022) // tests that need another umask use a child
	goleak.VerifyTestMain(m)
}

func childMain(args []string) error {
	switch args[0] {
	case "bind": // UMASK PATH: prints the mode right after bind
		if err := setUmask(args[1]); err != nil {
			return err
		}
		l, err := bind(args[2])
		if err != nil {
			return err
		}
		defer l.Close()
		return printMode(args[2])
	case "listen": // UMASK PATH: until standard input ends
		if err := setUmask(args[1]); err != nil {
			return err
		}
		l, err := Listen(args[2])
		if err != nil {
			return err
		}
		if err := printMode(args[2]); err != nil {
			return err
		}
		io.Copy(io.Discard, os.Stdin)
		return l.Close()
	case "own", "temp": // DIR: until standard input ends
		listen := ListenOwn
		if args[0] == "temp" {
			listen = ListenTemp
		}
		l, err := listen(args[1])
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		io.Copy(io.Discard, os.Stdin)
		return l.Close()
	case "connect": // PATH
		c, err := net.Dial("unix", args[1])
		if err != nil {
			return err
		}
		defer c.Close()
		c.Write([]byte("hello"))
		got, err := io.ReadAll(c)
		fmt.Printf("read %q, reset %v\n", got, errors.Is(err, unix.ECONNRESET))
		return nil
	case "inherited":
		return inheritedChild()
	}
	return fmt.Errorf("unknown child %s", args[0])
}

func setUmask(octal string) error {
	mask, err := strconv.ParseUint(octal, 8, 32)
	syscall.Umask(int(mask))
	return err
}

func printMode(path string) error {
	fi, err := os.Lstat(path)
	if err == nil {
		fmt.Println(fi.Mode())
	}
	return err
}

// A child is a running childMain.
type child struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
}

func startChild(t testing.TB, cmd *exec.Cmd, args ...string) *child {
	t.Helper()
	// Without this the race detector waits for a second at each exit.
	cmd.Env = append(cmd.Environ(), childEnv+"="+strings.Join(args, " "), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &child{t, cmd, stdin, bufio.NewScanner(stdout)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return c
}

func (c *child) line() string {
	c.t.Helper()
	if !c.lines.Scan() {
		c.t.Fatalf("the child ended early: %v", c.lines.Err())
	}
	return c.lines.Text()
}

// end closes the child's input and waits for it.
func (c *child) end() {
	c.t.Helper()
	c.stdin.Close()
	must(c.t, c.cmd.Wait())
}

func self(t testing.TB) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	return exec.Command(exe)
}
