// Package tpmtest gives each test its own swtpm, and counts or fails its
// commands. When a test ends it must have left nothing in the TPM.
package tpmtest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// patience bounds each wait in this package. It only ends tests that hang.
const patience = time.Minute

// An SWTPM is a software TPM with a unix socket and a state directory, both in a
// temporary directory. It serves one connection at a time: while one is open, all
// others wait.
type SWTPM struct {
	t   testing.TB
	dir string

	mu   sync.Mutex
	proc *process // nil if it is not running
}

// process is one run of the swtpm program.
type process struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	exited chan struct{} // closed once Wait has returned
}

// Start starts an swtpm and returns when it accepts connections. When the test
// ends it reports every transient object and every session that is left in the
// TPM, stops swtpm and waits for it. The test is skipped if swtpm is missing.
func Start(t testing.TB) *SWTPM {
	t.Helper()
	needs.Program(t, "swtpm")
	// Not t.TempDir, whose name includes the test's: the path of a socket must fit
	// into 108 bytes.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatalf("tpmtest: %v", err)
	}
	s := &SWTPM{t: t, dir: dir}
	t.Cleanup(func() {
		s.checkLeftovers()
		s.Kill()
		os.RemoveAll(dir)
	})
	s.start()
	return s
}

// Address returns the address of the TPM in tpm2-tools' notation,
// "swtpm:path=…".
func (s *SWTPM) Address() string { return "swtpm:path=" + s.Socket() }

// Socket returns the path of the server socket, which takes raw TPM commands.
func (s *SWTPM) Socket() string { return filepath.Join(s.dir, "s") }

// PID returns the process ID of swtpm, or 0 if it is not running.
func (s *SWTPM) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.cmd.Process.Pid
}

// start runs swtpm on sockets that already listen, so that there is no need to
// wait for them.
func (s *SWTPM) start() {
	s.t.Helper()
	commands := s.listen(s.Socket())
	defer commands.Close()
	control := s.listen(s.Socket() + ".ctrl") // where tpm2-tools look for it
	defer control.Close()

	p := &process{exited: make(chan struct{})}
	p.cmd = exec.Command("swtpm", "socket", "--tpm2",
		"--server", "type=unixio,fd=3", "--ctrl", "type=unixio,fd=4",
		"--tpmstate", "dir=.,mode=0600", "--flags", "not-need-init,startup-clear")
	p.cmd.Dir = s.dir
	p.cmd.Stderr = &p.stderr
	p.cmd.ExtraFiles = []*os.File{commands, control}
	// If the test is killed or panics, its TPM ends, too.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.run(); err != nil {
		s.t.Fatalf("tpmtest: starting swtpm: %v", err)
	}
	s.mu.Lock()
	s.proc = p
	s.mu.Unlock()
}

// listen returns a listening socket for swtpm to inherit.
func (s *SWTPM) listen(path string) *os.File {
	s.t.Helper()
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		s.t.Fatalf("tpmtest: %v", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File() // a duplicate
	if err != nil {
		s.t.Fatalf("tpmtest: %v", err)
	}
	return f
}

// run starts swtpm and waits for its end in the background. Pdeathsig is sent when
// the thread that started the process ends, so the thread is kept until then.
func (p *process) run() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
			close(p.exited)
		}
	}()
	return <-started
}

// take returns the current run, or nil, and forgets it.
func (s *SWTPM) take() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proc
	s.proc = nil
	return p
}

// Kill ends swtpm with SIGKILL and waits until it is gone, as in a power failure.
// The state remains. If swtpm is not running, Kill does nothing.
func (s *SWTPM) Kill() {
	if p := s.take(); p != nil {
		p.cmd.Process.Kill()
		<-p.exited
	}
}

// Stop shuts the TPM down properly and ends swtpm. After TPM2_Shutdown(CLEAR) the
// TPM counts no failed try against the dictionary attack lockout. There must be no
// other connection to the TPM.
func (s *SWTPM) Stop() {
	s.t.Helper()
	if _, err := s.command(tpmShutdown, []byte{0, 0}); err != nil {
		s.t.Errorf("tpmtest: shutting down swtpm: %v", err)
	}
	s.Kill()
}

