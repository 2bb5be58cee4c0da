// Package softtpm runs the private software TPM behind the address "software": an
// swtpm that lives as long as one connection to it, with its state in a directory of
// the user.
//
// It is for trying things out without a chip. Only file modes protect its keys.
package softtpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const program = "swtpm"

// TPM is a running software TPM. There is at most one at a time on a state
// directory, on the whole machine.
type TPM struct {
	conn   *net.UnixConn
	cmd    *exec.Cmd
	lock   *os.File
	stderr head
	exited chan struct{} // closed when swtpm has exited
}

// Start starts the software TPM on the state directory dir, which it makes if
// necessary, and returns when the TPM answers. If the software TPM is in use, by
// another process or by this one, Start waits until ctx ends, but at most half a
// minute.
func Start(ctx context.Context, dir string) (*TPM, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("the software TPM needs the program %s: install the package %s (%w)", program, program, err)
	}
	if err := prepareDir(dir); err != nil {
		return nil, fmt.Errorf("the software TPM's state: %w", err)
	}
	lock, err := acquire(ctx, dir)
	if err != nil {
		return nil, err
	}
	t, err := start(path, dir, lock)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	if err := t.greet(ctx); err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, t.failed(err))
	}
	return t, nil
}

// start runs swtpm with one end of a pair of sockets. swtpm cannot outlive us: it
// exits when the other end closes, and the kernel kills it if we die. The latter is
// needed because swtpm 0.7 loops for ever if it cannot deliver an answer. A second
// swtpm cannot start on the same state meanwhile, because this one inherits the
// descriptor that holds the lock.
func start(path, dir string, lock *os.File) (*TPM, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	t := &TPM{conn: ours, lock: lock, exited: make(chan struct{})}
	// swtpm's options cannot hold a comma, so the state directory is passed as the
	// working directory.
	t.cmd = exec.Command(path, "socket", "--tpm2", "--fd", "3",
		"--tpmstate", "dir=.,mode=0600", "--flags", "not-need-init,startup-clear")
	t.cmd.Dir = dir
	t.cmd.Stderr = &t.stderr
	t.cmd.ExtraFiles = []*os.File{theirs, lock}
	// Setsid keeps the terminal's Ctrl-C from swtpm, which must live until it has
	// been shut down in order.
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := t.run(); err != nil {
		ours.Close()
		return nil, err
	}
	return t, nil
}

// run starts swtpm and waits for its exit in the background. Pdeathsig takes the end
// of the thread that started swtpm for our death, so that thread is kept.
func (t *TPM) run() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := t.cmd.Start()
		started <- err
		if err == nil {
			t.cmd.Wait()
			close(t.exited)
		}
	}()
	return <-started
}

// socketPair returns our end as a connection, and swtpm's as a file.
func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "software TPM")
	defer f.Close() // FileConn has a duplicate
	theirs = os.NewFile(uintptr(fds[1]), "software TPM")
	conn, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// Commands that the package sends itself: tag, size, code, parameters.
var (
	// getTestResult is TPM2_GetTestResult, the cheapest command.
	getTestResult = []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x7c}
	// shutdownClear is TPM2_Shutdown(TPM_SU_CLEAR). A TPM that stops without it
	// counts a failed try towards its dictionary-attack lockout.
	shutdownClear = []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 0}
)

// startTime bounds the start of swtpm, which takes milliseconds, and some hundred
// the first time.
const startTime = 20 * time.Second

// greet waits until swtpm answers.
func (t *TPM) greet(ctx context.Context) error {
	t.conn.SetDeadline(time.Now().Add(startTime))
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		t.conn.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	_, err := t.conn.Write(getTestResult)
	if err == nil {
		_, err = t.conn.Read(make([]byte, 4096))
	}
	if !stop() {
		<-interrupted
		return ctx.Err()
	}
	t.conn.SetDeadline(time.Time{})
	return err
}

// failed ends an swtpm that did not start, and adds what it wrote about that.
func (t *TPM) failed(err error) error {
	t.Stop(true)
	if said := strings.TrimSpace(t.stderr.String()); said != "" {
		return fmt.Errorf("%w: it says: %s", err, said)
	}
	return fmt.Errorf("%w (%v)", err, t.cmd.ProcessState)
}

// Conn returns the connection to the TPM, which carries raw TPM commands and
// answers. Only Stop may close it: otherwise swtpm ends uncleanly.
func (t *TPM) Conn() *net.UnixConn { return t.conn }

// Bounds of the steps of Stop. swtpm's slowest command takes about a second, so
// none is reached unless swtpm hangs.
const (
	pendingTime  = 5 * time.Second
	shutdownTime = 3 * time.Second
	exitTime     = 2 * time.Second
)

// StopTime bounds Stop.
const StopTime = pendingTime + shutdownTime + exitTime + time.Second

// Stop shuts the TPM down, waits until swtpm has exited, and releases the state.
// pending says that a command was sent whose answer was not read. Stop is called
// once.
func (t *TPM) Stop(pending bool) error {
	defer t.lock.Close()
	if pending {
		// swtpm takes everything that it reads at once for one command, so a
		// running command must be answered first.
		t.conn.SetReadDeadline(time.Now().Add(pendingTime))
		t.conn.Read(make([]byte, 4096))
	}
	t.shutDown()
	t.conn.Close()
	select {
	case <-t.exited:
		return nil
	case <-time.After(exitTime):
	}
	t.cmd.Process.Kill()
	<-t.exited
	return errors.New(program + " did not stop, and was killed")
}

// shutDown sends TPM2_Shutdown and waits until swtpm has answered and hung up. What
// follows is the same if that fails.
func (t *TPM) shutDown() {
	t.conn.SetDeadline(time.Now().Add(shutdownTime))
	if _, err := t.conn.Write(shutdownClear); err != nil {
		return
	}
	t.conn.CloseWrite()
	for buf := make([]byte, 4096); ; {
		if _, err := t.conn.Read(buf); err != nil {
			return
		}
	}
}

// head keeps the beginning of what a process writes.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if h.Len() < 2048 {
		h.Buffer.Write(p[:min(len(p), 2048)])
	}
	return len(p), nil
}
