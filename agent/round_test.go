package agent

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// dialogs is a user who answers when a test says so.
type dialogs struct {
	prompterFunc
	open   chan ask.AuthPrompt // each prompt sends when it opens
	closed chan struct{}       // … and when it is closed
	answer chan string         // a PIN, "cancel", or "left" for a client that has left the terminal
}

func newDialogs() *dialogs {
	d := &dialogs{open: make(chan ask.AuthPrompt), closed: make(chan struct{}), answer: make(chan string)}
	d.prompterFunc = func(ctx context.Context, p ask.AuthPrompt) ([]byte, error) {
		d.open <- p
		select {
		case a := <-d.answer:
			if a == "cancel" {
				return nil, fmt.Errorf("scripted: %w", ask.ErrRefused)
			}
			if a == "left" {
				return nil, fmt.Errorf("%w: %w", ask.ErrNoAnswer, ask.ErrLeft)
			}
			return []byte(a), nil
		case <-ctx.Done():
			d.closed <- struct{}{}
			return nil, ctx.Err()
		}
	}
	return d
}

// waiting waits until n requests wait for PINs.
func (s *testServer) waiting(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		sum := s.owner.Waiting()
		if sum == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests wait, want %d", sum, n)
		}
	}
}

// TestOneDialogPerKey checks that 50 requests for one key share a prompt,
// that the prompt stays open as long as one of them waits, and that requests
// for other keys do not wait.
func TestOneDialogPerKey(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	other := plain("other", sshtest.P384())
	user := newDialogs()
	s := serve(t, Config{Sources: []Source{fixed(id, other)}, Prompter: user})
	request := sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0)
	conns := make([]*net.UnixConn, 50)
	for i := range conns {
		conns[i] = s.dial(t)
		sshtest.Send(t, conns[i], request)
		if i == 0 {
			<-user.open
		}
	}
	s.waiting(t, 50)
	nc := s.dial(t)
	sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem))
	sshtest.VerifyAnswer(t, other.Public, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(other.Public.Marshal(), nil, 0)))
	for i, nc := range conns {
		if i%2 == 0 {
			nc.Close()
		}
	}
	s.waiting(t, 25)
	user.answer <- "wrong"
	if p := <-user.open; !p.Retry || p.Waiting != 24 {
		t.Errorf("asked again with %+v", p)
	}
	user.answer <- "1234"
	for i, nc := range conns {
		if i%2 == 1 {
			sshtest.VerifyAnswer(t, id.Public, []byte("data"), sshtest.Recv(t, nc))
		}
	}
	if tried := key.tried(); tried[0] != "wrong" || slices.Contains(tried[1:], "wrong") || len(tried) != 26 {
		t.Errorf("tried %q", tried)
	}
	// The PIN was only for those requests.
	sshtest.Send(t, nc, request)
	<-user.open
	nc.Close()
	<-user.closed
}

