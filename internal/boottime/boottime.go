// Package boottime is a clock that goes on while the machine sleeps, and timers
// on it: what is to end after an hour is over when a laptop wakes up after a
// night. Go's own timers stand still meanwhile, and time.Now's wall clock can
// be set. It implements agent.Clock by Linux's CLOCK_BOOTTIME and timerfd.
package boottime

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
)

// Clock counts from the start of the machine. Make one with New.
type Clock struct {
	id int // CLOCK_…
}

var _ agent.Clock = Clock{}

// New returns a clock on CLOCK_BOOTTIME, or on CLOCK_MONOTONIC where the
// kernel, or what filters its system calls, refuses timers on that.
func New() Clock {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC)
	switch {
	case err == nil:
		_ = unix.Close(fd)
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS):
		return Clock{unix.CLOCK_MONOTONIC}
	}
	return Clock{unix.CLOCK_BOOTTIME}
}

// Now is the time since the machine started.
func (c Clock) Now() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(int32(c.id), &now) // every Linux that Go runs on has both clocks
	return time.Duration(now.Nano())
}

// AfterFunc calls f in a goroutine of its own when d has passed; at once if
// d is not positive. stop prevents a call that has not begun. It does not wait
// for one that has, so f may call it, and it may be called again.
//
// A timer holds a descriptor until it fires or is stopped. Where none can be
// had, the clock is looked at every second instead: nothing that has a
// lifetime may live longer because of that.
func (c Clock) AfterFunc(d time.Duration, f func()) (stop func()) {
	var decided atomic.Bool // by who comes first: the moment, or stop
	timer, err := c.timer(d)
	if err != nil {
		return c.watch(c.Now()+clip(d), f)
	}
	go func() {
		var times [8]byte // how often it went off; there is nothing to read before
		_, err := timer.Read(times[:])
		_ = timer.Close()
		if err == nil && decided.CompareAndSwap(false, true) {
			f()
		}
	}()
	return func() {
		if decided.CompareAndSwap(false, true) {
			_ = timer.Close()
		}
	}
}

// timer returns a file that can be read when d has passed. It does not block,
// so that Go's poller waits for it, and Close wakes who reads.
func (c Clock) timer(d time.Duration) (*os.File, error) {
	fd, err := unix.TimerfdCreate(c.id, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(clip(d)))}
	if err := unix.TimerfdSettime(fd, 0, &spec, nil); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	return os.NewFile(uintptr(fd), "timer"), nil
}

// watch calls f when the clock has come to end, without a descriptor.
func (c Clock) watch(end time.Duration, f func()) (stop func()) {
	var decided atomic.Bool
	stopped := make(chan struct{})
	go func() {
		for left := end - c.Now(); left > 0; left = end - c.Now() {
			select {
			case <-time.After(min(left, time.Second)):
			case <-stopped:
				return
			}
		}
		if decided.CompareAndSwap(false, true) {
			f()
		}
	}()
	return func() {
		if decided.CompareAndSwap(false, true) {
			close(stopped)
		}
	}
}

// clip makes d what a timer takes: zero would turn it off, and seconds have 32
// bits on some machines, which is 68 years.
func clip(d time.Duration) time.Duration {
	return min(max(d, 1), (1<<31-1)*time.Second)
}
