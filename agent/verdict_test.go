package agent

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// bindAll ignores the refusal of the last.
func (s *scene) bindAll(t testing.TB) *bindings {
	t.Helper()
	b := new(bindings)
	for i, body := range s.binds {
		if err := b.bind(body); err != nil && i < len(s.binds)-1 {
			t.Fatalf("bind %d: %v", i, err)
		}
	}
	return b
}

func reasonIs(err error, want string) bool {
	if want == "" {
		return err == nil
	}
	return err != nil && strings.Contains(err.Error(), want)
}

func TestVerdicts(t *testing.T) {
	for name, s := range scenes() {
		t.Run(name, func(t *testing.T) {
			b := s.bindAll(t)
			if err := visible(s.ds, b, time.Now()); !reasonIs(err, s.hidden) {
				t.Errorf("visible: got %v, want %q", err, s.hidden)
			}
			for i, l := range s.logins {
				user, host, err := maySign(s.ds, b, s.identity().Public, l.data, time.Now())
				if !reasonIs(err, l.want) {
					t.Errorf("login %d: got %v, want %q", i, err, l.want)
				}
				if l.want == "" && (user != l.user || host != l.host) || l.want != "" && user+host != "" {
					t.Errorf("login %d: as %q to %q, want %q to %q", i, user, host, l.user, l.host)
				}
			}
		})
	}
}

// TestVerdictClock: a certificate is judged by the time that it is given, and
// its last second is not in it.
func TestVerdictClock(t *testing.T) {
	from := time.Unix(1_000_000, 0)
	host := certify(hostA(), hostCA(), []string{"a"}, func(c *ssh.Certificate) {
		c.ValidAfter, c.ValidBefore = unixSeconds(from), unixSeconds(from.Add(time.Hour))
	})
	ds := []Destination{direct(byAuthority("", "a", hostCA()))}
	b := boundTo(t, bindBody(host, "1", false))
	for after, want := range map[time.Duration]bool{
		-time.Second: false, 0: true, time.Hour - time.Second: true, time.Hour: false,
	} {
		if err := visible(ds, b, from.Add(after)); (err == nil) != want {
			t.Errorf("%v after its begin: %v", after, err)
		}
	}
}

// TestVerdictInOrder: bind does not let it come to this.
func TestVerdictInOrder(t *testing.T) {
	b := &bindings{attempted: true, hops: []binding{
		{host: hostA().PublicKey(), sessionID: []byte("1")},
		{host: hostA().PublicKey(), sessionID: []byte("2")},
	}}
	atA := toHost("", "a", hostA())
	if err := visible([]Destination{direct(atA), onward(atA, atA)}, b, time.Now()); !reasonIs(err, "behind an authentication") {
		t.Error(err)
	}
}

// TestReasonNamesKeys: the log's reader must be able to tell what was refused.
func TestReasonNamesKeys(t *testing.T) {
	ds := []Destination{direct(toHost("", "a", hostA()))}
	b := boundTo(t, bindBody(hostA(), "1", true), bindBody(hostB(), "2", false))
	_, _, err := maySign(ds, b, publicOf(p256()), login(publicOf(p256()), "2", "eve", hostB().PublicKey()), time.Now())
	for _, want := range []string{ssh.FingerprintSHA256(hostA().PublicKey()), ssh.FingerprintSHA256(hostB().PublicKey()), `"eve"`} {
		if !reasonIs(err, want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