// TestTryOutlivesItsClient checks that a wrong PIN is not tried again for
// the next client if the first one hangs up while it is tried.
func TestTryOutlivesItsClient(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	key.begun, key.gate, key.ended = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	user := newDialogs()
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	a, b := s.dial(t), s.dial(t)
	sshtest.Send(t, a, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	<-user.open
	sshtest.Send(t, b, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	s.waiting(t, 2)
	user.answer <- "wrong"
	<-key.begun
	a.Close()
	s.waiting(t, 1)
	key.gate <- struct{}{}
	if p := <-user.open; !p.Retry {
		t.Errorf("asked again with %+v", p)
	}
	user.answer <- "1234"
	<-key.begun
	key.gate <- struct{}{}
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Recv(t, b))
	if got := key.tried(); !slices.Equal(got, []string{"wrong", "1234"}) {
		t.Errorf("tried %q", got)
	}
}

// TestLastClientClosesPrompt checks that a prompt is closed when the last
// client that waits for it hangs up.
func TestLastClientClosesPrompt(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	user := newDialogs()
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	a, b := s.dial(t), s.dial(t)
	sshtest.Send(t, a, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	<-user.open
	sshtest.Send(t, b, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	s.waiting(t, 2)
	a.Close()
	s.waiting(t, 1)
	b.Close()
	<-user.closed
	if len(key.tried()) > 0 {
		t.Errorf("tried %q", key.tried())
	}
	if err := s.stop(); err != nil { // after this, all refusals are kept
		t.Error(err)
	}
	for _, r := range s.Refusals() {
		if r.Cause != string(refusal.HungUp) || r.Detail != "" {
			t.Errorf("kept %+v", r)
		}
	}
}

// TestCancelRefusesAll checks that a cancelled prompt refuses all requests
// that share it.
func TestCancelRefusesAll(t *testing.T) {
	t.Parallel()
	id, _ := locked("1234", 32, true)
	user := newDialogs()
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	conns := []*net.UnixConn{s.dial(t), s.dial(t), s.dial(t)}
	for i, nc := range conns {
		sshtest.Send(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
		if i == 0 {
			<-user.open
		}
	}
	s.waiting(t, 3)
	user.answer <- "cancel"
	for _, nc := range conns {
		if m := sshtest.Recv(t, nc); !bytes.Equal(m, sshtest.Failed) {
			t.Errorf("answer %x", m)
		}
	}
	for _, r := range s.Refusals() {
		if r.Cause != string(refusal.Cancelled) || r.Key != id.Name || r.Request != "sign" {
			t.Errorf("kept %+v", r)
		}
	}
	if n := len(s.Refusals()); n != 3 {
		t.Errorf("%d refusals are kept", n)
	}
}

// TestLeftTerminal checks that a client that leaves the terminal with its
// prompt is refused, and that the next one gets a prompt.
func TestLeftTerminal(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 3, true)
	user := newDialogs()
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	request := sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0)
	first, second := s.dial(t), s.dial(t)
	sshtest.Send(t, first, request)
	<-user.open
	sshtest.Send(t, second, request)
	s.waiting(t, 2)
	user.answer <- "left"
	if m := sshtest.Recv(t, first); !bytes.Equal(m, sshtest.Failed) {
		t.Errorf("answer %x", m)
	}
	if p := <-user.open; p.Retry || p.Waiting != 0 {
		t.Errorf("the second client is asked with %+v", p)
	}
	user.answer <- "1234"
	sshtest.VerifyAnswer(t, id.Public, []byte("data"), sshtest.Recv(t, second))
	if tried := key.tried(); len(tried) != 1 {
		t.Errorf("tried %q", tried)
	}
	sshtest.Send(t, first, request) // the first client asks again
	<-user.open
	user.answer <- "left"
	if m := sshtest.Recv(t, first); !bytes.Equal(m, sshtest.Failed) {
		t.Errorf("answer %x", m)
	}
}

// TestForwardedHasItsOwnPrompt checks that a PIN that was typed for a
// request of this machine does not sign for one that came over a forwarding
// while the prompt was open.
func TestForwardedHasItsOwnPrompt(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	user := newDialogs()
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	local, remote := s.dial(t), s.dial(t)
	wantAnswer(t, remote, bindMessage(true), sshtest.Succeeded)
	sshtest.Send(t, local, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	if p := <-user.open; p.Use.Forwarded {
		t.Error("a local request is shown as a forwarded one")
	}
	sshtest.Send(t, remote, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	s.waiting(t, 2)
	user.answer <- "1234"
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Recv(t, local))
	if p := <-user.open; !p.Use.Forwarded || p.Retry || len(p.Use.Via) != 1 {
		t.Errorf("asked %+v", p)
	}
	if len(key.tried()) != 1 {
		t.Errorf("tried %q", key.tried())
	}
	user.answer <- "cancel"
	if m := sshtest.Recv(t, remote); !bytes.Equal(m, sshtest.Failed) {
		t.Errorf("answer %x", m)
	}
}

// limitedKey is a key that knows how many tries are left.
type limitedKey struct {
	*softKey
	wait time.Duration
}

func (k *limitedKey) Lockout(context.Context) (consent.Lockout, error) {
	k.softKey.mu.Lock()
	defer k.softKey.mu.Unlock()
	return consent.Lockout{Tries: k.tries, Wait: k.wait}, nil
}

// careful is a user who is asked before the last try and told about
// lockouts.
type careful struct {
	scripted
	goes    []error // answers to LastTry
	lastTry int
	told    chan ask.Notice
}

func (c *careful) LastTry(context.Context, ask.AuthPrompt) error {
	err := c.goes[0]
	c.goes = c.goes[1:]
	c.lastTry++
	return err
}

func (c *careful) Inform(_ context.Context, n ask.Notice) { c.told <- n }

// TestLastTry checks that the last try before a lockout needs consent, and
// that the owner is told about the lockout instead of being asked for a PIN.
func TestLastTry(t *testing.T) {
	t.Parallel()
	id, soft := locked("1234", 3, true)
	key := &limitedKey{softKey: soft, wait: time.Minute}
	id.Key = key
	user := &careful{told: make(chan ask.Notice, 8)}
	user.answers = []string{"a", "b", "c"}
	user.goes = []error{ask.ErrRefused, nil, nil}
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	nc := s.dial(t)
	request := sshtest.SignMessage(id.Public.Marshal(), nil, 0)
	wantAnswer(t, nc, request, sshtest.Failed) // tries a and b; the last try is refused
	if got := key.tried(); !slices.Equal(got, []string{"a", "b"}) || user.lastTry != 1 {
		t.Fatalf("tried %q, asked %d times before the last", got, user.lastTry)
	}
	if n := user.asked[0].TriesLeft; n != 3 {
		t.Errorf("the first prompt says %d tries left", n)
	}
	wantAnswer(t, nc, request, sshtest.Failed) // tries c, and the TPM locks
	wantAnswer(t, nc, request, sshtest.Failed)
	if got := key.tried(); !slices.Equal(got, []string{"a", "b", "c"}) || len(user.asked) != 3 {
		t.Errorf("tried %q, asked %d times", got, len(user.asked))
	}
	if n := <-user.told; n.Wait != time.Minute || n.Name != id.Name {
		t.Errorf("told %+v", n)
	}
	kept := s.Refusals()
	if last := kept[len(kept)-1]; last.Cause != string(refusal.Lockout) {
		t.Errorf("the reason is %+v", last)
	}
	key.softKey.mu.Lock()
	key.tries = 1
	key.softKey.mu.Unlock()
	user.answers = []string{"1234"}
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, request))
}

// TestLastTryIsTheThird checks that the owner is told about a lockout that
// the third wrong PIN of one request has caused.
func TestLastTryIsTheThird(t *testing.T) {
	t.Parallel()
	id, soft := locked("1234", 3, true)
	id.Key = &limitedKey{softKey: soft, wait: time.Minute}
	user := &careful{told: make(chan ask.Notice, 8)}
	user.answers = []string{"a", "b", "c"}
	user.goes = []error{nil}
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	wantAnswer(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0), sshtest.Failed)
	if got := soft.tried(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("tried %q", got)
	}
	if kept := s.Refusals(); len(kept) != 1 || kept[0].Cause != string(refusal.Lockout) {
		t.Errorf("kept %+v", kept)
	}
	if n := <-user.told; n.Wait != time.Minute || n.Name != id.Name {
		t.Errorf("told %+v", n)
	}
}

