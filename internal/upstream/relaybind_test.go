package upstream

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

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// TestBindsFirst checks that all bindings are repeated on every connection, in
// order and before later requests, whatever the upstream answers to them.
func TestBindsFirst(t *testing.T) {
	t.Parallel()
	for _, verdict := range []byte{wire.MsgSuccess, wire.MsgFailure, wire.MsgExtensionFailure} {
		up := sshtest.Answering(t, func(m []byte) []byte {
			switch m[0] {
			case wire.MsgExtension:
				return wire.Frame([]byte{verdict})
			case wire.MsgRequestIdentities:
				return listOf("blob", "")
			}
			return wire.Frame([]byte{wire.MsgSignResponse})
		})
		r, _ := relayTo(t, up.Path)
		bind := func(n int) []byte { return append([]byte{wire.MsgExtension}, fmt.Sprint("bind ", n)...) }
		sign := []byte{wire.MsgSignRequest, 'x'}
		r.List(t.Context())
		r.Bind(bind(1))
		r.Bind(bind(2))
		r.List(t.Context())
		r.Bind(bind(3))
		if _, ok, err := r.ForKey(t.Context(), "blob", sign); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.links[0].drop()
		r.Bind(bind(4))
		if _, ok, err := r.ForKey(t.Context(), "blob", sign); !ok || err != nil {
			t.Fatal(ok, err)
		}
		want := [][][]byte{
			{sshtest.ListThem, bind(1), bind(2), sshtest.ListThem, bind(3), sign},
			{bind(1), bind(2), bind(3), bind(4), sign},
		}
		if got := up.Received(); !reflect.DeepEqual(got, want) {
			t.Errorf("answered %d: got %q, want %q", verdict, got, want)
		}
	}
}

// TestBindUnanswered checks that no request follows a binding that was not answered
// properly.
func TestBindUnanswered(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string][]byte{
		"closed":    nil,
		"no answer": {},
		"nonsense":  wire.Frame([]byte{wire.MsgSignResponse}),
		"a list":    listOf(),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u, _ := upstreamsOf(piped("up", func(m []byte) []byte {
					if m[0] != wire.MsgExtension {
						t.Errorf("got request %d", m[0])
					}
					return answer
				}))
				r := newRelay(t, u)
				r.Bind([]byte{wire.MsgExtension})
				if keys := r.List(t.Context()); keys != nil {
					t.Errorf("listed %q", keys)
				}
				if _, ok, err := r.ForKey(t.Context(), "blob", []byte{wire.MsgSignRequest}); ok || err == nil {
					t.Error(ok, err)
				}
				if _, err := r.First(t.Context(), []byte{wire.MsgAddIdentity}, false); err == nil {
					t.Error("added")
				}
				if err := r.All(t.Context(), []byte{wire.MsgRemoveAllIdentities}); err == nil {
					t.Error("removed all")
				}
			})
		})
	}
}

// TestTooManyBinds checks that nothing more is relayed for a client with too many
// bindings.
func TestTooManyBinds(t *testing.T) {
	t.Parallel()
	up := sshtest.Answering(t, func(m []byte) []byte {
		if m[0] == wire.MsgRequestIdentities {
			return listOf("blob", "key")
		}
		return wire.Success()
	})
	for name, size := range map[string]int{"many": 1, "large": maxBindBytes/maxBinds + 1} {
		t.Run(name, func(t *testing.T) {
			r, log := relayTo(t, up.Path)
			one := append([]byte{wire.MsgExtension}, make([]byte, size-1)...)
			for range maxBinds - 1 {
				r.Bind(one)
			}
			if got := names(r.List(t.Context())); got != "key" {
				t.Fatalf("listed %q", got)
			}
			before := len(up.Received())
			for range 3 {
				r.Bind(one)
				r.Bind(one)
			}
			_, ok, err := r.ForKey(t.Context(), "blob", []byte{wire.MsgRemoveIdentity})
			_, err2 := r.First(t.Context(), []byte{wire.MsgAddIdentity}, false)
			err3 := r.All(t.Context(), []byte{wire.MsgRemoveAllIdentities})
			for _, err := range []error{err, err2, err3} {
				if ok || !errors.Is(err, errTooManyBinds) {
					t.Error(ok, err)
				}
			}
			if got := r.List(t.Context()); got != nil {
				t.Errorf("listed %q", got)
			}
			if len(up.Received()) != before || up.Has([]byte{wire.MsgAddIdentity}) || log.Count("\n") != 1 {
				t.Errorf("something was relayed, or the log is %s", log)
			}
		})
	}
}

