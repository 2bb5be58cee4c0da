package socket

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Inherited returns the socket that the service manager passed to this
// process (LISTEN_PID, LISTEN_FDS: sd_listen_fds(3)), or nil, nil when it
// passed none. It must be one listening unix stream socket. The variables are
// removed from the environment, so that no child takes them as meant for it.
// Close leaves the file: it belongs to the manager.
func Inherited() (*Listener, error) {
	files := activation.Files(true)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	os.Unsetenv("LISTEN_PIDFDID") // newer than the ones that activation knows
	switch len(files) {
	case 0:
		return nil, nil
	case 1:
		return fromFile(files[0])
	}
	return nil, fmt.Errorf("socket activation: %d sockets were passed, one is needed", len(files))
}

// fromFile makes a Listener of a duplicate of f.
func fromFile(f *os.File) (*Listener, error) {
	if err := checkInherited(int(f.Fd())); err != nil {
		return nil, fmt.Errorf("socket activation: descriptor %s: %w", f.Name(), err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("socket activation: descriptor %s: %w", f.Name(), err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	return &Listener{unix: ul}, nil
}

func checkInherited(fd int) error {
	for _, want := range []struct {
		option, value int
		complaint     string
	}{
		{unix.SO_DOMAIN, unix.AF_UNIX, "not a unix socket (ListenStream= needs a path)"},
		{unix.SO_TYPE, unix.SOCK_STREAM, "not a stream socket (ListenStream= is needed)"},
		{unix.SO_ACCEPTCONN, 1, "not a listening socket (Accept=no is needed)"},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option)
		if err != nil {
			return err
		}
		if got != want.value {
			return errors.New(want.complaint)
		}
	}
	return nil
}
