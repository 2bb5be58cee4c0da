package agent

import (
	"bytes"
	"crypto/elliptic"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	client "golang.org/x/crypto/ssh/agent"
)

func TestHeldAnswer(t *testing.T) {
	all := []Held{
		{},
		{Blob: []byte("b"), Comment: "c", Name: "/k.tpm", PIN: Forever},
		{Keeper: InKeyFile, Mortal: true, Lifetime: time.Minute, Confirm: true, Destinations: []string{"a", "a>u@b"}, PIN: time.Second},
		{Keeper: InUpstream, Name: "/s", Mortal: true},
	}
	b := []byte{0, 0, 0, 7}
	for i := range all {
		b = append(b, all[i].marshal()...)
	}
	got, next, err := ParseHeld(response(extHeldKeys, b))
	for i := range got {
		if len(got[i].Blob) == 0 {
			got[i].Blob = nil
		}
	}
	if !reflect.DeepEqual(got, all) || next != 7 || err != nil {
		t.Errorf("got %+v, %d, %v", got, next, err)
	}
	for i := range b {
		if some, _, err := ParseHeld(response(extHeldKeys, b[:i])); err == nil && len(some) == len(all) {
			t.Errorf("%d bytes are enough", i)
		}
	}
}

// heldBy asks until there is no more.
func heldBy(t *testing.T, s *testServer) (all []Held, answers int) {
	t.Helper()
	nc := s.dial(t)
	for next := 0; ; answers++ {
		some, more, err := ParseHeld(ask(t, nc, HeldRequest(next)))
		if err != nil || more != 0 && more <= next {
			t.Fatal(next, more, err)
		}
		if all = append(all, some...); more == 0 {
			return all, answers + 1
		}
		next = more
	}
}

func addTo(t *testing.T, s *testServer, key client.AddedKey) {
	t.Helper()
	if err := s.client(t).Add(key); err != nil {
		t.Fatal(err)
	}
}

// TestHeldKeys: what is known of each key, wherever it is, as time goes on.
func TestHeldKeys(t *testing.T) {
	clock := newHandClock()
	pinned, _ := locked("1234", 32, true)
	up := serve(t, Config{Source: fixed()})
	addTo(t, up, client.AddedKey{PrivateKey: newECDSA(elliptic.P256()), Comment: "far"})
	s := serveLocal(t, true, Config{
		Source: fixed(pinned), Clock: clock, Upstreams: []Upstream{at(up.path)},
	})
	addTo(t, s, client.AddedKey{PrivateKey: newECDSA(elliptic.P256()), Comment: "soft", ConfirmBeforeUse: true})
	hour := uint32(3600)
	add := KeyFileRequest{Name: "/there", Comment: "added", Content: []byte("rsa"), Lifetime: &hour, Destinations: []Destination{
		{From: toHost("", "a", hostA()), To: toHost("u", "b", hostD())},
	}}
	if err := ParseKeyFileAnswer(ask(t, s.dial(t), add.Marshal())); err != nil {
		t.Fatal(err)
	}
	if err := unlockedBy(ask(t, s.dial(t), unlockWith("1234", pinned, time.Minute))); err != nil {
		t.Fatal(err)
	}
	clock.forward(10 * time.Second)
	got, _ := heldBy(t, s)
	listed, err := s.client(t).List()
	if err != nil || len(listed) != len(got) {
		t.Fatalf("%d are listed, %d held, %v", len(listed), len(got), err)
	}
	for i, k := range listed {
		if !bytes.Equal(got[i].Blob, k.Blob) || got[i].Comment != k.Comment {
			t.Errorf("%+v is listed as %v", got[i], k)
		}
		got[i].Blob = nil
	}
	want := []Held{
		{Comment: pinned.Comment, Name: pinned.Name, PIN: 50 * time.Second},
		{Comment: "soft", Keeper: InMemory, Confirm: true},
		{Comment: "added", Name: "/there", Keeper: InKeyFile, Mortal: true, Lifetime: 3590 * time.Second, Destinations: []string{"a>u@b"}},
		{Comment: "far", Name: at(up.path).Name, Keeper: InUpstream},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	clock.forward(time.Hour)
	got, _ = heldBy(t, s)
	if len(got) != 3 || got[0].PIN != 0 || slices.ContainsFunc(got, func(h Held) bool { return h.Mortal }) {
		t.Errorf("later: %+v", got)
	}
}

// TestHeldAndRemoved: who is not offered is not held, and who is to be confirmed
// because all are says so.
func TestHeldAndRemoved(t *testing.T) {
	one, two := plain("one", p256()), plain("two", p384())
	s := serveLocal(t, true, Config{Source: fixed(one, two), ConfirmAll: true})
	wantAnswer(t, s.dial(t), removeMessage(one.Public.Marshal()), succeeded)
	if got, _ := heldBy(t, s); len(got) != 1 || got[0].Comment != two.Comment || !got[0].Confirm {
		t.Errorf("%+v", got)
	}
}

// TestHeldCrowd: more than fit into one answer, and one that fits into none.
func TestHeldCrowd(t *testing.T) {
	var ids []Identity
	for i := range 20 {
		id := plain(fmt.Sprint(i), newECDSA(elliptic.P256()))
		id.Name = strings.Repeat("x", 50000)
		if i == 7 {
			id.Name = strings.Repeat("x", maxMessage)
		}
		ids = append(ids, id)
	}
	s := serveLocal(t, true, Config{Source: fixed(ids...)})
	got, answers := heldBy(t, s)
	if len(got) != len(ids)-1 || answers != 4 {
		t.Errorf("%d keys in %d answers", len(got), answers)
	}
	if some, next, err := ParseHeld(ask(t, s.dial(t), HeldRequest(1<<32-1))); len(some) != 0 || next != 0 || err != nil {
		t.Errorf("behind the end: %+v, %d, %v", some, next, err)
	}
	if _, _, err := ParseHeld([]byte{msgFailure}); !errors.Is(err, ErrNotOwner) {
		t.Errorf("a failure is %v", err)
	}
}
