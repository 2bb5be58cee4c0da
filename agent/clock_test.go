package agent

import (
	"sync"
	"testing"
	"time"
)

// handClock is a Clock that stands still until it is put forward.
type handClock struct {
	mu     sync.Mutex
	now    time.Duration
	alarms map[*alarm]bool
	set    chan time.Duration // each alarm that is set for later sends when it is due
}

type alarm struct {
	due time.Duration
	f   func()
}

func newHandClock() *handClock {
	return &handClock{now: time.Hour, alarms: make(map[*alarm]bool), set: make(chan time.Duration, 100)}
}

func (c *handClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) AfterFunc(d time.Duration, f func()) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &alarm{c.now + d, f}
	if d <= 0 {
		go f()
		return func() {}
	}
	c.alarms[a] = true
	select {
	case c.set <- a.due:
	default: // nobody counts so many
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.alarms, a)
	}
}

// forward lets time pass, and does what is due by then.
func (c *handClock) forward(d time.Duration) {
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

// pending is how many alarms are set.
func (c *handClock) pending() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.alarms)
}

func TestMonotonic(t *testing.T) {
	c := monotonic{time.Now()}
	before := c.Now()
	rang := make(chan struct{})
	c.AfterFunc(time.Millisecond, func() { close(rang) })
	<-rang
	if passed := c.Now() - before; passed < time.Millisecond {
		t.Errorf("an alarm for a millisecond rang after %v", passed)
	}
	c.AfterFunc(time.Hour, func() { t.Error("an alarm that was stopped rang") })()
}
