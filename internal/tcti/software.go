package tcti

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const program = "swtpm"

// software is the private software TPM: an swtpm that lives as long as one connection
// to it, with its state in a directory of the user. There is at most one at a time on
// a state directory, on the whole machine.
//
// It is for trying things out without a chip. Only file modes protect its keys.
type software struct {
	conn   *net.UnixConn // only stop may close it: otherwise swtpm ends uncleanly
	cmd    *exec.Cmd
	lock   *os.File
	stderr head
	exited chan struct{} // closed when swtpm has exited
}

// openSoftware starts the software TPM, which lives as long as the connection. The next
// program that opens it waits until this one has closed it.
func openSoftware(ctx context.Context) (*Conn, error) {
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	s, err := startSoftware(ctx, dir)
	if err != nil {
		return nil, err
	}
	return newStream(s.conn, false, s.stop, stopTime)
}

// startSoftware starts the software TPM on the state directory dir, which it makes if
// necessary, and returns when the TPM answers. If the software TPM is in use, by
// another process or by this one, it waits until ctx ends, but at most half a
// minute.
func startSoftware(ctx context.Context, dir string) (*software, error) {
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
	t, err := runSWTPM(path, dir, lock)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	err = within(ctx, startTime, t.conn, func() error {
		_, err := t.conn.Write(getTestResult)
		if err == nil {
			_, err = t.conn.Read(make([]byte, maxMessage))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", program, t.failed(err))
	}
	return t, nil
}

// runSWTPM runs swtpm with one end of a pair of sockets. swtpm cannot outlive us: it
// exits when the other end closes, and the kernel kills it if we die. The latter is
// needed because swtpm 0.7 loops for ever if it cannot deliver an answer. A second
// swtpm cannot start on the same state meanwhile, because this one inherits the
// descriptor that holds the lock.
func runSWTPM(path, dir string, lock *os.File) (*software, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	t := &software{conn: ours, lock: lock, exited: make(chan struct{})}
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
	started := make(chan error)
	go func() {
		// Pdeathsig takes the end of the thread that started swtpm for our
		// death, so that thread is kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := t.cmd.Start()
		started <- err
		if err == nil {
			t.cmd.Wait()
			close(t.exited)
		}
	}()
	if err := <-started; err != nil {
		ours.Close()
		return nil, err
	}
	return t, nil
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

// Commands that this file sends itself: tag, size, code, parameters.
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

// failed ends an swtpm that did not start, and adds what it wrote about that.
func (t *software) failed(err error) error {
	t.stop(true)
	if said := strings.TrimSpace(t.stderr.String()); said != "" {
		return fmt.Errorf("%w: it says: %s", err, said)
	}
	return fmt.Errorf("%w (%v)", err, t.cmd.ProcessState)
}

// Bounds of the steps of stop. swtpm's slowest command takes about a second, so
// none is reached unless swtpm hangs.
const (
	pendingTime  = 5 * time.Second
	shutdownTime = 3 * time.Second
	exitTime     = 2 * time.Second
)

// stopTime bounds stop.
const stopTime = pendingTime + shutdownTime + exitTime + time.Second

// stop shuts the TPM down, waits until swtpm has exited, and releases the state.
// pending says that a command was sent whose answer was not read. stop is called
// once.
func (t *software) stop(pending bool) error {
	defer t.lock.Close()
	if pending {
		// swtpm takes everything that it reads at once for one command, so a
		// running command must be answered first.
		t.conn.SetReadDeadline(time.Now().Add(pendingTime))
		t.conn.Read(make([]byte, maxMessage))
	}
	// swtpm answers TPM2_Shutdown and hangs up. What follows is the same if that fails.
	t.conn.SetDeadline(time.Now().Add(shutdownTime))
	if _, err := t.conn.Write(shutdownClear); err == nil {
		t.conn.CloseWrite()
		io.Copy(io.Discard, t.conn)
	}
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

// head keeps the beginning of what a process writes.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if h.Len() < 2048 {
		h.Buffer.Write(p[:min(len(p), 2048)])
	}
	return len(p), nil
}

// stateDir returns the directory of the user's software TPM:
// $XDG_STATE_HOME/tpm-agent/swtpm, by default ~/.local/state/tpm-agent/swtpm. It
// ignores a relative XDG_STATE_HOME, as the specification demands.
func stateDir() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("the software TPM's state: %w", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "tpm-agent", "swtpm"), nil
}

// prepareDir makes dir if it is missing, and makes sure that only we can use dir and
// its parent. It refuses a directory that other users can write to, because they may
// have made what is in it. It closes one that they can only read, and corrects what
// the umask took away.
func prepareDir(dir string) error {
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(d, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: d, Err: err}
		}
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return fmt.Errorf("%s is not a directory", d)
		case int(st.Uid) != os.Geteuid():
			return fmt.Errorf("%s belongs to the user %d, not to %d", d, st.Uid, os.Geteuid())
		case st.Mode&0o022 != 0:
			return fmt.Errorf("other users can write to %s (mode %04o): check what is in it, then run chmod 700 on it", d, st.Mode&0o7777)
		case st.Mode&0o777 != 0o700:
			if err := os.Chmod(d, 0o700); err != nil {
				return err
			}
		}
	}
	return nil
}

// turnTime bounds the wait for the software TPM.
const turnTime = 30 * time.Second

// acquire waits for the lock of dir's software TPM. The lock is held until the last
// descriptor of the file that acquire returns is closed. The process id in the file
// is for error messages only.
func acquire(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			f.Truncate(0)
			f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
			return f, nil
		case unix.EWOULDBLOCK, unix.EINTR:
		default:
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			defer f.Close()
			return nil, fmt.Errorf("%w: the software TPM in %s is in use: %s has it: %w", ErrBusy, dir, holder(f), ctx.Err())
		}
	}
}

// holder names the process that has the lock, according to its file.
func holder(f *os.File) string {
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return "the process " + pid
	}
	return "another process"
}
