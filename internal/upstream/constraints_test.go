package upstream

import (
	"bytes"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// FuzzConstraints checks that constraints survive a round trip, and that a lifetime
// among them is found.
func FuzzConstraints(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{restrict.ConstrainLifetime, 0, 0, 0, 9, restrict.ConstrainConfirm})
	to := restrict.Hop{User: "me", Host: "a", Keys: []restrict.HostKey{{Key: sshtest.HostA().PublicKey()}}}
	f.Add((&restrict.Constraints{Destinations: []restrict.Destination{{To: to}}}).Marshal())
	life := 90 * time.Second
	f.Add((&restrict.Constraints{PINLife: &life}).Marshal())
	f.Add([]byte{restrict.ConstrainExtension, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := restrict.ParseConstraints(b)
		if err != nil {
			return
		}
		again, err := restrict.ParseConstraints(c.Marshal())
		if err != nil || !bytes.Equal(again.Marshal(), c.Marshal()) {
			t.Fatalf("%+v is written as %x, %v", c, c.Marshal(), err)
		}
		if (c.Lifetime == nil) != (again.Lifetime == nil) || c.Confirm != again.Confirm || len(c.Destinations) != len(again.Destinations) || (c.PINLife == nil) != (again.PINLife == nil) {
			t.Fatalf("%+v comes back as %+v", c, again)
		}
		if c.Lifetime != nil && !hasLifetime(b) {
			t.Fatalf("the lifetime in %x is not found", b)
		}
	})
}
