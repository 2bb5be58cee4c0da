package tcti

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// device is a TPM behind a device node of the kernel.
//
// The driver holds a mutex from the moment it takes up a command until the
// answer is in, also in non-blocking mode, and poll, read and close all wait
// for that mutex or that command, deaf to signals (tpm-dev-common.c). In Go's
// network poller that would stop every other connection of the process for as
// long as the TPM works, and no deadline would be kept. So one goroutine, on a
// thread of its own while it waits, owns the descriptor from open to close, and
// Send waits for it only as long as its context allows.
//
// Non-blocking mode it is all the same: there the command is carried by a
// thread of the kernel's, which no signal can interrupt half-way. Only the
// polling is interrupted by signals, such as the one with which Go preempts
// goroutines, and it is taken up again.
type device struct {
	rm     bool
	jobs   chan []byte   // commands
	done   chan result   // answers, one each; has room for one
	quit   chan struct{} // closed by hangUp, for the owner between commands
	wake   int           // eventfd: readable once hangUp was called, for one that polls
	closed chan error    // what close said; has room for one
}

type result struct {
	answer []byte
	err    error
}

func newDevice(fd int, rm bool) (*device, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	d := &device{
		rm:     rm,
		jobs:   make(chan []byte),
		done:   make(chan result, 1),
		quit:   make(chan struct{}),
		wake:   wake,
		closed: make(chan error, 1),
	}
	go d.own(fd)
	return d, nil
}

func (d *device) managed() bool        { return d.rm }
func (d *device) grace() time.Duration { return closeGrace }

// own is the goroutine that owns fd.
func (d *device) own(fd int) {
	for {
		select {
		case command := <-d.jobs:
			answer, err := d.roundTrip(fd, command)
			d.done <- result{answer, err}
		case <-d.quit:
			err := errors.Join(unix.Close(fd), unix.Close(d.wake))
			d.closed <- os.NewSyscallError("close", err)
			return
		}
	}
}

// hangUp makes the owner give up waiting and close the descriptor, and waits
// until it has. An exchange that runs is given its error first.
func (d *device) hangUp(bool) error {
	unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 1}) // a counter; any number will do
	close(d.quit)
	return <-d.closed
}

func (d *device) exchange(ctx context.Context, command []byte) ([]byte, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline(ctx))
	defer cancel()
	select {
	case d.jobs <- command:
	case <-d.quit:
		return nil, os.ErrClosed
	case <-ctx.Done():
		return nil, fmt.Errorf("nothing was sent: %w", ctx.Err())
	}
	select {
	case r := <-d.done:
		return r.answer, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer in time: %w", ctx.Err())
	}
}

// roundTrip writes one command and reads one answer.
func (d *device) roundTrip(fd int, command []byte) ([]byte, error) {
	// An answer that is there before the command is none to it.
	if ready, err := d.poll(fd, 0); err != nil || ready {
		return nil, errors.Join(err, errors.New("an answer that nobody asked for before the command"))
	}
	if n, err := retry(func() (int, error) { return unix.Write(fd, command) }); err != nil {
		return nil, deviceError("write", err)
	} else if n != len(command) {
		return nil, fmt.Errorf("the driver took %d of the command's %d octets", n, len(command))
	}
	if _, err := d.poll(fd, -1); err != nil {
		return nil, err
	}
	answer := make([]byte, maxMessage)
	n, err := retry(func() (int, error) { return unix.Read(fd, answer) })
	if err != nil {
		return nil, deviceError("read", err)
	}
	// The driver gives an answer in one piece. Conn compares n with what the
	// answer says, so that a shorter or longer one closes the device.
	return answer[:n], nil
}

// poll waits, up to timeout milliseconds or for ever with -1, until fd is
// readable; hangUp ends it with an error.
func (d *device) poll(fd, timeout int) (ready bool, err error) {
	fds := []unix.PollFd{
		{Fd: int32(fd), Events: unix.POLLIN},
		{Fd: int32(d.wake), Events: unix.POLLIN},
	}
	_, err = retry(func() (int, error) { return unix.Poll(fds, timeout) })
	switch {
	case err != nil:
		return false, os.NewSyscallError("poll", err)
	case fds[1].Revents != 0:
		return false, os.ErrClosed
	case fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0:
		return false, fmt.Errorf("%w there any more: the device has gone", ErrNoTPM)
	}
	return fds[0].Revents != 0, nil
}

// retry calls f until no signal interrupts it.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// deviceError sorts what the driver says. A TPM that was unregistered gives
// EPIPE or ENODEV; EIO and ETIME are a chip that does not answer, as after a
// resume that went wrong.
func deviceError(call string, err error) error {
	named := os.NewSyscallError(call, err)
	switch err {
	case unix.ENODEV, unix.ENXIO, unix.EPIPE, unix.EIO, unix.ETIME:
		return fmt.Errorf("%w answers: %w", ErrNoTPM, named)
	case unix.EBUSY:
		return fmt.Errorf("%w: %w", ErrBusy, named)
	}
	return named
}
