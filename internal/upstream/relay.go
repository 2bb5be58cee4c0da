package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/tpm-agent/tpm-agent/internal/wire"
)

const (
	// maxBinds and maxBindBytes limit the bindings of one client, which are kept to
	// be repeated on each connection to an upstream. OpenSSH's agent takes 16.
	maxBinds     = 32
	maxBindBytes = wire.MaxMessage
)

var (
	errTooManyBinds = errors.New("too many bindings on this connection")
	errRefused      = errors.New("it has the key and does not sign")
)

// A Listed is an identity as an upstream lists it. The type of its key may be
// unknown here.
type Listed struct {
	Blob, Comment string
	Agent         string // the name of the upstream
}

// A Relay is one client's way to the upstreams. One goroutine uses it at a time.
type Relay struct {
	links  []*link
	closed error // why there are no links any more

	// binds are the session-bind requests of the client, the good and the bad.
	binds [][]byte
	bytes int
}

// Close ends the client's connections to the upstreams.
func (r *Relay) Close() {
	for _, l := range r.links {
		l.drop()
	}
}

// Bind passes a session-bind request on to every upstream before any later
// request. Each of them judges it for itself.
func (r *Relay) Bind(request []byte) {
	if len(r.links) == 0 {
		return
	}
	r.bytes += len(request)
	if len(r.binds) < maxBinds && r.bytes <= maxBindBytes {
		r.binds = append(r.binds, bytes.Clone(request))
		return
	}
	// Without all of its bindings, the client would be allowed too much.
	r.Close()
	r.links[0].up.log.Warn("nothing more is relayed to upstream agents for this client", "err", errTooManyBinds)
	r.links, r.binds, r.closed = nil, nil, errTooManyBinds
}

// List returns the keys of all upstreams, in their order, each once. Keys of an
// upstream that does not answer soon are left out.
func (r *Relay) List(ctx context.Context) (keys []Listed) {
	r.list(ctx) // Failures are logged.
	seen := make(map[string]bool)
	for _, l := range r.links {
		for _, k := range l.keys {
			if !seen[k.Blob] {
				keys, seen[k.Blob] = append(keys, k), true
			}
		}
	}
	return keys
}

// list asks all upstreams for their keys.
func (r *Relay) list(ctx context.Context) error {
	errs := make([]error, len(r.links))
	var wg sync.WaitGroup
	for i, l := range r.links {
		wg.Go(func() {
			l.keys = nil
			if errs[i] = l.up.mayList(); errs[i] == nil {
				errs[i] = l.list(ctx)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, r.closed)...)
}

// ForKey passes on a request to sign with a key or to remove it, to the first
// upstream that lists the key. ok is true if one of them did what was asked.
// Otherwise answer is a failure, and err tells what went wrong, if anything did.
// answer is a whole frame.
//
// If an upstream does not sign, its user may have refused. The next one is not
// asked then, unless the first one no longer lists the key.
func (r *Relay) ForKey(ctx context.Context, blob string, request []byte) (answer []byte, ok bool, err error) {
	holders := r.holders(blob)
	if len(holders) == 0 {
		err = r.list(ctx)
		holders = r.holders(blob)
	}
	for _, l := range holders {
		answer, failure := l.request(ctx, request)
		switch {
		case failure != nil:
			err = errors.Join(err, failure)
		case answer[wire.LengthSize] != wire.MsgFailure:
			return answer, true, nil
		case request[0] == wire.MsgSignRequest && (l.list(ctx) != nil || l.holds(blob)):
			return wire.Failure(), false, errors.Join(err, l.up.named(errRefused))
		}
	}
	return wire.Failure(), false, err
}

// holders returns the links to the upstreams that have listed a key.
func (r *Relay) holders(blob string) []*link {
	return slices.DeleteFunc(slices.Clone(r.links), func(l *link) bool { return !l.holds(blob) })
}

// First passes on a request to add a key or a smart card, to the first upstream
// that accepts it. If needsBinding, what the key may be used for depends on
// bindings, and only upstreams are asked that prove that they check them. answer
// is a whole frame, and a failure if there is an error.
func (r *Relay) First(ctx context.Context, request []byte, needsBinding bool) (answer []byte, err error) {
	err = r.closed
	for _, l := range r.links {
		answer, sent, failure := l.offer(ctx, request, needsBinding)
		if failure == nil && answer[wire.LengthSize] != wire.MsgFailure {
			return answer, nil
		}
		err = errors.Join(err, failure)
		if sent && failure != nil && !wire.OrdinaryEnd(failure) {
			break // The upstream may have accepted it, or may still do so.
		}
	}
	return wire.Failure(), err
}

// All passes on a request to remove all keys, to all upstreams. An upstream that
// is not running has none.
func (r *Relay) All(ctx context.Context, request []byte) error {
	err := r.closed
	for _, l := range r.links {
		answer, _, failure := l.offer(ctx, request, false)
		switch {
		case errors.Is(failure, syscall.ENOENT), errors.Is(failure, syscall.ECONNREFUSED):
		case failure != nil:
			err = errors.Join(err, failure)
		case answer[wire.LengthSize] != wire.MsgSuccess:
			err = errors.Join(err, l.up.named(errors.New("it has not removed its keys")))
		}
	}
	return err
}

// parseList parses the answer to REQUEST_IDENTITIES (RFC 9987, section 5.5) of the
// agent with this name. Nothing may follow the last key.
func parseList(message []byte, agent string) ([]Listed, error) {
	w := wire.Parser{Rest: message}
	if w.Byte() == wire.MsgFailure {
		return nil, nil
	}
	n := w.Uint32()
	if uint64(n)*8 > uint64(len(w.Rest)) { // two lengths each
		return nil, fmt.Errorf("%w: %d keys in %d bytes", errAnswer, n, len(w.Rest))
	}
	keys := make([]Listed, 0, n)
	for range n {
		k := Listed{string(w.Bytes()), string(w.Bytes()), agent}
		if k.Blob != "" {
			keys = append(keys, k)
		}
	}
	if err := w.Whole(); err != nil {
		return nil, fmt.Errorf("%w: %w", errAnswer, err)
	}
	return keys, nil
}
