package consent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
)

// confirm asks the owner whether the key may be used, unless consent holds. The
// owner is asked one question at a time about each key.
func (t *try) confirm(ctx context.Context) *refusal.Error {
	o := t.o
	if o.Prompter == nil {
		return refusal.New(refusal.NoPrompt, nil)
	}
	if o.store.granted(t) {
		return nil
	}
	leave, err := o.turns.enter(ctx, t.id.KeyBlob)
	if err != nil {
		return refusal.New(refusal.HungUp, err)
	}
	defer leave()
	if _, refused := t.Again(); refused != nil {
		return refused
	}
	if o.store.granted(t) { // meanwhile
		return nil
	}
	since := o.store.forgotten.Load()
	how, refused := t.askConsent(ctx)
	if refused != nil {
		return refused
	}
	if _, refused := t.Again(); refused != nil {
		return refused
	}
	o.store.grant(t, how, since)
	return nil
}

func (t *try) askConsent(ctx context.Context) (ask.Grant, *refusal.Error) {
	asking, done := t.o.whileWanted(ctx)
	defer done()
	how, err := t.o.Prompter.Confirm(asking, ask.ConfirmPrompt{Question: t.question()})
	away := takenAway(asking)
	switch {
	case err != nil && away != nil:
		return ask.GrantNo, away
	case err != nil:
		return ask.GrantNo, refusal.Because(ctx, promptCause(err), err)
	case how < ask.GrantOnce || how > ask.GrantUntilLocked:
		return ask.GrantNo, refusal.New(refusal.Cancelled, nil)
	}
	return how, nil
}

// promptCause returns the cause for the error of a prompt.
func promptCause(err error) refusal.Cause {
	switch {
	case errors.Is(err, ask.ErrRefused):
		return refusal.Cancelled
	case errors.Is(err, ask.ErrNoAnswer):
		return refusal.NoAnswer
	case errors.Is(err, ask.ErrNoPrompt):
		return refusal.NoPrompt
	}
	return refusal.Prompt
}

const (
	// noticeTime is how long a notice may stay open.
	noticeTime = time.Minute
	// noticeLead is how long the client's answer waits for a notice to be shown:
	// a line on its terminal should come before its own last word.
	noticeLead = 250 * time.Millisecond
)

// notice is the notice that is shown, of which there is one at a time.
type notice struct {
	mu    sync.Mutex
	shown bool
	stop  context.CancelFunc // of the last one; may be nil
}

// open takes the place of the notice, if it is free.
func (n *notice) open() (ctx context.Context, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shown {
		return nil, false
	}
	ctx, n.stop = context.WithTimeout(context.Background(), noticeTime)
	n.shown = true
	return ctx, true
}

// close ends the notice.
func (n *notice) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stop != nil {
		n.stop()
	}
}

func (n *notice) closed() {
	n.close()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shown = false
}

// inform shows the owner a lockout, while everything goes on. The notice stays
// when the client goes, which it does as soon as it has its answer.
func (o *Owner) inform(q ask.Question, wait time.Duration) {
	if o.Prompter == nil {
		return
	}
	ctx, ok := o.notice.open()
	if !ok {
		return
	}
	ctx, done := o.whileWanted(ctx)
	shown := make(chan struct{})
	o.rounds.goWith(func() {
		defer close(shown)
		defer o.notice.closed()
		defer done()
		o.Prompter.Inform(ctx, ask.Notice{Question: q, Wait: wait})
	})
	within(noticeLead, shown)
}

// within waits for done, for at most d, and reports whether it came.
func within(d time.Duration, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