// TestEmptyPIN checks that an empty PIN is tried once, not once for each
// signature.
func TestEmptyPIN(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	user := &scripted{answers: []string{"", "", "", "", "", ""}}
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	for range 2 {
		wantAnswer(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0), sshtest.Failed)
	}
	if got := key.tried(); len(got) != 1 {
		t.Errorf("tried %q", got)
	}
}

// TestEmptyPINIsNone checks that a key that needs no PIN, although it said
// so, signs for all who wait, and that the PIN is not asked for again.
func TestEmptyPINIsNone(t *testing.T) {
	t.Parallel()
	id, key := locked("", 32, true)
	user := newDialogs()
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	request := sshtest.SignMessage(id.Public.Marshal(), nil, 0)
	conns := []net.Conn{s.dial(t), s.dial(t), s.dial(t)}
	for i, nc := range conns {
		sshtest.Send(t, nc, request)
		if i == 0 {
			<-user.open
		}
	}
	s.waiting(t, len(conns))
	user.answer <- ""
	for _, nc := range conns {
		sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Recv(t, nc))
	}
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, conns[0], request))
	if got := key.tried(); !slices.Equal(got, []string{"", "", "", ""}) {
		t.Errorf("tried %q", got)
	}
}

// TestGivenPIN checks that a PIN from Config.GivenPIN is tried once, and
// again only if it has changed.
func TestGivenPIN(t *testing.T) {
	t.Parallel()
	id, soft := locked("1234", 32, true)
	key := &limitedKey{softKey: soft}
	id.Key = key
	given, version, problem := "wrong", "1", error(nil)
	user := &scripted{}
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user, GivenPIN: func(name, print string) ([]byte, string, error) {
		if name != id.Name {
			t.Errorf("asked for the PIN of %q", name)
		}
		return []byte(given), version, problem
	}})
	nc := s.dial(t)
	request := sshtest.SignMessage(id.Public.Marshal(), nil, 0)
	for range 3 {
		wantAnswer(t, nc, request, sshtest.Failed)
	}
	if got := key.tried(); !slices.Equal(got, []string{"wrong"}) || len(user.asked) != 3 {
		t.Errorf("tried %q, asked %d times", got, len(user.asked))
	}
	given, version = "1234", "2"
	key.tries = 1 // an unproven PIN is not used for the last try
	wantAnswer(t, nc, request, sshtest.Failed)
	key.tries = 2
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, request))
	key.tries = 1 // a proven one is
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, request))
	problem = errors.New("file not found")
	wantAnswer(t, nc, request, sshtest.Failed)
	if got := key.tried(); !slices.Equal(got, []string{"wrong", "1234", "1234"}) {
		t.Errorf("tried %q", got)
	}
	if s.log.Count("1234") > 0 {
		t.Error("the PIN is in the log")
	}
}

