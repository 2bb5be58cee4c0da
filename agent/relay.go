package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// elsewhere reports whether a key is not offered here, so that an upstream agent
// may have it.
func (a *Agent) elsewhere(blob []byte) bool {
	return a.now().byBlob[string(blob)] == nil && !a.owner.Locked()
}

// signUpstream has an upstream agent sign.
func (a *Agent) signUpstream(ctx context.Context, c *Client, m *signRequest, request []byte) reply {
	begun := time.Now()
	answer, r := a.relayFor(ctx, c, m.Blob, request)
	took := slog.Duration("duration", time.Since(begun))
	if r != nil {
		a.refuse(c, "sign", nil, m.Blob, r, took)
		return failed()
	}
	return reply{answer, func() {
		a.log.Info("signed by an upstream agent", "fingerprint", fingerprint(m.Blob), c.peer(), took)
	}}
}

// fingerprint returns that of a key whose type may be unknown.
func fingerprint(blob []byte) string { return sshkey.Fingerprint(blob) }

// relayFor passes on a request about a key that may be an upstream's.
func (a *Agent) relayFor(ctx context.Context, c *Client, blob, request []byte) ([]byte, *refusal.Error) {
	answer, ok, err := c.relay.ForKey(ctx, string(blob), request)
	switch {
	case err != nil:
		return nil, refusal.Because(ctx, refusal.Upstream, err)
	case !ok:
		return nil, refusal.New(refusal.UnknownKey, errors.New("or no upstream agent does it"))
	}
	return answer, nil
}

// removeUpstream removes a key that is not ours, or not any more.
func (a *Agent) removeUpstream(ctx context.Context, c *Client, blob, request []byte, refused *refusal.Error) []byte {
	if refused.Elsewhere() && a.upstreams != nil {
		answer, r := a.relayFor(ctx, c, blob, request)
		if r == nil {
			a.log.Info("removed from an upstream agent", "fingerprint", fingerprint(blob), c.peer())
			return answer
		}
		refused = r
	}
	a.refuse(c, "remove", nil, blob, refused)
	return wire.Failure()
}

// addUpstream passes on a key that is not held here, as it came, so that
// constraints that only the upstream knows reach it.
func (a *Agent) addUpstream(ctx context.Context, c *Client, m *softkey.Addition, request []byte) []byte {
	answer, r := a.relayAddition(ctx, c, m, request)
	if r != nil {
		a.refuse(c, "add identity", nil, nil, r, slog.String("type", m.Typ))
		return wire.Failure()
	}
	a.log.Info("added to an upstream agent", "type", m.Typ, c.peer())
	return answer
}

func (a *Agent) relayAddition(ctx context.Context, c *Client, m *softkey.Addition, request []byte) ([]byte, *refusal.Error) {
	switch {
	case a.upstreams == nil && m.Foreign:
		return nil, refusal.New(refusal.Unsupported, errors.New("keys of type "+m.Typ+" are held only by an upstream agent, and there is none"))
	case a.upstreams == nil:
		return nil, refusal.New(refusal.NoSoftware, nil)
	case c.Bindings.Remote() && upstream.NamesProvider(request):
		return nil, refusal.New(refusal.Remote, errors.New("a FIDO provider is code, and may not be named over a forwarded connection"))
	case a.config.Lifetime > 0 && !m.Layout:
		return nil, refusal.New(refusal.Constraint, errors.New("keys get a lifetime here, and it is unknown whether this one has one"))
	}
	answer, r := a.relayLimited(ctx, c, m.Constraints, request, wire.MsgAddIDConstrained)
	if r == nil && !bytes.Equal(answer, wire.Success()) {
		r = refusal.New(refusal.Upstream, errors.New("no upstream agent takes the key"))
	}
	return answer, r
}

// relayLimited relays a request to add something to the first upstream that takes
// it. limits are the constraints in it; the default lifetime is added if there is
// none among them, which makes the request one of type constrained.
func (a *Agent) relayLimited(ctx context.Context, c *Client, limits, request []byte, constrained byte) ([]byte, *refusal.Error) {
	if limited := upstream.WithLifetime(request, limits, a.config.Lifetime, constrained); limited != nil {
		request = limited
		defer clear(request) // there is a private key in it, or a PIN
	}
	answer, err := c.relay.First(ctx, request, upstream.NamesDestinations(request))
	if err != nil {
		return nil, refusal.Because(ctx, refusal.Upstream, err)
	}
	return answer, nil
}

// smartcard answers requests about smart cards. They name PKCS #11 providers: code
// that the upstream agent loads. They must not come from another machine
// (CVE-2023-38408).
func (a *Agent) smartcard(ctx context.Context, c *Client, request []byte) []byte {
	answer, r := a.relayCard(ctx, c, request)
	if r != nil {
		a.refuse(c, wire.RequestName(request[0]), nil, nil, r)
		return wire.Failure()
	}
	return answer
}

func (a *Agent) relayCard(ctx context.Context, c *Client, request []byte) ([]byte, *refusal.Error) {
	w := &wire.Parser{Rest: request[1:]}
	w.Bytes() // provider
	w.Bytes() // PIN
	switch {
	case a.upstreams == nil:
		return nil, refusal.New(refusal.Unsupported, nil)
	case c.Bindings.Remote():
		return nil, refusal.New(refusal.Remote, errors.New("smart cards are for clients on this machine"))
	case w.Err != nil:
		return nil, refusal.New(refusal.Malformed, w.Err)
	case request[0] == wire.MsgRemoveSmartcardKey:
		answer, err := c.relay.First(ctx, request, false)
		if err != nil {
			return nil, refusal.Because(ctx, refusal.Upstream, err)
		}
		return answer, nil
	}
	return a.relayLimited(ctx, c, w.Rest, request, wire.MsgAddSmartcardConstr)
}
