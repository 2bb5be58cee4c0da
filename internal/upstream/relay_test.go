package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

func blobOf(s interface{ Marshal() []byte }) string { return string(s.Marshal()) }

// TestRelayToAgents lists, uses and removes the keys of two of OpenSSH's agents.
func TestRelayToAgents(t *testing.T) {
	t.Parallel()
	one, two := sshtest.StartAgent(t), sshtest.StartAgent(t)
	one.Add(t, "a", sshtest.P256())
	one.Add(t, "b", sshtest.RSA2048())
	two.Add(t, "b2", sshtest.RSA2048())
	two.Add(t, "c", sshtest.P521())
	r, log := relayTo(t, one.Path, two.Path)
	if got := names(r.List(t.Context())); got != "a b c" {
		t.Fatalf("listed %q", got)
	}
	data := []byte("to be signed")
	for _, pub := range []interface{ Marshal() []byte }{sshtest.PublicOf(sshtest.P256()), sshtest.PublicOf(sshtest.P521())} {
		answer, ok, err := r.ForKey(t.Context(), blobOf(pub), sshtest.SignMessage(pub.Marshal(), data, 0))
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		sshtest.VerifyAnswer(t, sshtest.Must(ssh.ParsePublicKey(pub.Marshal())), data, answer[wire.LengthSize:])
	}
	unknown := sshtest.PublicOf(sshtest.P384())
	answer, ok, err := r.ForKey(t.Context(), blobOf(unknown), sshtest.SignMessage(unknown.Marshal(), data, 0))
	if ok || err != nil || !bytes.Equal(answer, wire.Failure()) {
		t.Errorf("unknown key: %x, %v, %v", answer, ok, err)
	}
	rsaKey := sshtest.PublicOf(sshtest.RSA2048())
	for _, want := range []string{"a b2 c", "a c"} {
		if _, ok, err := r.ForKey(t.Context(), blobOf(rsaKey), sshtest.RemoveMessage(rsaKey.Marshal())); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if got := names(r.List(t.Context())); got != want {
			t.Errorf("listed %q instead of %q", got, want)
		}
	}
	if err := r.All(t.Context(), []byte{wire.MsgRemoveAllIdentities}); err != nil {
		t.Fatal(err)
	}
	if got := r.List(t.Context()); len(got) > 0 {
		t.Errorf("still there: %q", names(got))
	}
	if log.String() != "" {
		t.Errorf("log: %s", log)
	}
}

// TestRelayRestart restarts an upstream while a client has a connection to it.
func TestRelayRestart(t *testing.T) {
	t.Parallel()
	up := sshtest.StartAgent(t)
	up.Add(t, "old", sshtest.P256())
	r, log := relayTo(t, up.Path)
	key := sshtest.PublicOf(sshtest.P256())
	sign := sshtest.SignMessage(key.Marshal(), nil, 0)
	if got := names(r.List(t.Context())); got != "old" {
		t.Fatalf("listed %q", got)
	}
	up.Kill()
	if got := r.List(t.Context()); len(got) > 0 {
		t.Errorf("listed %q by a dead agent", names(got))
	}
	answer, ok, err := r.ForKey(t.Context(), blobOf(key), sign)
	if ok || !errors.Is(err, syscall.ECONNREFUSED) || !bytes.Equal(answer, wire.Failure()) {
		t.Errorf("dead agent: %x, %v, %v", answer, ok, err)
	}
	if err := r.All(t.Context(), []byte{wire.MsgRemoveAllIdentities}); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
	up.Start(t)
	up.Add(t, "new", sshtest.P256())
	if got := names(r.List(t.Context())); got != "new" {
		t.Errorf("listed %q", got)
	}
	up.Kill() // This time the client does not list before it signs.
	up.Start(t)
	up.Add(t, "newer", sshtest.P256())
	if _, ok, err = r.ForKey(t.Context(), blobOf(key), sign); !ok || err != nil {
		t.Error(ok, err)
	}
	if log.Count("agent fails") != 1 || log.Count("is back") != 1 {
		t.Errorf("log: %s", log)
	}
}

