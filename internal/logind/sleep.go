package logind

import (
	"time"

	"golang.org/x/sys/unix"
)

// span is a length of time that is known to lie between two others.
type span struct{ least, most time.Duration }

// sleptSoFar is how long the machine has slept since it was started: one of the
// kernel's clocks goes on meanwhile and the other does not. They cannot be read
// at the same moment.
func sleptSoFar() span {
	before := now(unix.CLOCK_MONOTONIC)
	all := now(unix.CLOCK_BOOTTIME)
	after := now(unix.CLOCK_MONOTONIC)
	return span{all - after, all - before}
}

func now(clock int32) time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(clock, &t) // every Linux that Go runs on has both
	return time.Duration(t.Nano())
}
