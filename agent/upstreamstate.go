package agent

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// state is how an upstream is, as far as there is something different to be
// said about it.
type state int

const (
	unheard state = iota // nobody has asked yet, or not to the end
	well
	missing // nothing listens there
	silent
	broken // hangs up, or does not speak the protocol
)

// stateOf is what the outcome of a request says.
func stateOf(err error) state {
	switch {
	case err == nil:
		return well
	case errors.Is(err, context.Canceled):
		return unheard // it was given no time
	case isMissing(err):
		return missing
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, syscall.EAGAIN): // connect(2): the queue of a listener that accepts nobody is full
		return silent
	}
	return broken
}

func isMissing(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// note logs the outcome of a request if it is not what it was before.
func (u *upstream) note(err error) {
	now := stateOf(err)
	if now == unheard {
		return
	}
	u.mu.Lock()
	before := u.state
	u.state = now
	u.mu.Unlock()
	if now == before {
		return
	}
	switch now {
	case missing:
		u.log.Warn("upstream agent is not there", "upstream", u.name, "err", err)
	case silent:
		u.log.Warn("upstream agent does not answer; its keys are not listed", "upstream", u.name, "err", err)
	case broken:
		u.log.Warn("upstream agent fails", "upstream", u.name, "err", err)
	case well:
		if before != unheard {
			u.log.Info("upstream agent is back", "upstream", u.name)
		}
	}
}
