package agent

import (
	"context"
	"errors"
	"time"
)

// noticeTime is how long a notice may stay.
const noticeTime = time.Minute

// inform tells the user something, one thing at a time, while everything goes
// on. It stays when the client goes, which it does as soon as it has its
// answer.
func (a *Agent) inform(n Notice) {
	if a.prompter == nil || !a.informing.CompareAndSwap(false, true) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), noticeTime)
	ctx, done := a.untilLocked(ctx)
	a.rounds.mu.Lock()
	defer a.rounds.mu.Unlock()
	a.endNotice = cancel
	a.rounds.start(func() {
		defer a.informing.Store(false)
		defer cancel()
		defer done()
		a.prompter.Inform(ctx, n)
	})
}

// settleDown ends notices, and waits for what goes on for clients that have
// gone. It is an error if that does not end.
func (a *Agent) settleDown() error {
	a.rounds.mu.Lock()
	if a.endNotice != nil {
		a.endNotice()
	}
	a.rounds.mu.Unlock()
	if !a.rounds.wait(a.grace) {
		return errors.New("a key or a prompt did not end when it was cancelled")
	}
	return nil
}
