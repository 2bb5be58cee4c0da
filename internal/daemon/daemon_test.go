package daemon

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", "-c", "echo; read end", "", strings.Repeat("0", 1000))
	end, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has its arguments now
		t.Fatal(err)
	}
	got := arguments(cmd.Process.Pid)
	end.Close()
	_ = cmd.Wait() // it read nothing
	if !slices.Equal(got, cmd.Args) {
		t.Errorf("%q, want %q", got, cmd.Args)
	}
	for _, pid := range []int{-1, 0, cmd.Process.Pid, 1<<31 - 1} {
		if got := arguments(pid); got != nil {
			t.Errorf("process %d: %q", pid, got)
		}
	}
}
