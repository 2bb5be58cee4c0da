// Package boottime has a clock that keeps counting while the machine sleeps,
// and timers on it. What must end after an hour has ended when a laptop wakes
// up after a night. Go's own timers stand still meanwhile, and the wall clock
// can be set. The clock is Linux's CLOCK_BOOTTIME, the timers are timerfds. It
// implements consent.Clock.
package boottime

import (
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Clock counts from the start of the machine.
type Clock struct{}

// New returns a clock.
func New() Clock { return Clock{} }

// Now returns the time since the machine started.
func (Clock) Now() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // every Linux that Go supports has it
	return time.Duration(now.Nano())
}

// AfterFunc calls f in a goroutine of its own when d has passed; at once if d
// is not positive. The returned stop prevents a call that has not begun, and
// does not wait for one that has. Both f and stop may call stop again.
//
// A timer holds a descriptor until it fires or is stopped. If there is none,
// the clock is checked every second instead, so that nothing lives too long.
func (c Clock) AfterFunc(d time.Duration, f func()) (stop func()) {
	timer, err := newTimer(d)
	if err != nil {
		return c.poll(c.Now()+clip(d), f)
	}
	var decided atomic.Bool // by the goroutine or by stop
	go func() {
		var count [8]byte
		_, err := timer.Read(count[:])
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

// newTimer returns a file that can be read when d has passed. It does not
// block, so Go's poller waits for it, and Close ends a Read.
func newTimer(d time.Duration) (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
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

// poll calls f at the time end, without a descriptor.
func (c Clock) poll(end time.Duration, f func()) (stop func()) {
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

// clip returns a duration that a timer accepts: zero would turn it off, and
// seconds have 32 bits on some machines.
func clip(d time.Duration) time.Duration {
	return min(max(d, 1), (1<<31-1)*time.Second)
}
