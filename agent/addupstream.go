package agent

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// extAssociatedCerts is a constraint of smart cards only.
const extAssociatedCerts = "associated-certs-v00@openssh.com"

// addUpstream passes on what this agent does not hold: as it came, so that
// constraints that only the upstream knows reach it.
func (a *Agent) addUpstream(ctx context.Context, c *conn, m *addition, request []byte) []byte {
	answer, r := a.relayAddition(ctx, c, m, request)
	if r != nil {
		a.refuse(c.asker(), "add identity", nil, r, slog.String("type", m.typ))
		return failure()
	}
	a.log.Info("added to an upstream agent", "type", m.typ, "peer", c.peer)
	return answer
}

func (a *Agent) relayAddition(ctx context.Context, c *conn, m *addition, request []byte) ([]byte, *refusal) {
	switch {
	case !a.upstreams.any():
		return nil, a.notHeld(m)
	case c.bindings.remote() && foreignProvider(request):
		return nil, &refusal{CauseRemote, errors.New("a FIDO provider is code, and may not be named over a forwarded connection")}
	case a.lifetime > 0 && !m.layout:
		return nil, &refusal{CauseConstraint, errors.New("whether the key has a lifetime cannot be told, and keys get one here")}
	}
	answer, r := a.relayLimited(ctx, c, m.constraints, request, msgAddIDConstrained)
	if r == nil && !isSuccess(answer) {
		r = &refusal{CauseUpstream, errors.New("no upstream agent takes the key")}
	}
	return answer, r
}

func (a *Agent) notHeld(m *addition) *refusal {
	if m.foreign {
		return &refusal{CauseUnsupported, errors.New("keys of type " + m.typ + " are held only by an upstream agent, and there is none")}
	}
	return &refusal{cause: CauseNoSoftware}
}

// relayLimited relays a request to add something to the first upstream that
// takes it. limits are the constraints in it, to which that on the lifetime is
// added that keys have here if their owner asks for none; the request is of the
// type constrained then.
func (a *Agent) relayLimited(ctx context.Context, c *conn, limits, request []byte, constrained byte) ([]byte, *refusal) {
	if a.lifetime > 0 && !hasLifetime(limits) {
		seconds := uint32(a.lifetime / time.Second)
		request = slices.Concat(request, (&constraints{lifetime: &seconds}).marshal())
		defer clear(request) // there is a private key in it, or a PIN
		request[0] = constrained
	}
	answer, err := c.relay.first(ctx, request, hasDestinations(request))
	if err != nil {
		return nil, because(ctx, CauseUpstream, err)
	}
	return answer, nil
}

// smartcard answers what is about smart cards. That is PKCS #11: code that the
// upstream agent loads by a name from the request. It must not come from
// another machine (CVE-2023-38408).
func (a *Agent) smartcard(ctx context.Context, c *conn, request []byte) []byte {
	answer, r := a.relayCard(ctx, c, request)
	if r != nil {
		a.refuse(c.asker(), requestName(request[0]), nil, r)
		return failure()
	}
	return answer
}

func (a *Agent) relayCard(ctx context.Context, c *conn, request []byte) ([]byte, *refusal) {
	w := &wire{rest: request[1:]}
	w.string() // provider
	w.string() // PIN
	switch {
	case !a.upstreams.any():
		return nil, &refusal{cause: CauseUnsupported}
	case c.bindings.remote():
		return nil, &refusal{CauseRemote, errors.New("smart cards are for clients on this machine")}
	case w.err != nil:
		return nil, &refusal{CauseMalformed, w.err}
	case request[0] == msgRemoveSmartcardKey:
		answer, err := c.relay.first(ctx, request, false)
		if err != nil {
			return nil, because(ctx, CauseUpstream, err)
		}
		return answer, nil
	}
	return a.relayLimited(ctx, c, w.rest, request, msgAddSmartcardConstr)
}

// hasLifetime looks for a lifetime among constraints, of which it need not
// know all: extensions have one string as their contents, but for one.
func hasLifetime(b []byte) bool {
	w := &wire{rest: b}
	for !w.done() {
		switch w.byte() {
		case constrainLifetime:
			return true
		case constrainConfirm:
		case constrainExtension:
			if w.text() == extAssociatedCerts {
				w.byte() // only the certificates
			}
			w.string()
		default:
			return false
		}
	}
	return false
}

// foreignProvider says whether a request may name a FIDO provider other than
// the one built into the agent that it is for.
func foreignProvider(request []byte) bool {
	for rest := range mentions(request, extProvider) {
		w := &wire{rest: rest}
		if !strings.EqualFold(w.text(), "internal") || w.err != nil {
			return true
		}
	}
	return false
}

// hasDestinations says whether a request may have destinations among its
// constraints.
func hasDestinations(request []byte) bool {
	for range mentions(request, extRestrictDestination) {
		return true
	}
	return false
}

// mentions has what follows each place in a request at which a constraint
// extension of this name may begin. The request's fields are not known: a place
// may as well be inside one of them, and so the first need not be the real one.
// The name may end in a NUL byte, as OpenSSH has it.
func mentions(request []byte, extension string) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for _, name := range []string{extension, extension + "\x00"} {
			begin := appendString([]byte{constrainExtension}, name)
			for _, rest, found := bytes.Cut(request, begin); found; _, rest, found = bytes.Cut(rest, begin) {
				if !yield(rest) {
					return
				}
			}
		}
	}
}
