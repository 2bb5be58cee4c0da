package tcti

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// device is a TPM behind a device node of the kernel.
//
// The driver holds a mutex from the moment it takes a command until the answer is
// there, even in non-blocking mode. poll, read and close all wait for that mutex or
// that command, and signals do not interrupt them (tpm-dev-common.c). In Go's network
// poller that would stop every other connection of the process while the TPM works,
// and no deadline would be kept. Therefore one goroutine, on a thread of its own while
// it waits, owns the descriptor from open to close, and Send waits for that goroutine
// only as long as its context allows.
//
// The descriptor is non-blocking anyway: then a thread of the kernel carries the
// command, and no signal can interrupt it half-way. Only poll is interrupted by
// signals, such as the one with which Go preempts goroutines, and is called again.
type device struct {
	jobs   chan []byte   // commands
	done   chan result   // one answer for each; has room for one
	quit   chan struct{} // closed by hangUp, for the owner between commands
	wake   int           // eventfd: readable after hangUp, for the owner in poll
	closed chan error    // the result of close; has room for one
}

type result struct {
	answer []byte
	err    error
}

func newDevice(fd int) (*device, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	d := &device{
		jobs:   make(chan []byte),
		done:   make(chan result, 1),
		quit:   make(chan struct{}),
		wake:   wake,
		closed: make(chan error, 1),
	}
	go d.own(fd)
	return d, nil
}

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

// hangUp makes the owner stop waiting and close the descriptor, and waits until it
// has. A running exchange gets an error first.
func (d *device) hangUp(bool) error {
	unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 1}) // any number but 0
	close(d.quit)
	return <-d.closed
}

func (d *device) exchange(ctx context.Context, command []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, slowest)
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
	if ready, err := d.poll(fd, 0); err != nil || ready {
		return nil, errors.Join(err, errors.New("an answer was there before the command"))
	}
	if n, err := retry(func() (int, error) { return unix.Write(fd, command) }); err != nil {
		return nil, deviceError(os.NewSyscallError("write", err))
	} else if n != len(command) {
		return nil, fmt.Errorf("the driver took %d of the command's %d octets", n, len(command))
	}
	if _, err := d.poll(fd, -1); err != nil {
		return nil, err
	}
	answer := make([]byte, maxMessage)
	n, err := retry(func() (int, error) { return unix.Read(fd, answer) })
	if err != nil {
		return nil, deviceError(os.NewSyscallError("read", err))
	}
	// The driver gives an answer in one piece. If n is not the size that the answer
	// claims, Conn closes the device.
	return answer[:n], nil
}

// poll waits until fd is readable, for up to timeout milliseconds, or for ever if
// that is -1. hangUp ends it with an error.
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
		return false, fmt.Errorf("%w any more: the device has gone", ErrNoTPM)
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

// deviceError adds to an error of the kernel what it means. A TPM that was
// unregistered gives EPIPE or ENODEV. EIO and ETIME are a chip that does not answer,
// as after a failed resume.
func deviceError(err error) error {
	for _, gone := range []error{fs.ErrNotExist, unix.ENODEV, unix.ENXIO, unix.EPIPE, unix.EIO, unix.ETIME} {
		if errors.Is(err, gone) {
			return fmt.Errorf("%w there: %w", ErrNoTPM, err)
		}
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return err
}
