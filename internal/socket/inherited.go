package socket

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Inherited returns the socket that the service manager passed to this process
// (LISTEN_PID, LISTEN_FDS: sd_listen_fds(3)), or nil, nil if it passed none. It
// must be one listening unix stream socket. Inherited removes the variables
// from the environment, so that children do not use them. Close leaves the
// file, which belongs to the manager.
func Inherited() (*Listener, error) {
	files := activation.Files(true)
	os.Unsetenv("LISTEN_PIDFDID") // package activation does not know it yet
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if len(files) == 0 {
		return nil, nil
	}
	l, err := fromFiles(files)
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	return &Listener{unix: l}, nil
}

// fromFiles makes a listener of a duplicate of the one file.
func fromFiles(files []*os.File) (*net.UnixListener, error) {
	if len(files) > 1 {
		return nil, fmt.Errorf("%d sockets were passed, one is needed", len(files))
	}
	for _, want := range []struct {
		option, value int
		complaint     string
	}{
		{unix.SO_DOMAIN, unix.AF_UNIX, "not a unix socket (ListenStream= needs a path)"},
		{unix.SO_TYPE, unix.SOCK_STREAM, "not a stream socket (ListenStream= is needed)"},
		{unix.SO_ACCEPTCONN, 1, "not a listening socket (Accept=no is needed)"},
	} {
		got, err := unix.GetsockoptInt(int(files[0].Fd()), unix.SOL_SOCKET, want.option)
		if err != nil {
			return nil, err
		}
		if got != want.value {
			return nil, errors.New(want.complaint)
		}
	}
	l, err := net.FileListener(files[0])
	if err != nil {
		return nil, err
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	return ul, nil
}
