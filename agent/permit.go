package agent

import (
	"context"
	"time"
)

// permit judges whether id may sign data for c: by its destinations first, and
// then, if it wants that, by its owner, in the order of OpenSSH's agent. He is
// asked one thing at a time for each key; others wait for other keys not at
// all.
func (a *Agent) permit(ctx context.Context, c *conn, id *identity, data []byte) *refusal {
	if id.limits == nil {
		return nil
	}
	var user, host string
	if destinations := id.limits.destinations; len(destinations) > 0 {
		var err error
		if user, host, err = maySign(destinations, &c.bindings, id.Public, data, time.Now()); err != nil {
			return &refusal{CauseDestination, err}
		}
	}
	if !id.limits.confirm {
		return nil
	}
	return a.confirm(ctx, id, ConfirmPrompt{Question{
		Name:        id.Name,
		Comment:     id.Comment,
		Fingerprint: id.fingerprint(),
		Peer:        c.peer,
		Use:         Use{User: user, Host: host},
	}})
}

func (a *Agent) confirm(ctx context.Context, id *identity, p ConfirmPrompt) *refusal {
	if a.prompter == nil {
		return &refusal{cause: CauseNoPrompt}
	}
	leave, err := a.lines.enter(ctx, id.line)
	if err != nil {
		return &refusal{CauseHungUp, err}
	}
	defer leave()
	if _, r := a.again(id.blob, id.limits); r != nil {
		return r
	}
	asking, done := a.untilLocked(ctx)
	defer done()
	if _, err := a.prompter.Confirm(asking, p); err != nil {
		return because(ctx, promptCause(err), err)
	}
	_, r := a.again(id.blob, id.limits)
	return r
}

// again looks an identity up whenever there was time to remove or replace it,
// or to lock the agent. What was judged by other constraints than those that
// it has now was not judged.
func (a *Agent) again(blob string, limits *constraints) (*identity, *refusal) {
	id, r := a.lookup(blob)
	switch {
	case r != nil:
		return nil, r
	case id.limits != limits:
		return nil, &refusal{cause: CauseReplaced}
	}
	return id, nil
}
