package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

func blobOf(s interface{ Marshal() []byte }) string { return string(s.Marshal()) }

// TestRelayToAgents: what OpenSSH's agents hold is listed in order and once,
// signs, and can be removed.
func TestRelayToAgents(t *testing.T) {
	one, two := startAgent(t), startAgent(t)
	one.add(t, "a", p256())
	one.add(t, "b", rsa2k())
	two.add(t, "b2", rsa2k())
	two.add(t, "c", p521())
	r, log := relayTo(t, one.path, two.path)
	if got := names(r.list(t.Context())); got != "a b c" {
		t.Fatalf("listed %q", got)
	}
	data := []byte("to be signed")
	for _, pub := range []interface{ Marshal() []byte }{publicOf(p256()), publicOf(p521())} {
		answer, ok, err := r.forKey(t.Context(), blobOf(pub), signMessage(pub.Marshal(), data, 0))
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		verify(t, must(ssh.ParsePublicKey(pub.Marshal())), data, answer[lengthSize:])
	}
	unknown := publicOf(p384())
	answer, ok, err := r.forKey(t.Context(), blobOf(unknown), signMessage(unknown.Marshal(), data, 0))
	if ok || err != nil || !bytes.Equal(answer, failure()) {
		t.Errorf("unknown key: %x, %v, %v", answer, ok, err)
	}
	rsaKey := publicOf(rsa2k())
	for _, want := range []string{"a b2 c", "a c"} {
		if _, ok, err := r.forKey(t.Context(), blobOf(rsaKey), removeMessage(rsaKey.Marshal())); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if got := names(r.list(t.Context())); got != want {
			t.Errorf("listed %q instead of %q", got, want)
		}
	}
	if err := r.all(t.Context(), []byte{msgRemoveAllIdentities}); err != nil {
		t.Fatal(err)
	}
	if got := r.list(t.Context()); len(got) > 0 {
		t.Errorf("still there: %q", names(got))
	}
	if log.String() != "" {
		t.Errorf("log: %s", log)
	}
}

// TestRelayRestart: an upstream that is restarted is found again, by a client
// that has a connection to the old one.
func TestRelayRestart(t *testing.T) {
	up := startAgent(t)
	up.add(t, "old", p256())
	r, log := relayTo(t, up.path)
	key := publicOf(p256())
	sign := signMessage(key.Marshal(), nil, 0)
	if got := names(r.list(t.Context())); got != "old" {
		t.Fatalf("listed %q", got)
	}
	up.kill()
	if got := r.list(t.Context()); len(got) > 0 {
		t.Errorf("listed %q by a dead agent", names(got))
	}
	answer, ok, err := r.forKey(t.Context(), blobOf(key), sign)
	if ok || !errors.Is(err, syscall.ECONNREFUSED) || !bytes.Equal(answer, failure()) {
		t.Errorf("dead agent: %x, %v, %v", answer, ok, err)
	}
	if err := r.all(t.Context(), []byte{msgRemoveAllIdentities}); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
	up.start(t)
	up.add(t, "new", p256())
	if got := names(r.list(t.Context())); got != "new" {
		t.Errorf("listed %q", got)
	}
	up.kill() // and restarted without a list in between
	up.start(t)
	up.add(t, "newer", p256())
	if _, ok, err = r.forKey(t.Context(), blobOf(key), sign); !ok || err != nil {
		t.Error(ok, err)
	}
	if log.count("is not there") != 1 || log.count("is back") != 1 {
		t.Errorf("log: %s", log)
	}
}

// TestRelayRaw: what is relayed is not looked at.
func TestRelayRaw(t *testing.T) {
	body := make([]byte, 200<<10)
	rand.Read(body)
	up := answering(t, func(m []byte) []byte {
		if m[0] == msgRequestIdentities {
			return listOf(listed{"a key of no kind", "\x00\xff"})
		}
		return frame(append([]byte{msgSignResponse}, m[1:]...))
	})
	r, _ := relayTo(t, up.path)
	keys := r.list(t.Context())
	if len(keys) != 1 || keys[0] != (listed{"a key of no kind", "\x00\xff"}) {
		t.Fatalf("listed %q", keys)
	}
	for _, n := range []int{0, 1, 4095, 4096, len(body)} {
		request := append([]byte{msgSignRequest}, body[:n]...)
		answer, ok, err := r.forKey(t.Context(), keys[0].blob, request)
		if !ok || err != nil || !up.has(request) {
			t.Fatal(n, ok, err)
		}
		if !bytes.Equal(answer, frame(append([]byte{msgSignResponse}, body[:n]...))) {
			t.Fatalf("%d bytes came back otherwise", n)
		}
	}
}

