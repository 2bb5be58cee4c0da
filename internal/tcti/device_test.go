package tcti

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"golang.org/x/sys/unix"
)

// fakeDevice is a character device with serve behind it: one end of a pseudo-terminal in
// raw mode, where small messages arrive as they were written. serve is called for every
// command and returns the answer.
func fakeDevice(t *testing.T, serve func(command []byte) []byte) (path string, unplug func()) {
	t.Helper()
	// Without Go's poller, which cannot handle a terminal whose other end is not
	// open yet.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Skipf("no pseudo-terminals here: %v", errno)
	}
	slave := int(peer) // kept open, so that the terminal outlives each client
	raw(t, slave)
	path, err = os.Readlink(fmt.Sprint("/proc/self/fd/", slave))
	if err != nil {
		t.Fatal(err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		buf := make([]byte, 4096)
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
			retry(func() (int, error) { return unix.Poll(fds, -1) })
			if fds[1].Revents != 0 {
				return
			}
			if n, err := unix.Read(fd, buf); err == nil {
				unix.Write(fd, serve(buf[:n]))
			}
		}
	}()
	unplug = sync.OnceFunc(func() {
		unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 1})
		<-done
		unix.Close(slave)
		unix.Close(stop)
	})
	t.Cleanup(unplug)
	return path, unplug
}

// raw makes a terminal pass on octets unchanged.
func raw(t *testing.T, fd int) {
	t.Helper()
	modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	modes.Iflag, modes.Oflag, modes.Lflag = 0, 0, 0
	modes.Cflag = modes.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	modes.Cc[unix.VMIN], modes.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, modes); err != nil {
		t.Fatal(err)
	}
}

// echo answers a command with the octets after its header.
func echo(command []byte) []byte {
	a := bytes.Clone(command)
	binary.BigEndian.PutUint32(a[6:], 0)
	return a
}

func openDevice(t *testing.T, path string) *Conn {
	t.Helper()
	c, err := Address{kind: kindDevice, path: path}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-c.closing })
	return c
}

func TestDevice(t *testing.T) {
	t.Parallel()
	path, _ := fakeDevice(t, echo)
	c := openDevice(t, path)
	if c.Managed() {
		t.Error("a terminal is managed")
	}
	// Flood the process with the signal with which Go preempts goroutines.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				syscall.Kill(os.Getpid(), syscall.SIGURG)
			}
		}
	})
	for i := range 300 {
		body := fmt.Appendf(nil, "%8d", i)
		a, err := c.Send(t.Context(), tpmtest.NewCommand(0x17b, body))
		if err != nil {
			t.Error(err)
			break
		}
		if !bytes.Equal(a[headerSize:], body) {
			t.Errorf("%q was answered with %q", body, a[headerSize:])
		}
	}
	close(stop)
	wg.Wait()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Send(t.Context(), tpmtest.NewAnswer(1)); !errors.Is(err, net.ErrClosed) {
		t.Error("after Close:", err)
	}
}

func TestDeviceLies(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string][]byte{
		"short header": answer(7, 10),
		"short body":   answer(12, 14),
		"too long":     answer(14, 12),
		"garbage":      []byte("login: password:"),
	} {
		path, _ := fakeDevice(t, func([]byte) []byte { return lie })
		c := openDevice(t, path)
		if a, err := c.Send(t.Context(), tpmtest.NewAnswer(1)); err == nil {
			t.Errorf("%s: took %x", name, a)
		}
		if _, err := c.Send(t.Context(), tpmtest.NewAnswer(1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: still open: %v", name, err)
		}
	}
}

// TestDeviceMute has a device that accepts commands and never answers.
func TestDeviceMute(t *testing.T) {
	t.Parallel()
	got := make(chan struct{}, 1)
	path, unplug := fakeDevice(t, func([]byte) []byte { got <- struct{}{}; return nil })
	command := tpmtest.NewAnswer(1)

	c := openDevice(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-got; cancel() }()
	if _, err := c.Send(ctx, command); !errors.Is(err, context.Canceled) {
		t.Error("cancelled:", err)
	}
	<-c.closing // the descriptor is closed although no answer has come

	// It has its own device, which may or may not see the command in that time.
	other, _ := fakeDevice(t, func([]byte) []byte { return nil })
	for c = openDevice(t, other); c.closing == nil; { // until the command was sent in time
		ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, err := c.Send(ctx, command); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("deadline:", err)
		}
		cancel()
	}
	<-c.closing

	c = openDevice(t, path)
	go func() { <-got; c.Close() }()
	if _, err := c.Send(t.Context(), command); !errors.Is(err, net.ErrClosed) {
		t.Error("closed:", err)
	}

	c = openDevice(t, path)
	go func() { <-got; unplug() }()
	if _, err := c.Send(t.Context(), command); !errors.Is(err, ErrNoTPM) {
		t.Error("unplugged:", err)
	}
}