// TestGivenPINIsTheReason checks that the reason of the refusal is what was
// wrong with a given PIN if the owner cannot be asked.
func TestGivenPINIsTheReason(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		given   string
		problem error
		want    []string // for each request
	}{
		"unreadable": {"", errors.New("mode 0644"), []string{"cannot be used: mode 0644"}},
		"wrong":      {"wrong", nil, []string{"is wrong, and is not tried again", "is not tried: it was wrong"}},
	} {
		id, _ := locked("1234", 32, true)
		s := serve(t, Config{Sources: []Source{fixed(id)}, GivenPIN: func(string, string) ([]byte, string, error) {
			return []byte(test.given), "1", test.problem
		}})
		for _, want := range test.want {
			wantAnswer(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0), sshtest.Failed)
			kept := s.Refusals()
			if last := kept[len(kept)-1]; last.Cause != string(refusal.NoPrompt) || last.Detail != "the PIN that was given for it "+want {
				t.Errorf("%s: kept %+v, want %q", name, last, want)
			}
		}
	}
}

// TestLockoutInSign checks that the owner is told about a lockout that the
// key reports when it should sign.
func TestLockoutInSign(t *testing.T) {
	t.Parallel()
	id := Identity{Public: sshtest.PublicOf(sshtest.P256()), Comment: "c", Name: "n", Key: lockedKey{}}
	user := &careful{told: make(chan ask.Notice, 8)}
	user.answers = []string{"1234"}
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	wantAnswer(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0), sshtest.Failed)
	if n := <-user.told; n.Wait != time.Hour {
		t.Errorf("told %+v", n)
	}
	if kept := s.Refusals(); len(kept) != 1 || kept[0].Cause != string(refusal.Lockout) {
		t.Errorf("kept %+v", kept)
	}
}

// lockedKey is a key in a TPM that is locked out.
type lockedKey struct{}

func (lockedKey) AuthRequired() bool { return true }

func (lockedKey) Sign(context.Context, []byte, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, fmt.Errorf("signing: %w", lockedOutFor(time.Hour))
}

type lockedOutFor time.Duration

func (lockedOutFor) Error() string              { return "TPM_RC_LOCKOUT" }
func (e lockedOutFor) LockedOut() time.Duration { return time.Duration(e) }

// bindMessage returns a request that binds a connection to host A.
func bindMessage(forwarding bool) []byte {
	return append(wire.AppendString([]byte{wire.MsgExtension}, restrict.ExtSessionBind), sshtest.BindBody(sshtest.HostA(), "id", forwarding)...)
}