// TestRelayHostile: what an upstream answers wrongly is an error for the
// request, nothing worse, and the connection is not used on.
func TestRelayHostile(t *testing.T) {
	list := listOf(listed{"blob", "comment"}, listed{"other", ""})
	answers := map[string][]byte{
		"length 0":       make([]byte, 4),
		"length 2^32-1":  {255, 255, 255, 255, 12},
		"300 KiB":        frame(make([]byte, 300<<10)),
		"256 KiB and 1":  frame(append([]byte{msgIdentitiesAnswer}, make([]byte, maxMessage)...)),
		"another number": frame([]byte{msgSuccess}),
		"signature":      frame([]byte{msgSignResponse, 0, 0, 0, 0}),
		"too much":       append(listOf(), 0),
		"two answers":    append(listOf(), listOf()...),
		"number of keys": frame([]byte{msgIdentitiesAnswer, 255, 255, 255, 255}),
		"one more key":   frame([]byte{msgIdentitiesAnswer, 0, 0, 0, 1}),
		"junk behind":    frame([]byte{msgIdentitiesAnswer, 0, 0, 0, 0, 1}),
		"no count":       frame([]byte{msgIdentitiesAnswer, 0, 0}),
	}
	for n := range list {
		answers[fmt.Sprintf("closed after %d", n)] = list[:n]
		inside := frame(list[lengthSize:max(n, lengthSize+1)])
		answers[fmt.Sprintf("list of %d bytes", len(inside))] = inside
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			up := pretend(t, func(f *fake, n int, nc net.Conn) {
				if f.next(n, nc) != nil {
					nc.Write(answer)
				}
			})
			good := answering(t, func([]byte) []byte { return listOf(listed{"mine", "good"}) })
			r, log := relayTo(t, up.path, good.path)
			for range 2 {
				if got := names(r.list(t.Context())); got != "good" {
					t.Fatalf("listed %q", got)
				}
			}
			if log.count("upstream agent fails") != 1 {
				t.Errorf("log: %s", log)
			}
			_, err := r.first(t.Context(), []byte{msgAddIdentity, 1, 2, 3}, false)
			if err == nil || !strings.Contains(err.Error(), "upstream ") {
				t.Errorf("adding: %v", err)
			}
			if up.has([]byte{msgAddIdentity, 1, 2, 3}) {
				t.Error("it was given a key")
			}
		})
	}
}

// TestRelayNo: the no of one that has the key is the answer, though others have
// it as well. That of one that has it no longer is none.
func TestRelayNo(t *testing.T) {
	key, sign := listed{"blob", "key"}, []byte{msgSignRequest}
	for name, test := range map[string]struct {
		second []byte // the first's second list
		signed bool
	}{"refused": {listOf(key), false}, "gone": {listOf(), true}, "hung up": {nil, true}} {
		t.Run(name, func(t *testing.T) {
			var lists atomic.Int32
			first := answering(t, func(m []byte) []byte {
				if m[0] != msgRequestIdentities {
					return failure()
				}
				if lists.Add(1) > 1 {
					return test.second
				}
				return listOf(key)
			})
			second := answering(t, func(m []byte) []byte {
				if m[0] == msgRequestIdentities {
					return listOf(key)
				}
				return frame([]byte{msgSignResponse})
			})
			r, _ := relayTo(t, first.path, second.path)
			r.list(t.Context())
			_, ok, err := r.forKey(t.Context(), key.blob, sign)
			if ok != test.signed || errors.Is(err, errRefused) == test.signed || second.has(sign) != test.signed {
				t.Errorf("signed: %v, %v", ok, err)
			}
		})
	}
}

// TestRelayStray: an answer that nobody asked for is not taken for the next.
func TestRelayStray(t *testing.T) {
	answered, written := make(chan struct{}), make(chan struct{})
	up := pretend(t, func(f *fake, n int, nc net.Conn) {
		f.next(n, nc)
		nc.Write(listOf(listed{"blob", fmt.Sprint("connection ", n)}))
		if n == 0 {
			<-answered
			nc.Write(listOf(listed{"blob", "stray"}))
			close(written)
		}
		f.next(n, nc)
	})
	r, _ := relayTo(t, up.path)
	r.list(t.Context())
	close(answered)
	<-written
	if got := names(r.list(t.Context())); got != "connection 1" {
		t.Errorf("listed %q", got)
	}
}

