package agent

import (
	"context"
	"errors"
	"time"
)

const (
	// noticeTime is how long a notice may stay.
	noticeTime = time.Minute
	// noticeLead is how long the client's answer waits for a notice to be out: a
	// line on its terminal should come before its own last word.
	noticeLead = 250 * time.Millisecond
)

// inform tells the user something, one thing at a time, while everything goes
// on. It stays when the client goes, which it does as soon as it has its
// answer.
func (a *Agent) inform(n Notice) {
	if a.prompter == nil || !a.informing.CompareAndSwap(false, true) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), noticeTime)
	ctx, done := a.whileWanted(ctx)
	out := make(chan struct{})
	a.rounds.mu.Lock()
	a.endNotice = cancel
	a.rounds.start(func() {
		defer close(out)
		defer a.informing.Store(false)
		defer cancel()
		defer done()
		a.prompter.Inform(ctx, n)
	})
	a.rounds.mu.Unlock()
	within(noticeLead, out)
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