// TestRelayRaw checks that requests and answers of any content are passed on
// unchanged.
func TestRelayRaw(t *testing.T) {
	t.Parallel()
	body := make([]byte, 200<<10)
	rand.Read(body)
	up := sshtest.Answering(t, func(m []byte) []byte {
		if m[0] == wire.MsgRequestIdentities {
			return listOf("a key of no kind", "\x00\xff")
		}
		return wire.Frame(append([]byte{wire.MsgSignResponse}, m[1:]...))
	})
	r, _ := relayTo(t, up.Path)
	keys := r.List(t.Context())
	if len(keys) != 1 || keys[0].Blob != "a key of no kind" || keys[0].Comment != "\x00\xff" {
		t.Fatalf("listed %q", keys)
	}
	for _, n := range []int{0, 1, 4095, 4096, len(body)} {
		request := append([]byte{wire.MsgSignRequest}, body[:n]...)
		answer, ok, err := r.ForKey(t.Context(), keys[0].Blob, request)
		if !ok || err != nil || !up.Has(request) {
			t.Fatal(n, ok, err)
		}
		if !bytes.Equal(answer, wire.Frame(append([]byte{wire.MsgSignResponse}, body[:n]...))) {
			t.Fatalf("%d bytes came back changed", n)
		}
	}
}

// TestRelayHostile checks that a wrong answer makes only its own request fail, and
// that such an upstream gets no key.
func TestRelayHostile(t *testing.T) {
	t.Parallel()
	list := listOf("blob", "comment", "other", "")
	answers := map[string][]byte{
		"length 0":       make([]byte, 4),
		"length 2^32-1":  {255, 255, 255, 255, 12},
		"300 KiB":        wire.Frame(make([]byte, 300<<10)),
		"256 KiB and 1":  wire.Frame(append([]byte{wire.MsgIdentitiesAnswer}, make([]byte, wire.MaxMessage)...)),
		"another number": wire.Frame([]byte{wire.MsgSuccess}),
		"signature":      wire.Frame([]byte{wire.MsgSignResponse, 0, 0, 0, 0}),
		"too much":       append(listOf(), 0),
		"two answers":    append(listOf(), listOf()...),
		"number of keys": wire.Frame([]byte{wire.MsgIdentitiesAnswer, 255, 255, 255, 255}),
		"one more key":   wire.Frame([]byte{wire.MsgIdentitiesAnswer, 0, 0, 0, 1}),
		"junk behind":    wire.Frame([]byte{wire.MsgIdentitiesAnswer, 0, 0, 0, 0, 1}),
		"no count":       wire.Frame([]byte{wire.MsgIdentitiesAnswer, 0, 0}),
	}
	for n := range list {
		answers[fmt.Sprintf("closed after %d", n)] = list[:n]
		inside := wire.Frame(list[wire.LengthSize:max(n, wire.LengthSize+1)])
		answers[fmt.Sprintf("list of %d bytes", len(inside))] = inside
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := sshtest.Pretend(t, func(f *sshtest.Fake, n int, nc net.Conn) {
				if f.Next(n, nc) != nil {
					nc.Write(answer)
				}
			})
			good := sshtest.Answering(t, func([]byte) []byte { return listOf("mine", "good") })
			r, log := relayTo(t, up.Path, good.Path)
			for range 2 {
				if got := names(r.List(t.Context())); got != "good" {
					t.Fatalf("listed %q", got)
				}
			}
			if log.Count("upstream agent fails") != 1 {
				t.Errorf("log: %s", log)
			}
			_, err := r.First(t.Context(), []byte{wire.MsgAddIdentity, 1, 2, 3}, false)
			if err == nil || !strings.Contains(err.Error(), "upstream ") {
				t.Errorf("adding: %v", err)
			}
			if up.Has([]byte{wire.MsgAddIdentity, 1, 2, 3}) {
				t.Error("the upstream got a key")
			}
		})
	}
}

