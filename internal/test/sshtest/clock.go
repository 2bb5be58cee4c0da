package sshtest

import (
	"sync"
	"time"
)

// A Clock is a consent.Clock that stands still until a test moves it.
type Clock struct {
	// Set receives the due time of each alarm that is set, up to 100.
	Set chan time.Duration

	mu     sync.Mutex
	now    time.Duration
	alarms map[*alarm]bool
}

type alarm struct {
	due time.Duration
	f   func()
}

// NewClock returns a Clock that shows one hour.
func NewClock() *Clock {
	return &Clock{Set: make(chan time.Duration, 100), now: time.Hour, alarms: make(map[*alarm]bool)}
}

// Now returns the time that the clock shows.
func (c *Clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc sets an alarm.
func (c *Clock) AfterFunc(d time.Duration, f func()) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d <= 0 {
		go f()
		return func() {}
	}
	a := &alarm{c.now + d, f}
	c.alarms[a] = true
	select {
	case c.Set <- a.due:
	default: // no test reads that many
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.alarms, a)
	}
}

// Forward moves the clock, and returns when all alarms that are due then have
// been called.
func (c *Clock) Forward(d time.Duration) {
	c.mu.Lock()
	c.now += d
	var due []*alarm
	for a := range c.alarms {
		if a.due <= c.now {
			due = append(due, a)
			delete(c.alarms, a)
		}
	}
	c.mu.Unlock()
	for _, a := range due {
		a.f()
	}
}

// Sleep moves the clock and drops all alarms, as if the machine had slept and
// the alarms came too late.
func (c *Clock) Sleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	clear(c.alarms)
}

// Pending returns how many alarms are set.
func (c *Clock) Pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.alarms)
}
