package agent

// Stands in for the upstream agents until upstream.go is there, which replaces this file.
import (
	"context"
	"log/slog"
)

type upstreams struct{}

func newUpstreams(list []Upstream, log *slog.Logger) *upstreams { return nil }
func (u *upstreams) any() bool                                  { return false }
func (u *upstreams) relay() *relay                              { return nil }

type (
	relay  struct{}
	listed struct{ blob, comment string }
)

func (r *relay) bind(request []byte)               {}
func (r *relay) list(ctx context.Context) []listed { return nil }
func (r *relay) forKey(ctx context.Context, blob string, request []byte) (answer []byte, ok bool, err error) {
	return
}

func (r *relay) first(ctx context.Context, request []byte, needsBinding bool) (answer []byte, err error) {
	return
}
func (r *relay) all(ctx context.Context, request []byte) error { return nil }
func (r *relay) close()                                        {}
