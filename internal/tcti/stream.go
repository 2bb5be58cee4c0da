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
	conn    net.Conn
	raw     syscall.RawConn
	framing framing
	buf     []byte
	// leave ends it: says good-bye where that is a custom, and closes conn.
	leave func(pending bool) error
	wait  time.Duration
}

func newStream(conn net.Conn, f framing) (*stream, error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &stream{
		conn:    conn,
		raw:     raw,
		framing: f,
		buf:     make([]byte, frameBuffer),
		leave:   func(bool) error { return conn.Close() },
		wait:    closeGrace,
	}, nil
}

// closeGrace is how long Close waits for a close that should take no time. It
// makes the usual case orderly: what is closed is closed when Close returns.
const closeGrace = 50 * time.Millisecond

func (s *stream) managed() bool             { return false }
func (s *stream) hangUp(pending bool) error { return s.leave(pending) }
func (s *stream) grace() time.Duration      { return s.wait }

func (s *stream) exchange(ctx context.Context, command []byte) ([]byte, error) {
	if err := s.quiet(); err != nil {
		return nil, err
	}
	s.conn.SetDeadline(deadline(ctx))
	release := s.interruptAt(ctx)
	answer, err := s.roundTrip(command)
	release()
	if err != nil {
		return nil, ctxError(ctx, err)
	}
	return answer, nil
}

func (s *stream) roundTrip(command []byte) ([]byte, error) {
	if _, err := s.conn.Write(s.framing.frame(command)); err != nil {
		return nil, err
	}
	return readAnswer(s.conn, s.framing, s.buf)
}

// deadline returns when a command must be answered.
func deadline(ctx context.Context) time.Time {
	latest := time.Now().Add(slowest)
	if d, ok := ctx.Deadline(); ok && d.Before(latest) {
		return d
	}
	return latest
}

// interruptAt makes the end of ctx end what the connection does. The function
// that it returns undoes that; after it, no late interruption can hit the next
// command.
func (s *stream) interruptAt(ctx context.Context) (release func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		s.conn.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	return func() {
		if !stop() {
			<-interrupted
		}
	}
}

// ctxError names the context as the cause of an error that it is the cause of.
func ctxError(ctx context.Context, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	cause := ctx.Err()
	if d, ok := ctx.Deadline(); cause == nil && ok && !time.Now().Before(d) {
		// The connection's clock was faster than the context's.
		cause = context.DeadlineExceeded
	}
	if cause == nil {
		cause = err
	}
	return fmt.Errorf("no answer in time: %w", cause)
}

// quiet looks, without waiting, whether anything has come in that nobody asked
// for, such as the answer to a command that was given up. Taken for the next
// answer it would put all later ones out of step.
func (s *stream) quiet() error {
	var n int
	var err error
	ctlErr := s.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		for {
			n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if err != unix.EINTR {
				return true
			}
		}
	})
	switch {
	case ctlErr != nil:
		return ctlErr
	case err == unix.EAGAIN:
		return nil
	case err != nil:
		return os.NewSyscallError("recvfrom", err)
	case n == 0:
		return fmt.Errorf("%w there any more: the other side hung up", ErrNoTPM)
	}
	return errors.New("octets that nobody asked for before the command")
}

// patience bounds the wait for a TPM that somebody else holds, unless ctx ends
// before.
const patience = 5 * time.Second

// dial connects to a socket. A unix socket whose queue is full (swtpm's has one
// place, and it serves one client at a time) refuses with EAGAIN at once, and
// there is nothing to wait on: so it is tried again and again.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		conn, err := d.DialContext(ctx, network, address)
		if !errors.Is(err, unix.EAGAIN) {
			return conn, dialError(err)
		}
		if !sleep(ctx, pause) {
			return nil, fmt.Errorf("%w: its queue is full: %w", ErrBusy, ctx.Err())
		}
	}
}

// dialError sorts the ways in which nobody answers.
func dialError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w there: %w", ErrNoTPM, err)
	}
	return err
}

// sleep waits for d, and reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// dialSWTPM connects to the server socket of an swtpm, which takes raw commands.
func dialSWTPM(ctx context.Context, network, address string) (wire, error) {
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return newStream(conn, rawFraming{})
}
