package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

const (
	// maxBinds and maxBindBytes are for the bindings of one client, that each
	// connection to an upstream is told anew. OpenSSH's agent takes 16.
	maxBinds     = 32
	maxBindBytes = maxMessage
)

var (
	errTooManyBinds = errors.New("too many bindings on this connection")
	errNoUpstream   = errors.New("no upstream agent")
	errNotRemoved   = errors.New("upstream agent has not removed its keys")
	errRefused      = errors.New("upstream agent has the key and does not sign")
)

// relay is one client's way to the upstreams. One goroutine uses it at a time.
type relay struct {
	ups   *upstreams
	links []*link // as ups.list, or nil before first use

	// binds are the session-bind requests of the client, as they came, the
	// good and the bad. Nothing is asked before they are answered.
	binds  [][]byte
	bytes  int
	unsafe bool // there were more than are kept: nothing can be asked
}

func (r *relay) open() ([]*link, error) {
	if r.unsafe {
		return nil, errTooManyBinds
	}
	if r.links == nil {
		r.links = make([]*link, len(r.ups.list))
		for i, up := range r.ups.list {
			r.links[i] = &link{up: up}
		}
	}
	return r.links, nil
}

// close ends the client's connections to the upstreams.
func (r *relay) close() {
	for _, l := range r.links {
		l.close()
	}
}

// bind has a session-bind request told to every upstream before anything else
// that follows. Whether it is a good one is for each of them to say.
func (r *relay) bind(request []byte) {
	if !r.ups.any() || r.unsafe {
		return
	}
	r.bytes += len(request)
	if len(r.binds) == maxBinds || r.bytes > maxBindBytes {
		r.unsafe, r.binds = true, nil
		r.ups.log.Warn("nothing more is relayed to upstream agents for this client", "err", errTooManyBinds)
		return
	}
	r.binds = append(r.binds, bytes.Clone(request))
}

// list returns the keys of all upstreams, in their order, each once. What is
// not to be had soon is not in it.
func (r *relay) list(ctx context.Context) []listed {
	links, err := r.open()
	if err != nil {
		return nil
	}
	lists := make([]*catalog, len(links))
	var wg sync.WaitGroup
	for i, l := range links[min(1, len(links)):] {
		wg.Go(func() { lists[i+1] = r.listOne(ctx, l) })
	}
	if len(links) > 0 {
		lists[0] = r.listOne(ctx, links[0])
	}
	wg.Wait()
	if len(lists) == 1 && lists[0] != nil {
		return lists[0].keys
	}
	return merge(lists)
}

// listOne returns nil if there is no answer.
func (r *relay) listOne(ctx context.Context, l *link) *catalog {
	unbound := len(r.binds) == 0
	p, ok := l.up.beginList(ctx)
	if !ok {
		return l.up.remembered(unbound)
	}
	c, err := l.list(ctx, r.binds, p)
	if err == nil {
		l.up.learn(c, unbound)
	}
	l.up.end(err)
	l.up.note(err)
	if stateOf(err) == silent {
		return l.up.remembered(unbound)
	}
	return c
}

// forKey relays a request for one key: to sign with it, or to remove it. The
// upstream that has listed it is asked first. ok says that one of them did as
// it was asked; otherwise answer is a failure, and err says what stood in the
// way, if anything did. answer is a whole frame.
//
// One that has the key and does not sign may have asked its user. Who has said
// no there is not asked again by the next one, nor does that sign unasked.
func (r *relay) forKey(ctx context.Context, blob string, request []byte) (answer []byte, ok bool, err error) {
	links, err := r.open()
	if err != nil {
		return failure(), false, err
	}
	var errs []error
	for _, l := range inOrder(links, blob) {
		answer, _, err := l.request(ctx, errand{request: request, binds: r.binds, known: l.up.holds(blob)})
		switch {
		case ctx.Err() != nil:
			return failure(), false, ctx.Err()
		case err != nil:
			errs = append(errs, l.up.named(err))
		case answer[lengthSize] != msgFailure:
			if request[0] == msgRemoveIdentity {
				l.up.forget()
			}
			return answer, true, nil
		case request[0] == msgSignRequest && r.lists(ctx, l, blob):
			return failure(), false, errors.Join(append(errs, l.up.named(errRefused))...)
		}
	}
	return failure(), false, errors.Join(errs...)
}

// lists says whether an upstream lists a key now, for this client.
func (r *relay) lists(ctx context.Context, l *link, blob string) bool {
	c := r.listOne(ctx, l)
	return c != nil && c.blobs[blob]
}

// inOrder has those in front that hold the key, and those behind that may not
// answer.
func inOrder(links []*link, blob string) []*link {
	var holders, others, suspects []*link
	for _, l := range links {
		switch {
		case l.up.holds(blob):
			holders = append(holders, l)
		case l.up.suspect():
			suspects = append(suspects, l)
		default:
			others = append(others, l)
		}
	}
	return slices.Concat(holders, others, suspects)
}

func (u *upstream) named(err error) error { return fmt.Errorf("upstream %s: %w", u.name, err) }

// first relays a request to the first upstream that takes it: to add a key, or
// a smart card. If needsBinding, only those are asked that have shown that
// they check bindings: what the key may be used for depends on them. answer is
// a whole frame, a failure unless err is nil.
func (r *relay) first(ctx context.Context, request []byte, needsBinding bool) (answer []byte, err error) {
	links, err := r.open()
	if err == nil && len(links) == 0 {
		err = errNoUpstream
	}
	if err != nil {
		return failure(), err
	}
	var errs []error
	for _, l := range links {
		answer, sent, err := r.offer(ctx, l, request, needsBinding)
		switch {
		case ctx.Err() != nil:
			return failure(), ctx.Err()
		case err == nil && answer[lengthSize] != msgFailure:
			return answer, nil
		case err != nil:
			errs = append(errs, l.up.named(err))
			if sent && !errors.Is(err, errGone) {
				// It may have taken it, or do so yet.
				return failure(), errors.Join(errs...)
			}
		}
	}
	return failure(), errors.Join(errs...)
}

func (r *relay) offer(ctx context.Context, l *link, request []byte, needsBinding bool) (answer []byte, sent bool, err error) {
	e := errand{request: request, binds: r.binds, once: needsBinding}
	if !needsBinding {
		return l.request(ctx, e)
	}
	if err := l.up.provesBinding(ctx); err != nil {
		return nil, false, err
	}
	// The proof is good for who listens now, not for who was there when the
	// client's connection was dialled, nor for who comes next.
	l.drop()
	return l.request(ctx, e)
}

// all relays the request to remove all keys. One that is not there has none.
func (r *relay) all(ctx context.Context, request []byte) error {
	links, err := r.open()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		l.up.forget()
		answer, _, err := l.request(ctx, errand{request: request, binds: r.binds})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case isMissing(err):
		case err != nil:
			errs = append(errs, l.up.named(err))
		case answer[lengthSize] != msgSuccess:
			errs = append(errs, l.up.named(errNotRemoved))
		}
	}
	return errors.Join(errs...)
}
