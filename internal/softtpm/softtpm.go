// Package softtpm runs the private software TPM behind the address "software":
// an swtpm that lives as long as one connection to it, on a state directory of
// the user's.
//
// It is for trying things out without a chip. Its keys are protected by file
// modes and by nothing else.
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

// program is what the software TPM is made of.
const program = "swtpm"

// TPM is a software TPM that runs. There is one at a time for each state
// directory, on the whole machine.
type TPM struct {
	conn   *net.UnixConn
	cmd    *exec.Cmd
	lock   *os.File
	stderr tail
	exited chan struct{} // closed once swtpm is gone
}

// Start starts the software TPM on the state directory dir, which it makes if
// need be, and returns when it answers. While another process, or another part
// of this one, has it, Start waits its turn, as long as ctx allows but no
// longer than half a minute.
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

// start runs swtpm with one end of a pair of sockets. It cannot outlive us: it
// ends when the other end closes, and should that find it at work on a command
// (swtpm 0.7 then cannot deliver the answer, and turns in circles for ever) the
// kernel kills it, however we die. Nor can anybody start a second swtpm on the
// state while the first still runs, as swtpm inherits the descriptor that holds
// the lock.
func start(path, dir string, lock *os.File) (*TPM, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	t := &TPM{conn: ours, lock: lock, exited: make(chan struct{})}
	// The directory is given as the working directory, as swtpm's options
	// cannot hold a comma.
	t.cmd = exec.Command(path, "socket", "--tpm2", "--fd", "3",
		"--tpmstate", "dir=.,mode=0600", "--flags", "not-need-init,startup-clear")
	t.cmd.Dir = dir
	t.cmd.Stderr = &t.stderr
	t.cmd.ExtraFiles = []*os.File{theirs, lock}
	// Away from the terminal: its Ctrl-C is for us, and swtpm must be there
	// until it has been shut down in order.
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := t.run(); err != nil {
		ours.Close()
		return nil, err
	}
	return t, nil
}

// run starts swtpm, and waits for its end in the background. The kernel takes
// the death of the thread that started a process for that of its parent, so
// that thread is kept as long as swtpm runs.
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

// socketPair returns our end as a connection, and the other as a file to pass on.
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

// Commands that we send ourselves, whole: tag, size, code, parameters.
var (
	// getTestResult is TPM2_GetTestResult: the cheapest question.
	getTestResult = []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x7c}
	// shutdownClear is TPM2_Shutdown(TPM_SU_CLEAR). A TPM that stops without
	// it counts a failed try against its dictionary-attack lockout.
	shutdownClear = []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 0}
)

// startTime bounds the start of swtpm, which takes some milliseconds, and some
// hundred the first time.
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
		// Nothing can be in the way of this answer: the socket is new.
		_, err = t.conn.Read(make([]byte, 4096))
	}
	if !stop() {
		<-interrupted
		return ctx.Err()
	}
	t.conn.SetDeadline(time.Time{})
	return err
}

// failed ends an swtpm that did not start, and adds what it said about that.
func (t *TPM) failed(err error) error {
	t.Stop(true)
	if said := strings.TrimSpace(t.stderr.String()); said != "" {
		return fmt.Errorf("%w: it says: %s", err, said)
	}
	return fmt.Errorf("%w (%v)", err, t.cmd.ProcessState)
}

// Conn returns the connection to the TPM: raw TPM commands and answers. Stop
// closes it; closing it otherwise leaves swtpm to end uncleanly.
func (t *TPM) Conn() *net.UnixConn { return t.conn }

// Bounds of the steps of Stop. None is reached unless swtpm hangs: the slowest
// command of swtpm takes about a second.
const (
	pendingTime  = 5 * time.Second
	shutdownTime = 3 * time.Second
	exitTime     = 2 * time.Second
)

// StopTime bounds Stop.
const StopTime = pendingTime + shutdownTime + exitTime + time.Second

// Stop shuts the TPM down, ends swtpm, waits until it is gone, and lets the next
// one have the state. pending says that a command was sent whose answer was not
// read. Stop is called once.
func (t *TPM) Stop(pending bool) error {
	if pending {
		// swtpm takes whatever it reads at once for one command: so the
		// command that runs must have been answered first.
		t.conn.SetReadDeadline(time.Now().Add(pendingTime))
		t.conn.Read(make([]byte, 4096))
	}
	t.shutDown()
	t.conn.Close()
	err := t.wait()
	t.lock.Close()
	return err
}

// shutDown sends TPM2_Shutdown and waits until swtpm has taken it, answered it
// and hung up. Whether that works does not matter to what follows.
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

// wait waits for the end of swtpm, and brings it about when it takes too long.
func (t *TPM) wait() error {
	timer := time.NewTimer(exitTime)
	defer timer.Stop()
	select {
	case <-t.exited:
		return nil
	case <-timer.C:
	}
	t.cmd.Process.Kill()
	<-t.exited
	return errors.New(program + " did not stop, and was killed")
}

// tail keeps the end of what a process writes.
type tail struct{ bytes.Buffer }

// tailSize is enough for the last words of swtpm.
const tailSize = 2048

func (t *tail) Write(p []byte) (int, error) {
	t.Buffer.Write(p)
	if extra := t.Len() - tailSize; extra > 0 {
		t.Next(extra)
	}
	return len(p), nil
}
