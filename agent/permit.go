package agent

import (
	"context"
	"time"

	"golang.org/x/crypto/ssh"
)

// permit judges whether id may sign data for c: by its destinations first, and
// then, if it or the agent wants that, by its owner, in the order of OpenSSH's
// agent. He is asked one thing at a time for each key; others wait for other
// keys not at all. It returns what the signature is for.
func (a *Agent) permit(ctx context.Context, c *conn, id *identity, data []byte) (Use, *refusal) {
	var destination string
	if id.limits != nil {
		var err error
		if _, destination, err = maySign(id.limits.destinations, &c.bindings, id.Public, data, time.Now()); err != nil {
			return Use{}, &refusal{CauseDestination, err}
		}
	}
	confirm := a.confirmAll || id.limits != nil && id.limits.confirm
	if known, ok := a.learned(id); ok && !known.needed && !confirm {
		return Use{}, nil // nobody will be told
	}
	var named func(ssh.PublicKey) string
	if a.hostName != nil && (confirm || a.rememberedPIN(id) == nil) { // or nobody is to be told; if he must be after all, a fingerprint does
		named = func(host ssh.PublicKey) string { return a.hostName(host, c.peer) }
	}
	use := useOf(&c.bindings, id.Public, data, named, destination)
	if !confirm {
		return use, nil
	}
	return use, a.confirm(ctx, id, c.peer, use)
}

// confirm asks the owner, unless he has said yes for some time.
func (a *Agent) confirm(ctx context.Context, id *identity, peer Peer, use Use) *refusal {
	if a.prompter == nil {
		return &refusal{cause: CauseNoPrompt}
	}
	if a.granted(id, peer, use) {
		return nil
	}
	leave, err := a.lines.enter(ctx, id.line)
	if err != nil {
		return &refusal{CauseHungUp, err}
	}
	defer leave()
	if _, r := a.again(id.blob, id.limits); r != nil {
		return r
	}
	if a.granted(id, peer, use) { // meanwhile
		return nil
	}
	since := a.forgotten.Load()
	how, r := a.askConsent(ctx, id, peer, use)
	if r != nil {
		return r
	}
	if _, r := a.again(id.blob, id.limits); r != nil {
		return r
	}
	a.grant(id, peer, use, how, since)
	return nil
}

func (a *Agent) askConsent(ctx context.Context, id *identity, peer Peer, use Use) (Grant, *refusal) {
	asking, done := a.whileWanted(ctx)
	defer done()
	how, err := a.prompter.Confirm(asking, ConfirmPrompt{Question: Question{
		Name: id.Name, Comment: id.Comment, Fingerprint: id.fingerprint(), Peer: peer, Use: use,
	}})
	r := takenAway(asking)
	switch {
	case err != nil && r != nil:
		return GrantNo, r
	case err != nil:
		return GrantNo, because(ctx, promptCause(err), err)
	case how < GrantOnce || how > GrantUntilLocked:
		return GrantNo, &refusal{cause: CauseCancelled}
	}
	return how, nil
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
