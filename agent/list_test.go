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
	client "golang.org/x/crypto/ssh/agent"
)

// numbered is a public key of which there can be many for nothing.
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
		ids[i] = plain("k", p256())
		ids[i].Comment = fmt.Sprint(i, comment)
		ids[i].Public = numbered{ids[i].Public, uint32(i)}
	}
	return ids
}

// TestManyIdentities: no more than clients take are listed, all can be used.
func TestManyIdentities(t *testing.T) {
	for name, tt := range map[string]struct {
		ids  []Identity
		want func(n int) bool
	}{
		"by number": {many(10_000, ""), func(n int) bool { return n == maxListed }},
		"by size":   {many(2000, strings.Repeat("x", 1000)), func(n int) bool { return n > 200 && n < 256 }},
		"all":       {many(maxListed, ""), func(n int) bool { return n == maxListed }},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, Config{Source: fixed(tt.ids...)})
			nc := s.dial(t)
			for range 2 {
				answer := ask(t, nc, listThem)
				if n := countListed(t, answer); !tt.want(n) || len(answer) > maxListMessage {
					t.Errorf("%d keys in %d bytes", n, len(answer))
				}
			}
			last := tt.ids[len(tt.ids)-1].Public
			verify(t, last.(numbered).PublicKey, nil, ask(t, nc, signMessage(last.Marshal(), nil, 0)))
			ask(t, nc, removeMessage(tt.ids[0].Public.Marshal()))
			ask(t, nc, listThem)
			want := 1
			if len(tt.ids) == maxListed {
				want = 0
			}
			if n := s.log.count("unlisted="); n != want {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

// TestChangingSet: connections that are open see what there is now.
func TestChangingSet(t *testing.T) {
	a, b := plain("a", p256()), plain("b", p384())
	src := fixed(a)
	c := serve(t, Config{Source: src}).client(t)
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
	src.set.Store(NewSet([]Identity{a, b})) // what was removed does not come back by itself
	names("b")
	if _, err := c.Sign(a.Public, nil); err == nil {
		t.Error("signed with a key that was removed")
	}
	src.set.Store(NewSet(nil))
	names("")
}

func TestReload(t *testing.T) {
	s := serve(t, Config{Source: fixed(plain("a", p256()))})
	nc := s.dial(t)
	ask(t, nc, []byte{msgRemoveAllIdentities})
	if n := countListed(t, ask(t, nc, listThem)); n != 0 {
		t.Errorf("%d keys after remove all", n)
	}
	s.Reload()
	if n := countListed(t, ask(t, nc, listThem)); n != 1 {
		t.Errorf("%d keys after a reload", n)
	}
}

// TestExpiry: a certificate goes from the list, which is cached, and from use
// at its time.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := unix(time.Now())
		key := plain("k", p256())
		ids := []Identity{
			key,
			certified(key, 0, now+60),
			certified(key, now+30, now+90),
			certified(key, 0, ssh.CertTimeInfinity),
			certified(key, 0, 1<<63), // not negative: far away
			certified(key, 0, now),
		}
		l := newPipes()
		stop := inBubble(t, Config{Source: fixed(ids...)}, l)
		nc := l.dial()
		for _, want := range []int{5, 5, 4, 3, 3} {
			if n := countListed(t, ask(t, nc, listThem)); n != want {
				t.Errorf("%v: %d keys, not %d", time.Now(), n, want)
			}
			time.Sleep(30 * time.Second)
		}
		if m := ask(t, nc, signMessage(ids[1].Public.Marshal(), nil, 0)); !bytes.Equal(m, failed) {
			t.Errorf("signed with an expired certificate: %x", m)
		}
		if m := ask(t, nc, removeMessage(ids[1].Public.Marshal())); !bytes.Equal(m, succeeded) {
			t.Errorf("remove of an expired certificate: %x", m)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestSignatures with each kind of key, by another implementation's client.
func TestSignatures(t *testing.T) {
	ids := []Identity{plain("p256", p256()), plain("p384", p384()), plain("p521", p521()), plain("rsa", rsa2k())}
	s := serve(t, Config{Source: fixed(ids...)})
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
	if s.log.count("SHA-1") != 1 {
		t.Errorf("no reason in the log: %s", s.log)
	}
}
