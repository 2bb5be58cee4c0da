package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/crypto/ssh"
)

// TestBindsFirst: every connection is told all bindings in order, before
// anything that came after them, and whatever is said to them.
func TestBindsFirst(t *testing.T) {
	for _, verdict := range []byte{msgSuccess, msgFailure, msgExtensionFailure} {
		up := answering(t, func(m []byte) []byte {
			switch m[0] {
			case msgExtension:
				return frame([]byte{verdict})
			case msgRequestIdentities:
				return listOf(listed{"blob", ""})
			}
			return frame([]byte{msgSignResponse})
		})
		r, _ := relayTo(t, up.path)
		bind := func(n int) []byte { return append([]byte{msgExtension}, fmt.Sprint("bind ", n)...) }
		sign := []byte{msgSignRequest, 'x'}
		r.list(t.Context())
		r.bind(bind(1))
		r.bind(bind(2))
		r.list(t.Context())
		r.bind(bind(3))
		if _, ok, err := r.forKey(t.Context(), "blob", sign); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.links[0].drop()
		r.bind(bind(4))
		if _, ok, err := r.forKey(t.Context(), "blob", sign); !ok || err != nil {
			t.Fatal(ok, err)
		}
		want := [][][]byte{
			{listThem, bind(1), bind(2), listThem, bind(3), sign},
			{bind(1), bind(2), bind(3), bind(4), sign},
		}
		if got := up.received(); !reflect.DeepEqual(got, want) {
			t.Errorf("answered %d: got %q, want %q", verdict, got, want)
		}
	}
}

// TestBindUnanswered: nothing is asked on a connection on which a binding was
// not answered, or with what is no answer to it.
func TestBindUnanswered(t *testing.T) {
	for name, answer := range map[string][]byte{
		"closed":    nil,
		"no answer": {},
		"nonsense":  frame([]byte{msgSignResponse}),
		"a list":    listOf(),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u, _ := upstreamsOf(piped("up", func(m []byte) []byte {
					if m[0] != msgExtension {
						t.Errorf("got request %d", m[0])
					}
					return answer
				}))
				r := newRelay(t, u)
				r.bind([]byte{msgExtension})
				if keys := r.list(t.Context()); keys != nil {
					t.Errorf("listed %q", keys)
				}
				if _, ok, err := r.forKey(t.Context(), "blob", []byte{msgSignRequest}); ok || err == nil {
					t.Error(ok, err)
				}
				if _, err := r.first(t.Context(), []byte{msgAddIdentity}, false); err == nil {
					t.Error("added")
				}
				if err := r.all(t.Context(), []byte{msgRemoveAllIdentities}); err == nil {
					t.Error("removed all")
				}
			})
		})
	}
}

// TestTooManyBinds: who binds without end gets nothing more.
func TestTooManyBinds(t *testing.T) {
	up := answering(t, func(m []byte) []byte {
		if m[0] == msgRequestIdentities {
			return listOf(listed{"blob", "key"})
		}
		return success()
	})
	for name, size := range map[string]int{"many": 1, "large": maxBindBytes/maxBinds + 1} {
		t.Run(name, func(t *testing.T) {
			r, log := relayTo(t, up.path)
			one := append([]byte{msgExtension}, make([]byte, size-1)...)
			for range maxBinds - 1 {
				r.bind(one)
			}
			if got := names(r.list(t.Context())); got != "key" {
				t.Fatalf("listed %q", got)
			}
			before := len(up.received())
			for range 3 {
				r.bind(one)
				r.bind(one)
			}
			_, ok, err := r.forKey(t.Context(), "blob", []byte{msgRemoveIdentity})
			_, err2 := r.first(t.Context(), []byte{msgAddIdentity}, false)
			err3 := r.all(t.Context(), []byte{msgRemoveAllIdentities})
			for _, err := range []error{err, err2, err3} {
				if ok || !errors.Is(err, errTooManyBinds) {
					t.Error(ok, err)
				}
			}
			if got := r.list(t.Context()); got != nil {
				t.Errorf("listed %q", got)
			}
			if len(up.received()) != before || up.has([]byte{msgAddIdentity}) || log.count("\n") != 1 {
				t.Errorf("something was relayed, or the log is %s", log)
			}
		})
	}
}