// TestRelayNo has an upstream refuse to sign with a key that a second one has, too.
// The second is asked only if the first has lost the key.
func TestRelayNo(t *testing.T) {
	t.Parallel()
	sign := []byte{wire.MsgSignRequest}
	for name, test := range map[string]struct {
		second []byte // the first one's second list
		signed bool
	}{"refused": {listOf("blob", "key"), false}, "lost": {listOf(), true}, "hung up": {nil, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var lists atomic.Int32
			first := sshtest.Answering(t, func(m []byte) []byte {
				if m[0] != wire.MsgRequestIdentities {
					return wire.Failure()
				}
				if lists.Add(1) > 1 {
					return test.second
				}
				return listOf("blob", "key")
			})
			second := sshtest.Answering(t, func(m []byte) []byte {
				if m[0] == wire.MsgRequestIdentities {
					return listOf("blob", "key")
				}
				return wire.Frame([]byte{wire.MsgSignResponse})
			})
			r, _ := relayTo(t, first.Path, second.Path)
			r.List(t.Context())
			_, ok, err := r.ForKey(t.Context(), "blob", sign)
			if ok != test.signed || errors.Is(err, errRefused) == test.signed || second.Has(sign) != test.signed {
				t.Errorf("signed: %v, %v", ok, err)
			}
		})
	}
}

// TestRelayUnlisted checks that a request for a key goes only to an upstream that
// lists it, even if the client has not asked for a list.
func TestRelayUnlisted(t *testing.T) {
	t.Parallel()
	sign := []byte{wire.MsgSignRequest}
	signs := func(keys ...string) *sshtest.Fake {
		return sshtest.Answering(t, func(m []byte) []byte {
			if m[0] == wire.MsgRequestIdentities {
				return listOf(keys...)
			}
			return wire.Frame([]byte{wire.MsgSignResponse})
		})
	}
	first, second := signs(), signs("blob", "key")
	r, _ := relayTo(t, first.Path, second.Path)
	if _, ok, err := r.ForKey(t.Context(), "blob", sign); !ok || err != nil {
		t.Error(ok, err)
	}
	if _, ok, err := r.ForKey(t.Context(), "other", sign); ok || err != nil {
		t.Error(ok, err)
	}
	if got := r.List(t.Context()); len(got) != 1 || got[0].Agent != at(second.Path).Name {
		t.Errorf("listed %q", got)
	}
	if first.Has(sign) {
		t.Error("the first upstream was asked, too")
	}
}

// TestRelayStray checks that an answer that no request asked for is not taken for
// the next one.
func TestRelayStray(t *testing.T) {
	t.Parallel()
	answered, written := make(chan struct{}), make(chan struct{})
	up := sshtest.Pretend(t, func(f *sshtest.Fake, n int, nc net.Conn) {
		f.Next(n, nc)
		nc.Write(listOf("blob", fmt.Sprint("connection ", n)))
		if n == 0 {
			<-answered
			nc.Write(listOf("blob", "stray"))
			close(written)
		}
		f.Next(n, nc)
	})
	r, _ := relayTo(t, up.Path)
	r.List(t.Context())
	close(answered)
	<-written
	if got := names(r.List(t.Context())); got != "connection 1" {
		t.Errorf("listed %q", got)
	}
}

// TestRelayHangUp has a client hang up while its request waits for an upstream.
func TestRelayHangUp(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	up := sshtest.Pretend(t, func(f *sshtest.Fake, n int, nc net.Conn) {
		for m := f.Next(n, nc); m != nil; m = f.Next(n, nc) {
			if m[0] == wire.MsgRequestIdentities {
				nc.Write(listOf("blob", "key"))
				continue
			}
			asked <- struct{}{}
		}
	})
	r, log := relayTo(t, up.Path)
	for _, ask := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, _, err := r.ForKey(ctx, "blob", []byte{wire.MsgSignRequest})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.First(ctx, []byte{wire.MsgAddIdentity}, false)
			return err
		},
		func(ctx context.Context) error { return r.All(ctx, []byte{wire.MsgRemoveAllIdentities}) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if err := ask(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if log.String() != "" {
			t.Errorf("log: %s", log)
		}
		if got := names(r.List(t.Context())); got != "key" {
			t.Errorf("listed %q", got)
		}
	}
}

