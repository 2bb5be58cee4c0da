package tcti

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// otherDir is the environment variable that makes the test binary play another process
// that uses the software TPM in that directory: see other.
const otherDir = "SOFTTPM_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(otherDir); dir != "" {
		other(dir)
	}
	unix.Umask(0o022) // the TPM refuses directories that others can write to
	goleak.VerifyTestMain(m)
}

// other starts the software TPM, prints swtpm's process id, and stops it when standard
// input ends.
func other(dir string) {
	tpm, err := startSoftware(context.Background(), dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(tpm.cmd.Process.Pid)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		tpm.conn.Write(selfTest) // a long command, whose answer is not read
		fmt.Println("working")
	}
	if err := tpm.stop(false); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process is a running other process.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	swtpm int
}

func startOther(t *testing.T, dir string) *process {
	t.Helper()
	needs.Programs(t, program)
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), otherDir+"="+dir)
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	return p
}

// ready waits until the other process has the TPM.
func (p *process) ready(t *testing.T) {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if p.swtpm, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(line)
	}
}

// selfTest is TPM2_SelfTest(full), which takes a few milliseconds.
var selfTest = []byte{0x80, 1, 0, 0, 0, 11, 0, 0, 1, 0x43, 1}

// dies waits for the exit of a process that is not our child.
func dies(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 20_000)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			t.Fatalf("the process %d is still there (%v)", pid, err)
		}
		return
	}
}

func start1(t *testing.T, dir string) *software {
	t.Helper()
	needs.Programs(t, program)
	tpm, err := startSoftware(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return tpm
}

// send sends a command and returns the answer.
func send(t *testing.T, tpm *software, command []byte) []byte {
	t.Helper()
	if _, err := tpm.conn.Write(command); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := tpm.conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// lockoutCounter asks for TPM_PT_LOCKOUT_COUNTER.
func lockoutCounter(t *testing.T, tpm *software) uint32 {
	t.Helper()
	a := send(t, tpm, []byte{0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 6, 0, 0, 2, 0x0e, 0, 0, 0, 1})
	if len(a) != 27 || !bytes.Equal(a[19:23], []byte{0, 0, 2, 0x0e}) {
		t.Fatalf("unexpected answer %x", a)
	}
	return binary.BigEndian.Uint32(a[23:])
}

// TestShutdown starts and stops the TPM more often than it allows failed tries: it
// would count each unclean stop as one.
func TestShutdown(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b", "state, with a comma")
	for i := range 8 {
		tpm := start1(t, dir)
		if n := lockoutCounter(t, tpm); n != 0 {
			t.Fatalf("start %d: %d failed tries", i, n)
		}
		// Stop must also cope with an answer that was not read.
		pending := i%2 == 1
		if pending {
			if _, err := tpm.conn.Write(getTestResult); err != nil {
				t.Fatal(err)
			}
		}
		if err := tpm.stop(pending); err != nil {
			t.Fatal(err)
		}
		if !tpm.cmd.ProcessState.Success() {
			t.Errorf("swtpm: %v", tpm.cmd.ProcessState)
		}
		if err := unix.Kill(tpm.cmd.Process.Pid, 0); err != unix.ESRCH {
			t.Errorf("swtpm is still there: %v", err)
		}
	}
}

// TestState checks that the state lasts from one start to the next, by a counter that
// a TPM never resets.
func TestState(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	resets := func() uint32 {
		tpm := start1(t, dir)
		defer tpm.stop(false)
		a := send(t, tpm, []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x81}) // TPM2_ReadClock
		if len(a) != 35 {
			t.Fatalf("unexpected answer %x", a)
		}
		return binary.BigEndian.Uint32(a[26:]) // header, time, clock, resetCount
	}
	first := resets()
	if second := resets(); second != first+1 {
		t.Errorf("reset count %d, then %d: not the same TPM", first, second)
	}
}

func TestModes(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, mask := range []int{0, 0o177} {
		unix.Umask(0o022)
		base := t.TempDir()
		unix.Umask(mask)
		dir := filepath.Join(base, "x", "y")
		err := start1(t, dir).stop(false)
		unix.Umask(0)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]os.FileMode{"x": 0o700, "x/y": 0o700, "x/y/tpm2-00.permall": 0o600} {
			info, err := os.Stat(filepath.Join(base, path))
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("umask %o: %s: %v, %v", mask, path, info, err)
			}
		}
	}
}