// TestDestinationsHoldThere uses a key, which ssh-add has added to OpenSSH's agent
// for one host, through a relay: it works for that host only.
func TestDestinationsHoldThere(t *testing.T) {
	t.Parallel()
	up := sshtest.StartAgent(t)
	key := addFor(t, up, "good.example", sshtest.HostA())
	up.Add(t, "free", sshtest.P384())
	toA, toB := bindOf(sshtest.HostA(), "id a", false), bindOf(sshtest.HostB(), "id b", false)
	for name, c := range map[string]struct {
		binds   [][]byte
		list    string
		session string
		signs   bool
	}{
		"no binding":           {nil, "bound free", "id a", false},
		"the host":             {[][]byte{toA}, "bound free", "id a", true},
		"another session":      {[][]byte{toA}, "bound free", "id b", false},
		"another host":         {[][]byte{toB}, "free", "id b", false},
		"the host, forwarding": {[][]byte{bindOf(sshtest.HostA(), "id a", true)}, "free", "id a", false},
		"host behind another":  {[][]byte{bindOf(sshtest.HostB(), "id b", true), toA}, "free", "id a", false},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := relayTo(t, up.Path)
			for _, b := range c.binds {
				r.Bind(b)
			}
			for range 2 { // The second time uses a new connection.
				if got := names(r.List(t.Context())); got != c.list {
					t.Errorf("listed %q instead of %q", got, c.list)
				}
				data := sshtest.Login(key, c.session, "me", sshtest.HostA().PublicKey())
				answer, ok, err := r.ForKey(t.Context(), blobOf(key), sshtest.SignMessage(key.Marshal(), data, 0))
				var why error // The refusal of an agent that lists the key is final.
				if !c.signs && strings.Contains(c.list, "bound") {
					why = errRefused
				}
				if ok != c.signs || !errors.Is(err, why) {
					t.Fatalf("signed: %v, %v; want %v, %v", ok, err, c.signs, why)
				}
				if ok {
					sshtest.VerifyAnswer(t, key, data, answer[wire.LengthSize:])
				}
				r.links[0].drop()
			}
		})
	}
}

// TestBindingsOfEachClient checks that clients do not share connections.
func TestBindingsOfEachClient(t *testing.T) {
	t.Parallel()
	up := sshtest.StartAgent(t)
	addFor(t, up, "good.example", sshtest.HostA())
	u, _ := upstreamsOf(at(up.Path))
	good, bad := newRelay(t, u), newRelay(t, u)
	good.Bind(bindOf(sshtest.HostA(), "id a", false))
	bad.Bind(bindOf(sshtest.HostB(), "id b", false))
	for range 3 {
		if g, b := names(good.List(t.Context())), names(bad.List(t.Context())); g != "bound" || b != "" {
			t.Errorf("listed %q and %q", g, b)
		}
	}
}

// addFor has ssh-add add a new key for one host to an agent.
func addFor(t *testing.T, a *sshtest.RealAgent, host string, hostKey ssh.Signer) ssh.PublicKey {
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
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "SSH_AUTH_SOCK=" + a.Path}
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

// TestRestrictedKeyArrives passes a key with destinations on to an agent that proves
// that it checks bindings, and checks that the destinations arrived, too.
func TestRestrictedKeyArrives(t *testing.T) {
	t.Parallel()
	first := sshtest.StartAgent(t)
	var add []byte
	spy := sshtest.Pretend(t, func(f *sshtest.Fake, n int, nc net.Conn) { // between ssh-add and an agent
		there := sshtest.DialUnix(t, first.Path)
		for m := f.Next(n, nc); m != nil; m = f.Next(n, nc) {
			if m[0] == wire.MsgAddIDConstrained {
				add = m
			}
			if _, err := nc.Write(wire.Frame(sshtest.Exchange(t, there, m))); err != nil {
				return
			}
		}
	})
	key := addFor(t, &sshtest.RealAgent{Path: spy.Path}, "good.example", sshtest.HostA())
	if add == nil {
		t.Fatal("ssh-add sent no key")
	}
	other := sshtest.StartAgent(t)
	u, _ := upstreamsOf(at(other.Path))
	r, bad := newRelay(t, u), newRelay(t, u)
	bad.Bind(bindOf(sshtest.HostB(), "id b", true))
	if answer, err := r.First(t.Context(), add, true); err != nil || !bytes.Equal(answer, wire.Success()) {
		t.Fatal(answer, err)
	}
	if got := names(r.List(t.Context())); got != "bound" {
		t.Errorf("listed %q", got)
	}
	if got := names(bad.List(t.Context())); got != "" {
		t.Errorf("listed %q for another host", got)
	}
	answer, ok, err := bad.ForKey(t.Context(), blobOf(key), sshtest.SignMessage(key.Marshal(), sshtest.Login(key, "id b", "me", sshtest.HostB().PublicKey()), 0))
	if ok || err != nil {
		t.Errorf("signed for another host: %x, %v", answer, err)
	}
}

// TestLateTimer checks that the timer of an idle connection closes none that is in
// use.
func TestLateTimer(t *testing.T) {
	t.Parallel()
	up := sshtest.Answering(t, func([]byte) []byte { return listOf("blob", "key") })
	r, _ := relayTo(t, up.Path)
	r.List(t.Context())
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
		if got := names(r.List(t.Context())); got != "key" {
			t.Errorf("listed %q", got)
		}
	}
	close(stop)
	<-done
}