// TestRelayMissing checks that an upstream without a socket has no keys, and that
// this is logged once.
func TestRelayMissing(t *testing.T) {
	t.Parallel()
	r, log := relayTo(t, t.TempDir()+"/none")
	for range 3 {
		if got := r.List(t.Context()); got != nil {
			t.Errorf("listed %q", got)
		}
	}
	if _, err := r.First(t.Context(), []byte{wire.MsgAddIdentity}, false); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	if err := r.All(t.Context(), []byte{wire.MsgRemoveAllIdentities}); err != nil {
		t.Error(err)
	}
	if log.Count("agent fails") != 1 || log.Count("\n") != 1 {
		t.Errorf("log: %s", log)
	}
	none, _ := relayTo(t)
	if got := none.List(t.Context()); got != nil || new(Agents).Any() {
		t.Errorf("listed %q", got)
	}
	if answer, err := none.First(t.Context(), []byte{wire.MsgAddIdentity}, false); err != nil || !bytes.Equal(answer, wire.Failure()) {
		t.Error(answer, err)
	}
}

// TestRelayAdd checks that a key goes to the first upstream that accepts it, and to
// no other.
func TestRelayAdd(t *testing.T) {
	t.Parallel()
	refuses := sshtest.Answering(t, func(m []byte) []byte {
		if m[0] == wire.MsgRequestIdentities {
			return listOf()
		}
		return wire.Failure()
	})
	takes := func() *sshtest.Fake {
		return sshtest.Answering(t, func(m []byte) []byte {
			if m[0] == wire.MsgRequestIdentities {
				return listOf()
			}
			return wire.Success()
		})
	}
	one, two := takes(), takes()
	r, _ := relayTo(t, refuses.Path, t.TempDir()+"/none", one.Path, two.Path)
	add := []byte("\x19a key")
	answer, err := r.First(t.Context(), add, false)
	if err != nil || !bytes.Equal(answer, wire.Success()) {
		t.Fatal(answer, err)
	}
	if !refuses.Has(add) || !one.Has(add) || two.Has(add) {
		t.Error("it went elsewhere")
	}
	r, _ = relayTo(t, refuses.Path)
	if answer, err := r.First(t.Context(), add, false); err != nil || !bytes.Equal(answer, wire.Failure()) {
		t.Error(answer, err)
	}
}

// TestRelayRemoveAll checks that all upstreams must remove their keys.
func TestRelayRemoveAll(t *testing.T) {
	t.Parallel()
	cleared := sshtest.Answering(t, func(m []byte) []byte {
		if m[0] == wire.MsgRequestIdentities {
			return listOf()
		}
		return wire.Success()
	})
	for name, says := range map[string][]byte{"refuses": wire.Failure(), "hangs up": nil} {
		up := sshtest.Answering(t, func(m []byte) []byte {
			if m[0] == wire.MsgRequestIdentities {
				return listOf()
			}
			return says
		})
		r, _ := relayTo(t, up.Path, cleared.Path)
		if err := r.All(t.Context(), []byte{wire.MsgRemoveAllIdentities}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	removed := 0
	for _, m := range slices.Concat(cleared.Received()...) {
		if m[0] == wire.MsgRemoveAllIdentities {
			removed++
		}
	}
	if removed != 2 {
		t.Errorf("the next upstream was asked %d times", removed)
	}
}

// TestRelayPINOnce checks that nothing that may contain a PIN is sent again to an
// upstream that hangs up.
func TestRelayPINOnce(t *testing.T) {
	t.Parallel()
	up := sshtest.Answering(t, func(m []byte) []byte {
		if m[0] == wire.MsgRequestIdentities {
			return listOf()
		}
		return nil
	})
	r, _ := relayTo(t, up.Path)
	for _, number := range []byte{wire.MsgAddSmartcardKey, wire.MsgAddSmartcardConstr, wire.MsgAddIdentity} {
		request := []byte{number, 1}
		if _, err := r.First(t.Context(), request, false); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		sent := 0
		for _, m := range slices.Concat(up.Received()...) {
			if bytes.Equal(m, request) {
				sent++
			}
		}
		if sent != 1 {
			t.Errorf("%s: sent %d times", wire.RequestName(number), sent)
		}
	}
}