func TestRefusesDirectory(t *testing.T) {
	t.Parallel()
	needs.Programs(t, program)
	base := t.TempDir()
	make1 := func(name string, mode os.FileMode) string {
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(make1("target", 0o700), link); err != nil {
		t.Fatal(err)
	}
	for says, dir := range map[string]string{
		"users can write": make1("group", 0o770),
		"mode 0707":       make1("others", 0o707),
		"mode 1777":       filepath.Join(make1("parent", 0o1777|os.ModeSticky), "dir"),
		"not a directory": file,
		"link is not":     link,
	} {
		tpm, err := startSoftware(t.Context(), dir)
		if err == nil {
			tpm.stop(false)
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", dir, err, says)
		}
	}
	// A directory that others can only read is closed to them and used.
	dir := make1("readable", 0o755)
	if err := start1(t, dir).stop(false); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info.Mode(), err)
	}
}

func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir := filepath.Join(t.TempDir(), "state")
	_, err := startSoftware(t.Context(), dir)
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "install the package swtpm") {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the state directory was made anyway")
	}
}

// TestBrokenState checks that the error quotes swtpm when it cannot start, and that the
// lock is released.
func TestBrokenState(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if err := start1(t, dir).stop(false); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "tpm2-00.permall")
	whole, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := startSoftware(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "swtpm: Error: Could not initialize libtpms") {
		t.Errorf("half a state: %v", err)
	}
	if err := os.WriteFile(state, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := start1(t, dir).stop(false); err != nil {
		t.Error(err)
	}
}

// TestRace uses one TPM from many goroutines and processes. Two swtpm on one state would
// overwrite each other's.
func TestRace(t *testing.T) {
	t.Parallel()
	needs.Programs(t, program)
	dir := filepath.Join(t.TempDir(), "state")
	var wg sync.WaitGroup
	for range 4 {
		p := startOther(t, dir)
		wg.Go(func() {
			p.ready(t)
			if n := len(running(t, dir)); n != 1 {
				t.Errorf("%d swtpm on one state", n)
			}
			p.in.Close()
			if err := p.cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			tpm, err := startSoftware(t.Context(), dir)
			if err != nil {
				t.Error(err)
				return
			}
			if n := len(running(t, dir)); n != 1 {
				t.Errorf("%d swtpm on one state", n)
			}
			if err := tpm.stop(false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := running(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// running lists the swtpm processes whose working directory is dir.
func running(t *testing.T, dir string) (pids []string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if cwd, err := os.Readlink(p + "/cwd"); err == nil && cwd == dir {
			if exe, _ := os.Readlink(p + "/exe"); filepath.Base(exe) == program {
				pids = append(pids, filepath.Base(p))
			}
		}
	}
	return pids
}

// TestKilledHolder kills a process that has the TPM, once while the TPM is idle and then
// while it works. swtpm must exit, and the next one must be able to start.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	for _, busy := range []bool{false, true, true, true} {
		p := startOther(t, dir)
		p.ready(t)
		if busy {
			if _, err := io.WriteString(p.in, "work\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := p.out.ReadString('\n'); line != "working\n" {
				t.Fatal(line, err)
			}
		}
		p.cmd.Process.Kill()
		p.cmd.Wait()
		dies(t, p.swtpm)
		if err := start1(t, dir).stop(false); err != nil {
			t.Error(err)
		}
	}
}

// TestLockOutlivesHolder closes our descriptor of the lock, as the end of our process
// does. No other swtpm may start as long as this one runs.
func TestLockOutlivesHolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	old := start1(t, dir)
	old.lock.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	tpm, err := startSoftware(ctx, dir)
	if err == nil {
		tpm.stop(false)
	}
	if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("while the old swtpm is there: %v", err)
	}
	if err := old.stop(false); err != nil {
		t.Error(err)
	}
	if err := start1(t, dir).stop(false); err != nil {
		t.Error(err)
	}
}

// TestCancelledWait cancels a waiting Start, which must not keep the lock from others.
func TestCancelledWait(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	tpm := start1(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() {
		_, err := startSoftware(ctx, dir)
		waiting <- err
	}()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := tpm.stop(false); err != nil {
		t.Error(err)
	}
	if err := start1(t, dir).stop(false); err != nil {
		t.Error(err)
	}
}

// TestHangingTPM stops an swtpm that does not react.
func TestHangingTPM(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits out the bounds of Stop")
	}
	tpm := start1(t, filepath.Join(t.TempDir(), "state"))
	if err := tpm.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := tpm.stop(false); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
}

func TestStateDir(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	for state, want := range map[string]string{
		"":           "/home/me/.local/state/tpm-agent/swtpm",
		"relative/x": "/home/me/.local/state/tpm-agent/swtpm",
		"/state":     "/state/tpm-agent/swtpm",
	} {
		t.Setenv("XDG_STATE_HOME", state)
		if got, err := stateDir(); err != nil || got != want {
			t.Errorf("%q: %s, %v", state, got, err)
		}
	}
}

// TestDescriptors checks that no descriptor stays open.
func TestDescriptors(t *testing.T) {
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	dir := filepath.Join(t.TempDir(), "state")
	start1(t, dir).stop(false)
	before := count()
	for range 5 {
		start1(t, dir).stop(false)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
