package agent

import (
	"testing"
	"time"
)

// TestMonotonic checks the default clock.
func TestMonotonic(t *testing.T) {
	t.Parallel()
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