// Restart starts swtpm again with the same state, after a Stop if it is still
// running. Transient objects are gone.
func (s *SWTPM) Restart() {
	s.t.Helper()
	if s.PID() != 0 {
		s.Stop()
	}
	s.start()
}

// Reset kills swtpm and starts it again, as a power failure does. The TPM may
// count the unclean stop as a failed try.
func (s *SWTPM) Reset() {
	s.t.Helper()
	s.Kill()
	s.start()
}

// Replace replaces the TPM with a new one, at the same address. Keys created before
// belong to a different TPM now.
func (s *SWTPM) Replace() {
	s.t.Helper()
	s.Kill()
	states, _ := filepath.Glob(filepath.Join(s.dir, "tpm2-*"))
	for _, f := range states {
		os.Remove(f)
	}
	s.start()
}

// Pause stops swtpm with SIGSTOP: the TPM accepts commands and does not answer.
// swtpm has stopped when Pause returns.
func (s *SWTPM) Pause() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	for {
		// WNOWAIT leaves the status to the process's Wait.
		err := unix.Waitid(unix.P_PID, s.PID(), nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		if err == nil {
			return
		}
		if err != unix.EINTR {
			s.t.Fatalf("tpmtest: waiting until swtpm has stopped: %v", err)
		}
	}
}

// Resume ends Pause.
func (s *SWTPM) Resume() { s.signal(syscall.SIGCONT) }

func (s *SWTPM) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		s.t.Fatalf("tpmtest: %v for an swtpm that does not run", sig)
	}
	if err := s.proc.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("tpmtest: %v: %v", sig, err)
	}
}

// Env returns an environment in which tpm2-tools use this TPM.
func (s *SWTPM) Env() []string {
	return append(os.Environ(), "TPM2TOOLS_TCTI="+s.Address())
}

// Tool runs one of tpm2-tools with this TPM and returns its output. It fails the
// test if the tool fails, and skips it if the tool is missing. There must be no
// other connection to the TPM.
func (s *SWTPM) Tool(name string, args ...string) []byte {
	s.t.Helper()
	out, stderr, err := s.tool(name, args)
	if err != nil {
		s.t.Fatalf("tpmtest: %s %q: %v\n%s", name, args, err, stderr)
	}
	return out
}

// Fails runs one of tpm2-tools, and fails the test if the tool succeeds.
func (s *SWTPM) Fails(name string, args ...string) {
	s.t.Helper()
	var exit *exec.ExitError
	if out, stderr, err := s.tool(name, args); !errors.As(err, &exit) {
		s.t.Fatalf("tpmtest: %s %q: %v; it should fail\n%s%s", name, args, err, out, stderr)
	}
}

func (s *SWTPM) tool(name string, args []string) (stdout, stderr []byte, err error) {
	s.t.Helper()
	cmd := exec.Command(needs.Program(s.t, name), args...)
	cmd.Env = s.Env()
	cmd.Dir = s.dir
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	stdout, err = cmd.Output()
	return stdout, complaint.Bytes(), err
}

// Command sends one command without authorization on a new connection: its code
// and what follows the header. It returns what follows the header of the answer,
// or an error for every return code except success.
func (s *SWTPM) Command(code uint32, parameters []byte) ([]byte, error) {
	return s.command(code, parameters)
}

func (s *SWTPM) command(code uint32, parameters []byte) ([]byte, error) {
	c, err := net.Dial("unix", s.Socket())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	answer, err := exchange(c, NewCommand(code, parameters))
	if err != nil {
		return nil, err
	}
	if rc := ReturnCode(answer); rc != 0 {
		return nil, fmt.Errorf("%s: return code %#x", CommandName(code), rc)
	}
	return answer[headerSize:], nil
}
