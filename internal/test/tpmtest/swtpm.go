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

// patience bounds everything that this package waits for itself. It is never
// reached unless something hangs.
const patience = time.Minute

// SWTPM is a software TPM with a unix socket and a state directory, both in a
// temporary directory. It serves one connection at a time: who keeps one open
// makes everybody else wait.
type SWTPM struct {
	t   testing.TB
	dir string

	mu   sync.Mutex
	proc *process // nil while it does not run
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
	// Not t.TempDir: its name grows with the test's, and a socket's path must
	// fit into 108 octets.
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

// PID returns the process id of swtpm, 0 while it does not run.
func (s *SWTPM) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.cmd.Process.Pid
}

// start runs swtpm on listening sockets that are made here. So they are there
// from the first instant, and nobody needs to wait for them to appear.
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
	// A test that is killed, or panics, takes its TPM with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.run(); err != nil {
		s.t.Fatalf("tpmtest: starting swtpm: %v", err)
	}
	s.mu.Lock()
	s.proc = p
	s.mu.Unlock()
}

// listen returns a listening socket to pass on.
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

// run starts swtpm and waits for its end in the background. Pdeathsig is about
// the thread that starts a process, so that one is kept as long.
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

// take ends the current run in the books and returns it, nil when there is none.
func (s *SWTPM) take() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proc
	s.proc = nil
	return p
}

// Kill ends swtpm with SIGKILL and waits until it is gone, as when the plug is
// pulled. The state stays. Killing a TPM that does not run does nothing.
func (s *SWTPM) Kill() {
	if p := s.take(); p != nil {
		p.cmd.Process.Kill()
		<-p.exited
	}
}

// Stop shuts the TPM down in order (TPM2_Shutdown(CLEAR), so that no failed try
// is counted against the dictionary-attack lockout) and ends swtpm. Nobody else
// may be connected.
func (s *SWTPM) Stop() {
	s.t.Helper()
	if _, err := s.command(tpmShutdown, []byte{0, 0}); err != nil {
		s.t.Errorf("tpmtest: shutting down swtpm: %v", err)
	}
	s.Kill()
}

// Restart starts swtpm again with the same state: after Kill or Stop, or, if it
// still runs, after an orderly Stop. What was transient is gone.
func (s *SWTPM) Restart() {
	s.t.Helper()
	if s.PID() != 0 {
		s.Stop()
	}
	s.start()
}

// Reset pulls the plug and starts the TPM again: Kill, then Restart. The TPM
// may count the unclean stop as a failed try.
func (s *SWTPM) Reset() {
	s.t.Helper()
	s.Kill()
	s.start()
}

// Replace puts another TPM in place of this one: same address, new seeds.
// Every key made before belongs to another TPM now.
func (s *SWTPM) Replace() {
	s.t.Helper()
	s.Kill()
	states, _ := filepath.Glob(filepath.Join(s.dir, "tpm2-*"))
	for _, f := range states {
		os.Remove(f)
	}
	s.start()
}

// Pause stops swtpm with SIGSTOP: a TPM that takes commands and does not answer.
// It has stopped when Pause returns.
func (s *SWTPM) Pause() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	for {
		// WNOWAIT leaves the news, and the end of the process, to its Wait.
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

// Env returns the environment in which tpm2-tools use this TPM.
func (s *SWTPM) Env() []string {
	return append(os.Environ(), "TPM2TOOLS_TCTI="+s.Address())
}

// Tool runs one of tpm2-tools against this TPM and returns what it prints. It
// fails the test when the tool fails. Nobody else may be connected meanwhile.
func (s *SWTPM) Tool(name string, args ...string) []byte {
	s.t.Helper()
	out, stderr, err := s.tool(name, args)
	if err != nil {
		s.t.Fatalf("tpmtest: %s %q: %v (tpm2-tools are in the package tpm2-tools)\n%s", name, args, err, stderr)
	}
	return out
}

// Fails runs one of tpm2-tools that is expected to fail.
func (s *SWTPM) Fails(name string, args ...string) {
	s.t.Helper()
	var exit *exec.ExitError
	if out, stderr, err := s.tool(name, args); !errors.As(err, &exit) {
		s.t.Fatalf("tpmtest: %s %q: %v; it should fail\n%s%s", name, args, err, out, stderr)
	}
}

func (s *SWTPM) tool(name string, args []string) (stdout, stderr []byte, err error) {
	cmd := exec.Command(name, args...)
	cmd.Env = s.Env()
	cmd.Dir = s.dir
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	stdout, err = cmd.Output()
	return stdout, complaint.Bytes(), err
}

// Command sends one bare command without authorization on a connection of its
// own: code and what follows the header. It returns what follows the header of
// the answer, or an error for every return code but success.
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
