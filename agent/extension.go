package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
)

// Extensions that clients may ask for, RFC 9987, section 5.9.
const (
	extQuery       = "query"
	extSessionBind = "session-bind@openssh.com"
)

// extension answers EXTENSION: with SSH_AGENT_FAILURE for what is not known or
// not open to this client, and SSH_AGENT_EXTENSION_FAILURE for what went
// wrong. A locked agent still takes session-bind, as OpenSSH's does: ssh binds
// a connection once, and may use it after the agent is unlocked.
func (a *Agent) extension(ctx context.Context, c *conn, request []byte) []byte {
	w := &wire{rest: request[1:]}
	name := w.text()
	if w.err == nil && name == extSessionBind {
		return a.sessionBind(c, request, w.rest)
	}
	r := a.refuseExtension(c, name, w.err)
	switch {
	case r != nil:
		a.refuseQuietly(c, r)
		return failure()
	case name == extQuery:
		return a.query(c)
	case name == extAddKeyFile:
		return a.addKeyFile(c, w.rest)
	}
	return a.answerOwner(ctx, c, name, w)
}

func (a *Agent) refuseExtension(c *conn, name string, err error) *refusal {
	owner, known := ownerAnswers[name]
	known = known || name == extQuery || name == extAddKeyFile && a.keyFile != nil
	switch {
	case err != nil:
		return &refusal{CauseMalformed, err}
	case a.isLocked() && !owner.whenLocked:
		return &refusal{cause: CauseLocked}
	case !known:
		return &refusal{CauseUnsupported, errors.New(name)}
	case name != extQuery && !c.fromOwner():
		return &refusal{CauseRemote, errors.New(name)}
	}
	return nil
}

// refuseQuietly tells only the log's reader who wants to know it all about
// extensions: clients try them out, and can do without.
func (a *Agent) refuseQuietly(c *conn, r *refusal) {
	a.log.Debug("refused", append(r.attrs(), "request", requestName(msgExtension), "peer", c.peer)...)
}

// fromOwner: see KeyFileRequest.
func (c *conn) fromOwner() bool {
	l, ok := c.nc.(interface{ Local() bool })
	return ok && l.Local() && !c.bindings.remote()
}

// sessionBind records to which SSH connection this one belongs. The upstream
// agents are told the same, also if it is refused here: they draw conclusions
// of their own.
func (a *Agent) sessionBind(c *conn, request, body []byte) []byte {
	c.relay.bind(request)
	if err := c.bindings.bind(body); err != nil {
		a.refuse(c.asker(), "session-bind", nil, &refusal{CauseBinding, err})
		return extensionFailure()
	}
	return success()
}

// query names the extensions. What is for processes of this machine is not
// told to others.
func (a *Agent) query(c *conn) []byte {
	b := appendString([]byte{msgExtensionResponse}, extQuery)
	b = appendString(b, extSessionBind)
	if !c.fromOwner() {
		return frame(b)
	}
	if a.keyFile != nil {
		b = appendString(b, extAddKeyFile)
	}
	for _, name := range slices.Sorted(maps.Keys(ownerAnswers)) {
		b = appendString(b, name)
	}
	return frame(b)
}
