package control

import (
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
)

func TestOfferWords(t *testing.T) {
	t.Parallel()
	for want, h := range map[string]*agent.Held{
		"offered": {},
		"offered, for 0 seconds, confirm, to a b>u@c, PIN remembered for 15 minutes": {
			Mortal: true, Confirm: true, Destinations: []string{"a", "b>u@\u202ec"}, PIN: 15 * time.Minute,
		},
		"offered, to 4 destinations, PIN remembered": {Destinations: []string{"a", "b", "c", "d"}, PIN: restrict.Forever},
	} {
		if got := newOffer(h).words(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	if got := new(offer).words(); got != "not offered" {
		t.Error(got)
	}
}
