package child

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A program and its children end with the context, also those that do not want
// to. The pipe that all of them hold says when the last one is gone.
func TestEndsWithAllThatItStarted(t *testing.T) {
	alive, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := Command(ctx, 10*time.Millisecond, "/bin/sh", "-c",
		`trap '' TERM; (sleep 1000 & sleep 1000) & echo ready; while :; do sleep 1000; done`)
	cmd.Stdout = held
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	held.Close()
	ready := make([]byte, 6)
	if _, err := io.ReadFull(alive, ready); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := Wait(ctx, cmd); err == nil {
		t.Error("no error for a program that was killed")
	}
	if rest, err := io.ReadAll(alive); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

// What outlives a program that ended by itself is let live: it may be a service
// that the program started for others.
func TestLeavesOthersAlone(t *testing.T) {
	alive, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	cmd := Command(t.Context(), time.Second, "/bin/sh", "-c", `sleep 1000 2>/dev/null & echo $!`)
	cmd.Stdout = held
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	held.Close()
	if err := Wait(t.Context(), cmd); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Errorf("the child that was left behind: %v", err)
	}
}

func TestSessionOfItsOwn(t *testing.T) {
	out := new(bytes.Buffer)
	cmd := Command(t.Context(), time.Second, "/bin/sh", "-c", `cut -d' ' -f1,5,6 /proc/$$/stat`)
	cmd.Stdout = out
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := Wait(t.Context(), cmd); err != nil {
		t.Fatal(err)
	}
	ids := strings.Fields(out.String())
	if len(ids) != 3 || ids[0] != ids[1] || ids[0] != ids[2] {
		t.Errorf("pid, group and session are %q", ids)
	}
}

// A descriptor that Go knows nothing of, because this process inherited it,
// stays here.
func TestInheritsNoDescriptor(t *testing.T) {
	held := t.TempDir()
	fd, err := unix.Open(held, unix.O_RDONLY, 0) // no O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	out := new(bytes.Buffer)
	cmd := Command(t.Context(), time.Second, "/bin/sh", "-c", `for fd in /proc/$$/fd/*; do readlink $fd; done; true`)
	cmd.Stdout = out
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := Wait(t.Context(), cmd); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Contains(got, held) || !strings.HasPrefix(got, "/dev/null\n") {
		t.Errorf("the program holds\n%s", got)
	}
}

func TestNoSuchProgram(t *testing.T) {
	cmd := Command(t.Context(), time.Second, t.TempDir()+"/gone")
	var missing *os.PathError
	if err := Start(cmd); !errors.As(err, &missing) && !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestComplaint(t *testing.T) {
	var c Complaint
	if c.Line() != "" {
		t.Errorf("nothing printed: %q", c.Line())
	}
	for _, part := range []string{"\ncannot ", "open display\n", strings.Repeat("x", 1<<20)} {
		if n, err := c.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	if c.Line() != "cannot open display" {
		t.Errorf("got %q", c.Line())
	}
	if len(c.head) != 256 {
		t.Errorf("keeps %d octets", len(c.head))
	}
}