// TestDeviceLate has an answer that is there before the command.
func TestDeviceLate(t *testing.T) {
	t.Parallel()
	path, _ := fakeDevice(t, echo)
	late, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(late)
	unix.Write(late, tpmtest.NewCommand(0x17b, []byte("old")))
	fds := []unix.PollFd{{Fd: int32(late), Events: unix.POLLIN}}
	if _, err := retry(func() (int, error) { return unix.Poll(fds, -1) }); err != nil {
		t.Fatal(err)
	}
	c := openDevice(t, path) // the same terminal, with the unread answer
	if a, err := c.Send(t.Context(), tpmtest.NewCommand(0x17b, []byte("new"))); err == nil {
		t.Errorf("took %q for the answer", a)
	}
}

// TestDeviceCloseRace closes the device while commands are on their way.
func TestDeviceCloseRace(t *testing.T) {
	t.Parallel()
	path, _ := fakeDevice(t, echo)
	for range 50 {
		c := openDevice(t, path)
		ready := make(chan struct{})
		go func() { close(ready); c.Close() }()
		<-ready
		for {
			if _, err := c.Send(t.Context(), tpmtest.NewAnswer(1)); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				break
			}
		}
		c.Close()
		<-c.closing
	}
}

func TestNoDevice(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := file + ".fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, fifo, t.TempDir()} {
		_, err := Address{kind: kindDevice, path: path}.Open(t.Context())
		if err == nil || !strings.Contains(err.Error(), "not a device") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestDevicePermission opens a device without permission. If the test runs as root, the
// thread accesses files as another user.
func TestDevicePermission(t *testing.T) {
	t.Parallel()
	path, _ := fakeDevice(t, echo)
	if err := os.Chmod(path, 0o060); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 0, 12345); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with this goroutine
		if os.Getuid() == 0 {
			unix.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0)
			unix.RawSyscall(unix.SYS_SETFSGID, 65534, 0, 0)
		}
		_, err := Address{kind: kindDevice, path: path}.Open(t.Context())
		errs <- err
	}()
	err := <-errs
	var denied *PermissionError
	if !errors.As(err, &denied) || !errors.Is(err, fs.ErrPermission) {
		t.Fatal(err)
	}
	if denied.Path != path || denied.Mode != "c---rw----" || denied.Owner == "" || denied.Group == "" {
		t.Errorf("%#v", denied)
	}
	why := "in the group"
	if os.Getuid() == 0 {
		why = "root is denied"
	}
	for _, part := range []string{path, denied.Mode, "owner " + denied.Owner, "group " + denied.Group, why} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
}

// TestDeviceBusy opens a device that another program has exclusively, as is possible
// with /dev/tpm0. The thread drops CAP_SYS_ADMIN, which would open the terminal anyway.
func TestDeviceBusy(t *testing.T) {
	t.Parallel()
	path, _ := fakeDevice(t, echo)
	holder, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(holder)
	if err := unix.IoctlSetInt(holder, unix.TIOCEXCL, 0); err != nil {
		t.Fatal(err)
	}
	s := system{dev: "/dev", sys: "/sys"}
	try := func(ctx context.Context) error {
		errs := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked, as above
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData // version 3 reads two
			if err := unix.Capset(&header, &none[0]); err != nil {
				errs <- err
				return
			}
			fd, err := s.openPatiently(ctx, path)
			if err == nil {
				unix.Close(fd)
			}
			errs <- err
		}()
		return <-errs
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	err = try(ctx)
	if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "/dev/tpmrm0") {
		t.Error(err)
	}
	timer := time.AfterFunc(10*time.Millisecond, func() { unix.IoctlSetInt(holder, unix.TIOCNXCL, 0) })
	defer timer.Stop()
	if err := try(t.Context()); err != nil {
		t.Error("after it was released:", err)
	}
}
