package upstream

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// TestBounded has as many requests with an upstream as are allowed, and checks that
// only requests for listed keys are still passed on.
func TestBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u, log := upstreamsOf(piped("up", newHanging().answer))
		r, up := newRelay(t, u), u.list[0]
		remove := []byte{wire.MsgRemoveIdentity}
		check := func(listing, offering error) {
			t.Helper()
			if _, ok, err := r.ForKey(t.Context(), "blob", remove); !ok || err != nil {
				t.Errorf("a listed key: %v, %v", ok, err)
			}
			if _, err := r.First(t.Context(), []byte{wire.MsgAddIdentity}, false); !errors.Is(err, offering) {
				t.Errorf("adding: %v", err)
			}
			if err := r.All(t.Context(), []byte{wire.MsgRemoveAllIdentities}); !errors.Is(err, offering) {
				t.Errorf("removing all: %v", err)
			}
			if _, _, err := r.ForKey(t.Context(), "other", remove); !errors.Is(err, listing) {
				t.Errorf("an unlisted key: %v", err)
			}
		}
		fill := func(room chan struct{}) {
			for range cap(room) {
				room <- struct{}{}
			}
		}
		empty := func(room chan struct{}) {
			for range cap(room) {
				<-room
			}
		}
		if got := names(r.List(t.Context())); got != "key" {
			t.Fatalf("listed %q", got)
		}
		fill(up.offers)
		check(nil, errBusy)
		if got := names(r.List(t.Context())); got != "key" {
			t.Fatalf("listed %q", got)
		}
		fill(up.lists)
		check(errBusy, errBusy)
		if took, got := takes(t, r); took != turnPatience || got != "" {
			t.Errorf("listed %q in %v", got, took)
		}
		empty(up.lists)
		empty(up.offers)
		r.List(t.Context())
		check(nil, nil)
		if log.String() != "" {
			t.Errorf("log: %s", log)
		}
	})
}
