package agent

import "time"

// monotonic is the clock of an Agent that is given none.
type monotonic struct{ begun time.Time }

func (m monotonic) Now() time.Duration { return time.Since(m.begun) }

func (monotonic) AfterFunc(d time.Duration, f func()) (stop func()) {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}
