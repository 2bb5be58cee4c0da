package tcti

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stream is a TPM behind a socket.
type stream struct {
	conn      net.Conn
	raw       syscall.RawConn
	simulator bool // it uses the simulator's frames
}

// newStream returns an open TPM. leave says goodbye where that is usual, and closes
// conn; it is called in any case.
func newStream(conn net.Conn, simulator bool, leave func(pending bool) error, grace time.Duration) (*Conn, error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		leave(false)
		return nil, err
	}
	s := &stream{conn, raw, simulator}
	return &Conn{exchange: s.exchange, leave: leave, grace: grace}, nil
}

// openSWTPM connects to the server socket of an swtpm.
func openSWTPM(ctx context.Context, network, address string) (*Conn, error) {
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return newStream(conn, false, func(bool) error { return conn.Close() }, closeGrace)
}

func (s *stream) exchange(ctx context.Context, command []byte) ([]byte, error) {
	if err := s.quiet(fmt.Errorf("%w any more: the other side hung up", ErrNoTPM)); err != nil {
		return nil, err
	}
	if s.simulator {
		command = mssimFrame(command)
	}
	var answer []byte
	err := within(ctx, slowest, s.conn, func() (err error) {
		if _, err = s.conn.Write(command); err == nil {
			answer, err = readAnswer(s.conn, s.simulator)
		}
		return err
	})
	if err == nil {
		err = s.quiet(nil)
	}
	return answer, err
}

// within calls talk, which uses conn, and interrupts it when ctx ends or limit is
// over.
func within(ctx context.Context, limit time.Duration, conn net.Conn, talk func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	err := talk()
	if !stop() {
		<-interrupted
		conn.SetDeadline(time.Time{}) // for what comes next
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("no answer in time: %w", ctx.Err())
	}
	return err
}

// quiet checks, without waiting, that nothing has come that answers no command, such
// as a late answer to a command that was given up. Taken for the next answer, it
// would put all later ones out of step. It returns hungUp if the other side hung up.
func (s *stream) quiet(hungUp error) error {
	var n int
	var err error
	ctlErr := s.raw.Read(func(fd uintptr) bool {
		for err = unix.EINTR; err == unix.EINTR; {
			n, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		return true
	})
	switch {
	case ctlErr != nil:
		return ctlErr
	case err == unix.EAGAIN:
		return nil
	case err != nil:
		return os.NewSyscallError("recvfrom", err)
	case n == 0:
		return hungUp
	}
	return errors.New("octets that answer no command")
}

// dial connects to a socket. A unix socket whose queue is full refuses with EAGAIN at
// once: swtpm serves one client at a time and has room for one more.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := patiently(ctx, unix.EAGAIN, func(ctx context.Context) (net.Conn, error) {
		return d.DialContext(ctx, network, address)
	})
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil, fmt.Errorf("%w: its queue is full: %w", ErrBusy, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%w there: %w", ErrNoTPM, err)
	}
	return conn, err
}

// patience bounds the wait for a TPM that another program holds.
const patience = 5 * time.Second

// patiently calls open again and again as long as its error is busy, because there is
// nothing to wait for. It gives up when ctx ends, or after patience. Then its error
// wraps both busy and the context's.
func patiently[T any](ctx context.Context, busy error, open func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		opened, err := open(ctx)
		if !errors.Is(err, busy) {
			return opened, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return opened, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}