// TestRelayHangUp: a client that goes away takes its request with it.
func TestRelayHangUp(t *testing.T) {
	asked := make(chan struct{})
	up := pretend(t, func(f *fake, n int, nc net.Conn) {
		for m := f.next(n, nc); m != nil; m = f.next(n, nc) {
			if m[0] == msgRequestIdentities {
				nc.Write(listOf(listed{"blob", "key"}))
				continue
			}
			asked <- struct{}{}
		}
	})
	for _, blob := range []string{"blob", "not listed"} {
		r, log := relayTo(t, up.path)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if _, ok, err := r.forKey(ctx, blob, []byte{msgSignRequest}); ok || !errors.Is(err, context.Canceled) {
			t.Error(ok, err)
		}
		if log.String() != "" {
			t.Errorf("log: %s", log)
		}
		if got := names(r.list(t.Context())); got != "key" {
			t.Errorf("listed %q", got)
		}
	}
}

// TestRelayMissing: no socket, no keys, one line in the log.
func TestRelayMissing(t *testing.T) {
	r, log := relayTo(t, t.TempDir()+"/none")
	for range 3 {
		if got := r.list(t.Context()); got != nil {
			t.Errorf("listed %q", got)
		}
	}
	if _, err := r.first(t.Context(), []byte{msgAddIdentity}, false); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	if err := r.all(t.Context(), []byte{msgRemoveAllIdentities}); err != nil {
		t.Error(err)
	}
	if log.count("is not there") != 1 || log.count("\n") != 1 {
		t.Errorf("log: %s", log)
	}
	none, _ := relayTo(t)
	if got := none.list(t.Context()); got != nil || none.ups.any() {
		t.Errorf("listed %q", got)
	}
	if answer, err := none.first(t.Context(), []byte{msgAddIdentity}, false); !errors.Is(err, errNoUpstream) || !bytes.Equal(answer, failure()) {
		t.Error(answer, err)
	}
}

// TestRelayAdd: the first that takes it gets it, and only that.
func TestRelayAdd(t *testing.T) {
	refuses := answering(t, func(m []byte) []byte {
		if m[0] == msgRequestIdentities {
			return listOf()
		}
		return failure()
	})
	takes := func() *fake {
		return answering(t, func(m []byte) []byte {
			if m[0] == msgRequestIdentities {
				return listOf()
			}
			return success()
		})
	}
	one, two := takes(), takes()
	r, _ := relayTo(t, refuses.path, t.TempDir()+"/none", one.path, two.path)
	add := []byte("\x19a key")
	answer, err := r.first(t.Context(), add, false)
	if err != nil || !bytes.Equal(answer, success()) {
		t.Fatal(answer, err)
	}
	if !refuses.has(add) || !one.has(add) || two.has(add) {
		t.Error("it went elsewhere")
	}
	r, _ = relayTo(t, refuses.path)
	if answer, err := r.first(t.Context(), add, false); err != nil || !bytes.Equal(answer, failure()) {
		t.Error(answer, err)
	}
}

// TestRelayRemoveAll: one that refuses, or breaks off, is not passed over.
func TestRelayRemoveAll(t *testing.T) {
	cleared := answering(t, func(m []byte) []byte {
		if m[0] == msgRequestIdentities {
			return listOf()
		}
		return success()
	})
	for name, says := range map[string][]byte{"refuses": failure(), "hangs up": nil} {
		up := answering(t, func(m []byte) []byte {
			if m[0] == msgRequestIdentities {
				return listOf()
			}
			return says
		})
		r, _ := relayTo(t, up.path, cleared.path)
		if err := r.all(t.Context(), []byte{msgRemoveAllIdentities}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if n := len(cleared.received()); n != 2 {
		t.Errorf("the one behind was asked %d times", n)
	}
}

// TestRelayPINOnce: nothing that counts tries is repeated.
func TestRelayPINOnce(t *testing.T) {
	up := answering(t, func(m []byte) []byte {
		if m[0] == msgRequestIdentities {
			return listOf()
		}
		return nil
	})
	count := func(request []byte) (n int) {
		for _, c := range up.received() {
			for _, m := range c {
				if bytes.Equal(m, request) {
					n++
				}
			}
		}
		return n
	}
	r, _ := relayTo(t, up.path)
	for request, want := range map[byte]int{msgAddSmartcardKey: 1, msgAddSmartcardConstr: 1, msgAddIdentity: 2} {
		if _, err := r.first(t.Context(), []byte{request, 1}, false); !errors.Is(err, errGone) {
			t.Error(err)
		}
		if n := count([]byte{request, 1}); n != want {
			t.Errorf("%s: sent %d times", requestName(request), n)
		}
	}
}