// TestDestinationsHoldThere: a key that ssh-add has given to OpenSSH's agent
// for one host is seen and signs, through a relay, where it may, and only
// there.
func TestDestinationsHoldThere(t *testing.T) {
	up := startAgent(t)
	key := addFor(t, up, "good.example", hostA())
	up.add(t, "free", p384())
	toA, toB := bindOf(hostA(), "id a", false), bindOf(hostB(), "id b", false)
	for name, c := range map[string]struct {
		binds   [][]byte
		list    string
		session string
		signs   bool
	}{
		"nobody's":             {nil, "bound free", "id a", false},
		"the host":             {[][]byte{toA}, "bound free", "id a", true},
		"another session":      {[][]byte{toA}, "bound free", "id b", false},
		"another host":         {[][]byte{toB}, "free", "id b", false},
		"the host, forwarding": {[][]byte{bindOf(hostA(), "id a", true)}, "free", "id a", false},
		"host behind another":  {[][]byte{bindOf(hostB(), "id b", true), toA}, "free", "id a", false},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := relayTo(t, up.path)
			for _, b := range c.binds {
				r.bind(b)
			}
			for range 2 { // the second time on a new connection
				if got := names(r.list(t.Context())); got != c.list {
					t.Errorf("listed %q instead of %q", got, c.list)
				}
				data := login(key, c.session, "me", hostA().PublicKey())
				answer, ok, err := r.forKey(t.Context(), blobOf(key), signMessage(key.Marshal(), data, 0))
				var why error // an agent that lists the key has the last word
				if !c.signs && strings.Contains(c.list, "bound") {
					why = errRefused
				}
				if ok != c.signs || !errors.Is(err, why) {
					t.Fatalf("signed: %v, %v; want %v, %v", ok, err, c.signs, why)
				}
				if ok {
					verify(t, key, data, answer[lengthSize:])
				}
				r.links[0].drop()
			}
		})
	}
}

// TestBindingsOfEachClient: clients share no connection.
func TestBindingsOfEachClient(t *testing.T) {
	up := startAgent(t)
	addFor(t, up, "good.example", hostA())
	u, _ := upstreamsOf(at(up.path))
	good, bad := newRelay(t, u), newRelay(t, u)
	good.bind(bindOf(hostA(), "id a", false))
	bad.bind(bindOf(hostB(), "id b", false))
	for range 3 {
		if g, b := names(good.list(t.Context())), names(bad.list(t.Context())); g != "bound" || b != "" {
			t.Errorf("listed %q and %q", g, b)
		}
	}
}

// addFor has ssh-add give a new key for one host to an agent.
func addFor(t *testing.T, a *realAgent, host string, hostKey ssh.Signer) ssh.PublicKey {
	t.Helper()
	dir := t.TempDir()
	file, hosts := filepath.Join(dir, "key"), filepath.Join(dir, "known_hosts")
	line := append([]byte(host+" "), ssh.MarshalAuthorizedKey(hostKey.PublicKey())...)
	if err := os.WriteFile(hosts, line, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bound", "-f", file},
		{"ssh-add", "-q", "-H", hosts, "-h", host, file},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "SSH_AUTH_SOCK=" + a.path}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args[0], err, out)
		}
	}
	b, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// TestRestrictedKeyArrives: with its constraints, on the client's own
// connection, at an agent that has proven itself.
func TestRestrictedKeyArrives(t *testing.T) {
	first := startAgent(t)
	var add []byte
	spy := pretend(t, func(f *fake, n int, nc net.Conn) { // between ssh-add and an agent
		there := dialUnix(t, first.path)
		for m := f.next(n, nc); m != nil; m = f.next(n, nc) {
			if m[0] == msgAddIDConstrained {
				add = m
			}
			if _, err := nc.Write(frame(ask(t, there, m))); err != nil {
				return
			}
		}
	})
	key := addFor(t, &realAgent{path: spy.path}, "good.example", hostA())
	if add == nil {
		t.Fatal("ssh-add sent no key")
	}
	other := startAgent(t)
	u, _ := upstreamsOf(at(other.path))
	r, bad := newRelay(t, u), newRelay(t, u)
	bad.bind(bindOf(hostB(), "id b", true))
	if answer, err := r.first(t.Context(), add, true); err != nil || !bytes.Equal(answer, success()) {
		t.Fatal(answer, err)
	}
	if got := names(r.list(t.Context())); got != "bound" {
		t.Errorf("listed %q", got)
	}
	if got := names(bad.list(t.Context())); got != "" {
		t.Errorf("listed %q for another host", got)
	}
	answer, ok, err := bad.forKey(t.Context(), blobOf(key), signMessage(key.Marshal(), login(key, "id b", "me", hostB().PublicKey()), 0))
	if ok || err != nil {
		t.Errorf("signed for another host: %x, %v", answer, err)
	}
}

// TestLateTimer: a timer of idleness that is late closes no connection that is
// in use.
func TestLateTimer(t *testing.T) {
	up := answering(t, func([]byte) []byte { return listOf(listed{"blob", "key"}) })
	r, _ := relayTo(t, up.path)
	r.list(t.Context())
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				r.links[0].drop()
			}
		}
	}()
	for range 200 {
		if got := names(r.list(t.Context())); got != "key" {
			t.Errorf("listed %q", got)
		}
	}
	close(stop)
	<-done
}
