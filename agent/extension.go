package agent

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// extQuery asks for the names of the extensions (RFC 9987, section 5.9.1).
const extQuery = "query"

// extension answers EXTENSION: with SSH_AGENT_FAILURE for what is unknown or not
// for this client, and SSH_AGENT_EXTENSION_FAILURE for what failed. A locked agent
// still takes session-bind, as OpenSSH's does: ssh binds a connection once, and
// may use it after the agent is unlocked.
func (a *Agent) extension(ctx context.Context, c *conn, request []byte) []byte {
	w := &wire.Parser{Rest: request[1:]}
	name := w.Text()
	if w.Err == nil && name == restrict.ExtSessionBind {
		return a.sessionBind(c, request, w.Rest)
	}
	if r := a.refuseExtension(c, name, w.Err); r != nil {
		// Clients try extensions out, and can do without: only a reader of the
		// whole log is told.
		a.log.Debug("refused", append(r.Attrs(), "request", wire.RequestName(wire.MsgExtension), c.peer())...)
		return wire.Failure()
	}
	if name == extQuery {
		return a.query(c)
	}
	body, err := a.extensions[name].Answer(ctx, &c.Client, w.Rest)
	if err != nil {
		a.refuse(&c.Client, name, nil, nil, refusal.New(refusal.Malformed, err))
		return wire.Failure()
	}
	return wire.Frame(append(wire.AppendString([]byte{wire.MsgExtensionResponse}, name), body...))
}

func (a *Agent) refuseExtension(c *conn, name string, err error) *refusal.Error {
	e, known := a.extensions[name]
	switch {
	case err != nil:
		return refusal.New(refusal.Malformed, err)
	case a.owner.Locked() && !e.Locked:
		return refusal.New(refusal.Locked, nil)
	case !known && name != extQuery:
		return refusal.New(refusal.Unsupported, errors.New(name))
	case known && !c.fromOwner():
		return refusal.New(refusal.Remote, errors.New(name))
	}
	return nil
}

// fromOwner reports whether the client is a process of this machine: see
// Extension.
func (c *conn) fromOwner() bool {
	l, ok := c.nc.(interface{ Local() bool })
	return ok && l.Local() && !c.Bindings.Remote()
}

// sessionBind records to which SSH connection this one belongs. The upstream
// agents are told the same, even if it is refused here: they judge for themselves.
func (a *Agent) sessionBind(c *conn, request, body []byte) []byte {
	if c.relay != nil {
		c.relay.Bind(request)
	}
	if err := c.Bindings.Bind(body); err != nil {
		a.refuse(&c.Client, "session-bind", nil, nil, refusal.New(refusal.Binding, err))
		return wire.Frame([]byte{wire.MsgExtensionFailure})
	}
	return wire.Success()
}

// query names the extensions. Those for processes of this machine are not named
// to others.
func (a *Agent) query(c *conn) []byte {
	b := wire.AppendString([]byte{wire.MsgExtensionResponse}, extQuery)
	b = wire.AppendString(b, restrict.ExtSessionBind)
	if c.fromOwner() {
		for _, name := range slices.Sorted(maps.Keys(a.extensions)) {
			b = wire.AppendString(b, name)
		}
	}
	return wire.Frame(b)
}
