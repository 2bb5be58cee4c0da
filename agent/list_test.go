package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"

	client "golang.org/x/crypto/ssh/agent"
)

// numbered is one of many public keys that cost nothing to make.
type numbered struct {
	ssh.PublicKey
	n uint32
}

func (k numbered) Marshal() []byte {
	return binary.BigEndian.AppendUint32(k.PublicKey.Marshal(), k.n)
}

func many(n int, comment string) []Identity {
	ids := make([]Identity, n)
	for i := range ids {
		ids[i] = plain("k", sshtest.P256())
		ids[i].Comment = fmt.Sprint(i, comment)
		ids[i].Public = numbered{ids[i].Public, uint32(i)}
	}
	return ids
}

// TestManyIdentities checks that no more identities are listed than clients
// accept, and that all can be used.
func TestManyIdentities(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ids  []Identity
		want func(n int) bool
	}{
		"by number": {many(10_000, ""), func(n int) bool { return n == wire.MaxListed }},
		"by size":   {many(2000, strings.Repeat("x", 1000)), func(n int) bool { return n > 200 && n < 256 }},
		"all":       {many(wire.MaxListed, ""), func(n int) bool { return n == wire.MaxListed }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, Config{Sources: []Source{fixed(tt.ids...)}})
			nc := s.dial(t)
			for range 2 {
				answer := sshtest.Exchange(t, nc, sshtest.ListThem)
				if n := sshtest.CountListed(t, answer); !tt.want(n) || len(answer) > wire.MaxMessage {
					t.Errorf("%d keys in %d bytes", n, len(answer))
				}
			}
			last := tt.ids[len(tt.ids)-1].Public
			sshtest.VerifyAnswer(t, last.(numbered).PublicKey, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(last.Marshal(), nil, 0)))
			sshtest.Exchange(t, nc, sshtest.RemoveMessage(tt.ids[0].Public.Marshal()))
			sshtest.Exchange(t, nc, sshtest.ListThem)
			want := 1
			if len(tt.ids) == wire.MaxListed {
				want = 0
			}
			if n := s.log.Count("unlisted="); n != want {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

// TestChangingSet checks that open connections see changes of a source.
func TestChangingSet(t *testing.T) {
	t.Parallel()
	a, b := plain("a", sshtest.P256()), plain("b", sshtest.P384())
	src := fixed(a)
	c := serve(t, Config{Sources: []Source{src}}).client(t)
	names := func(want string) {
		t.Helper()
		keys, err := c.List()
		got := ""
		for _, k := range keys {
			got += k.Comment[:1]
		}
		if err != nil || got != want {
			t.Errorf("listed %q, %v, not %q", got, err, want)
		}
	}
	names("a")
	src.set.Store(NewSet([]Identity{b, a, b}))
	names("ba")
	if err := c.Remove(a.Public); err != nil {
		t.Error(err)
	}
	names("b")
	src.set.Store(NewSet([]Identity{a, b})) // what was removed does not come back
	names("b")
	if _, err := c.Sign(a.Public, nil); err == nil {
		t.Error("signed with a key that was removed")
	}
	src.set.Store(NewSet(nil))
	names("")
}

// TestReload checks that Reload brings back what a client has removed.
func TestReload(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed(plain("a", sshtest.P256()))}})
	nc := s.dial(t)
	sshtest.Exchange(t, nc, []byte{wire.MsgRemoveAllIdentities})
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 0 {
		t.Errorf("%d keys after remove all", n)
	}
	s.Reload()
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 1 {
		t.Errorf("%d keys after a reload", n)
	}
}

// TestExpiry checks that a certificate leaves the list and cannot be used
// when it has expired.
func TestExpiry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := sshkey.Unix(time.Now())
		key := plain("k", sshtest.P256())
		ids := []Identity{
			key,
			certified(key, 0, now+60),
			certified(key, now+30, now+90),
			certified(key, 0, ssh.CertTimeInfinity),
			certified(key, 0, 1<<63), // far away, and not negative
			certified(key, 0, now),
		}
		l := newPipes()
		stop := inBubble(t, Config{Sources: []Source{fixed(ids...)}}, l)
		nc := l.dial()
		for _, want := range []int{5, 5, 4, 3, 3} {
			if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != want {
				t.Errorf("%v: %d keys, not %d", time.Now(), n, want)
			}
			time.Sleep(30 * time.Second)
		}
		if m := sshtest.Exchange(t, nc, sshtest.SignMessage(ids[1].Public.Marshal(), nil, 0)); !bytes.Equal(m, sshtest.Failed) {
			t.Errorf("signed with an expired certificate: %x", m)
		}
		if m := sshtest.Exchange(t, nc, sshtest.RemoveMessage(ids[1].Public.Marshal())); !bytes.Equal(m, sshtest.Succeeded) {
			t.Errorf("remove of an expired certificate: %x", m)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestSignatures checks signatures by each type of key with the client of
// golang.org/x/crypto.
func TestSignatures(t *testing.T) {
	t.Parallel()
	ids := []Identity{plain("p256", sshtest.P256()), plain("p384", sshtest.P384()), plain("p521", sshtest.P521()), plain("rsa", sshtest.RSA2048())}
	s := serve(t, Config{Sources: []Source{fixed(ids...)}})
	c := s.client(t)
	for _, id := range ids {
		for _, flags := range []client.SignatureFlags{2, 4, 6} {
			sig, err := c.SignWithFlags(id.Public, []byte("data"), flags)
			if err != nil {
				t.Fatal(err)
			}
			if err := id.Public.Verify([]byte("data"), sig); err != nil {
				t.Errorf("%s, flags %d: %v", id.Name, flags, err)
			}
		}
	}
	if sig, err := c.Sign(ids[3].Public, []byte("data")); err == nil {
		t.Errorf("signed %s, which is SHA-1", sig.Format)
	}
	if s.log.Count("SHA-1") != 1 {
		t.Errorf("no reason in the log: %s", s.log)
	}
}
