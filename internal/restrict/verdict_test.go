package restrict

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// bindAll accepts that the last bind is refused.
func (s *scene) bindAll(t testing.TB) *Bindings {
	t.Helper()
	b := new(Bindings)
	for i, body := range s.binds {
		if err := b.Bind(body); err != nil && i < len(s.binds)-1 {
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
	t.Parallel()
	for name, s := range scenes() {
		t.Run(name, func(t *testing.T) {
			b := s.bindAll(t)
			if err := Visible(s.ds, b, time.Now()); !reasonIs(err, s.hidden) {
				t.Errorf("visible: got %v, want %q", err, s.hidden)
			}
			for i, l := range s.logins {
				host, err := MaySign(s.ds, b, s.identity().public, l.data, time.Now())
				if !reasonIs(err, l.want) {
					t.Errorf("login %d: got %v, want %q", i, err, l.want)
				}
				if host != l.host {
					t.Errorf("login %d: to %q, want %q", i, host, l.host)
				}
			}
		})
	}
}

// TestVerdictClock checks that a certificate is valid from its first second until
// before its last.
func TestVerdictClock(t *testing.T) {
	t.Parallel()
	from := time.Unix(1_000_000, 0)
	host := sshtest.Certify(sshtest.HostA(), sshtest.HostCA(), []string{"a"}, func(c *ssh.Certificate) {
		c.ValidAfter, c.ValidBefore = sshtest.UnixSeconds(from), sshtest.UnixSeconds(from.Add(time.Hour))
	})
	ds := []Destination{direct(byAuthority("", "a", sshtest.HostCA()))}
	b := boundTo(t, sshtest.BindBody(host, "1", false))
	for after, want := range map[time.Duration]bool{
		-time.Second: false, 0: true, time.Hour - time.Second: true, time.Hour: false,
	} {
		if err := Visible(ds, b, from.Add(after)); (err == nil) != want {
			t.Errorf("%v after its start: %v", after, err)
		}
	}
}

// TestReasonNamesKeys checks that the reason for the log names hosts and user.
func TestReasonNamesKeys(t *testing.T) {
	t.Parallel()
	ds := []Destination{direct(toHost("", "a", sshtest.HostA()))}
	b := boundTo(t, sshtest.BindBody(sshtest.HostA(), "1", true), sshtest.BindBody(sshtest.HostB(), "2", false))
	_, err := MaySign(ds, b, sshtest.PublicOf(sshtest.P256()), sshtest.Login(sshtest.PublicOf(sshtest.P256()), "2", "eve", sshtest.HostB().PublicKey()), time.Now())
	for _, want := range []string{ssh.FingerprintSHA256(sshtest.HostA().PublicKey()), ssh.FingerprintSHA256(sshtest.HostB().PublicKey()), `"eve"`} {
		if !reasonIs(err, want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
