package daemon

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAwaitEnd: the wait for an agent that keeps running has an end.
func TestAwaitEnd(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("cat")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := awaitEnd(fd, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "still runs") {
		t.Error(err)
	}
}

func TestServes(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		"tpm-agent\x00serve\x00":                        true,
		"/usr/bin/tpm-agent\x00serve\x00--\x00sh\x00":   true,
		"tpm-agent\x00--tpm\x00software\x00serve\x00-v": true,
		"tpm-agent\x00serve\x00--fork\x00--forked\x00":  true,
		"tpm-agent\x00list\x00":                         false,
		"tpm-agent\x00keygen\x00-C\x00serve\x00":        false,
		"tpm-agent\x00help\x00serve\x00":                false,
		"tpm-agent\x00--tpm\x00serve\x00list\x00":       false,
		"tpm-agent": false,
		"":          false,
		"\x00":      false,
		"serve\x00": false,
		"tpm-agent\x00no-such-command\x00serve\x00":      false,
		"tpm-agent\x00env\x00--socket\x00serve\x00serve": false,
	} {
		if got := serves([]byte(line)); got != want {
			t.Errorf("serves(%q) = %v", line, got)
		}
	}
}

// FuzzServes: whatever a process calls itself, looking at it does no harm, and
// only what has the word in it counts as an agent.
func FuzzServes(f *testing.F) {
	for _, line := range []string{"tpm-agent\x00serve\x00", "tpm-agent\x00--tpm\x00x\x00serve\x00-t", "\x00\x00serve", "", "a\x00-\x00--\x00serve", "x\x00--tpm=\x00serve\x00--"} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if serves(line) && !strings.Contains("\x00"+string(line)+"\x00", "\x00serve\x00") {
			t.Errorf("%q counts as an agent", line)
		}
	})
}
