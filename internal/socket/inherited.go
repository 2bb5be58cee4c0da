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
	l, err := net.FileListener(files[0])
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	listening, err := unix.GetsockoptInt(int(files[0].Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	ul, isUnix := l.(*net.UnixListener)
	if err != nil || listening == 0 || !isUnix || ul.Addr().Network() != "unix" || len(files) > 1 {
		return nil, errors.Join(errors.New("socket activation: one listening unix stream socket is needed (ListenStream= with a path, Accept=no)"), l.Close())
	}
	ul.SetUnlinkOnClose(false)
	return &Listener{unix: ul}, nil
}
