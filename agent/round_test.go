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
)

// dialogs is a user who answers when he is told to.
type dialogs struct {
	prompterFunc
	open   chan AuthPrompt // each dialog sends when it is there
	closed chan struct{}   // … and when it is taken away
	answer chan string     // "cancel" is one
}

func newDialogs() *dialogs {
	d := &dialogs{open: make(chan AuthPrompt), closed: make(chan struct{}), answer: make(chan string)}
	d.prompterFunc = func(ctx context.Context, p AuthPrompt) ([]byte, error) {
		d.open <- p
		select {
		case a := <-d.answer:
			if a == "cancel" {
				return nil, fmt.Errorf("scripted: %w", ErrRefused)
			}
			if a == "left" {
				return nil, fmt.Errorf("%w: %w", ErrNoAnswer, ErrLeft)
			}
			return []byte(a), nil
		case <-ctx.Done():
			d.closed <- struct{}{}
			return nil, ctx.Err()
		}
	}
	return d
}

// waiting waits until so many wait for PINs.
func (s *testServer) waiting(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.rounds.mu.Lock()
		sum := 0
		for _, r := range s.rounds.m {
			sum += len(r.members)
		}
		s.rounds.mu.Unlock()
		if sum == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d wait, not %d", sum, n)
		}
	}
}

// TestOneDialogPerKey: fifty want the same key. There is one dialog, which
// stays while one of them does, whoever it was opened for; nobody else waits.
func TestOneDialogPerKey(t *testing.T) {
	id, key := locked("1234", 32, true)
	other := plain("other", p384())
	user := newDialogs()
	s := serve(t, Config{Source: fixed(id, other), Prompter: user})
	request := signMessage(id.Public.Marshal(), []byte("data"), 0)
	conns := make([]*net.UnixConn, 50)
	for i := range conns {
		conns[i] = s.dial(t)
		send(t, conns[i], request)
		if i == 0 {
			<-user.open
		}
	}
	s.waiting(t, 50)
	nc := s.dial(t)
	countListed(t, ask(t, nc, listThem))
	verify(t, other.Public, nil, ask(t, nc, signMessage(other.Public.Marshal(), nil, 0)))
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
			verify(t, id.Public, []byte("data"), recv(t, nc))
		}
	}
	if tried := key.tried(); tried[0] != "wrong" || slices.Contains(tried[1:], "wrong") || len(tried) != 26 {
		t.Errorf("tried %q", tried)
	}
	// The PIN was for those only.
	send(t, nc, request)
	<-user.open
	nc.Close()
	<-user.closed
}

// TestTryOutlivesItsClient: who hangs up while his wrong PIN is being tried
// does not have it tried for the next one again.
func TestTryOutlivesItsClient(t *testing.T) {
	id, key := locked("1234", 32, true)
	key.begun, key.gate, key.ended = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	user := newDialogs()
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	a, b := s.dial(t), s.dial(t)
	send(t, a, signMessage(id.Public.Marshal(), nil, 0))
	<-user.open
	send(t, b, signMessage(id.Public.Marshal(), nil, 0))
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
	verify(t, id.Public, nil, recv(t, b))
	if got := key.tried(); !slices.Equal(got, []string{"wrong", "1234"}) {
		t.Errorf("tried %q", got)
	}
}

// TestLastTakesDialogAlong: a dialog for nobody leaves the screen.
func TestLastTakesDialogAlong(t *testing.T) {
	id, key := locked("1234", 32, true)
	user := newDialogs()
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	a, b := s.dial(t), s.dial(t)
	send(t, a, signMessage(id.Public.Marshal(), nil, 0))
	<-user.open
	send(t, b, signMessage(id.Public.Marshal(), nil, 0))
	s.waiting(t, 2)
	a.Close()
	s.waiting(t, 1)
	b.Close()
	<-user.closed
	if len(key.tried()) > 0 {
		t.Errorf("tried %q", key.tried())
	}
	if err := s.stop(); err != nil { // and all is noted
		t.Error(err)
	}
	for _, r := range s.recent.list() {
		if r.Cause != string(CauseHungUp) || r.Detail != "" {
			t.Errorf("kept %+v", r)
		}
	}
}

// TestCancelRefusesAll: one no is enough for all who wait, and is told as one.
func TestCancelRefusesAll(t *testing.T) {
	id, _ := locked("1234", 32, true)
	user := newDialogs()
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	conns := []*net.UnixConn{s.dial(t), s.dial(t), s.dial(t)}
	for i, nc := range conns {
		send(t, nc, signMessage(id.Public.Marshal(), nil, 0))
		if i == 0 {
			<-user.open
		}
	}
	s.waiting(t, 3)
	user.answer <- "cancel"
	for _, nc := range conns {
		if m := recv(t, nc); !bytes.Equal(m, failed) {
			t.Errorf("answer %x", m)
		}
	}
	for _, r := range s.recent.list() {
		if r.Cause != string(CauseCancelled) || r.Key != id.Name || r.Request != "sign" {
			t.Errorf("kept %+v", r)
		}
	}
	if n := len(s.recent.list()); n != 3 {
		t.Errorf("%d refusals are kept", n)
	}
}

// TestLeftTerminal: the one on whose terminal the dialog was has left it, and is
// refused; the others are asked on.
func TestLeftTerminal(t *testing.T) {
	id, key := locked("1234", 3, true)
	user := newDialogs()
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	request := signMessage(id.Public.Marshal(), []byte("data"), 0)
	first, second := s.dial(t), s.dial(t)
	send(t, first, request)
	<-user.open
	send(t, second, request)
	s.waiting(t, 2)
	user.answer <- "left"
	if m := recv(t, first); !bytes.Equal(m, failed) {
		t.Errorf("answer %x", m)
	}
	if p := <-user.open; p.Retry || p.Waiting != 0 {
		t.Errorf("asked on with %+v", p)
	}
	user.answer <- "1234"
	verify(t, id.Public, []byte("data"), recv(t, second))
	if tried := key.tried(); len(tried) != 1 {
		t.Errorf("tried %q", tried)
	}
	send(t, first, request) // he may ask again
	<-user.open
	user.answer <- "left"
	if m := recv(t, first); !bytes.Equal(m, failed) {
		t.Errorf("answer %x", m)
	}
}

// TestForwardedHasADialogOfItsOwn: a PIN that was typed for this machine does
// not sign what came over a forwarding while the dialog was open.
func TestForwardedHasADialogOfItsOwn(t *testing.T) {
	id, key := locked("1234", 32, true)
	user := newDialogs()
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	local, remote := s.dial(t), s.dial(t)
	wantAnswer(t, remote, bindMessage(true), succeeded)
	send(t, local, signMessage(id.Public.Marshal(), nil, 0))
	if p := <-user.open; p.Use.Forwarded {
		t.Error("a local request is shown as a forwarded one")
	}
	send(t, remote, signMessage(id.Public.Marshal(), nil, 0))
	s.waiting(t, 2)
	user.answer <- "1234"
	verify(t, id.Public, nil, recv(t, local))
	if p := <-user.open; !p.Use.Forwarded || p.Retry || len(p.Use.Via) != 1 {
		t.Errorf("asked %+v", p)
	}
	if len(key.tried()) != 1 {
		t.Errorf("tried %q", key.tried())
	}
	user.answer <- "cancel"
	if m := recv(t, remote); !bytes.Equal(m, failed) {
		t.Errorf("answer %x", m)
	}
}

// limitedKey knows how many tries are left.
type limitedKey struct {
	*softKey
	wait time.Duration
}

func (k *limitedKey) Lockout(context.Context) (Lockout, error) {
	k.softKey.mu.Lock()
	defer k.softKey.mu.Unlock()
	return Lockout{Tries: k.tries, Wait: k.wait}, nil
}

// careful wants to be asked before the last try.
type careful struct {
	scripted
	goes    []error // the answers
	lastTry int
	told    chan Notice
}

func (c *careful) LastTry(context.Context, AuthPrompt) error {
	err := c.goes[0]
	c.goes = c.goes[1:]
	c.lastTry++
	return err
}

func (c *careful) Inform(_ context.Context, n Notice) { c.told <- n }

// TestLastTry: the try that would lock the TPM is not made unless somebody said
// so; and when it is locked nobody is asked for a PIN.
func TestLastTry(t *testing.T) {
	id, soft := locked("1234", 3, true)
	key := &limitedKey{softKey: soft, wait: time.Minute}
	id.Key = key
	user := &careful{told: make(chan Notice, 8)}
	user.answers = []string{"a", "b", "c"}
	user.goes = []error{ErrRefused, nil, nil}
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	nc := s.dial(t)
	request := signMessage(id.Public.Marshal(), nil, 0)
	wantAnswer(t, nc, request, failed) // a, b, and no to the last
	if got := key.tried(); !slices.Equal(got, []string{"a", "b"}) || user.lastTry != 1 {
		t.Fatalf("tried %q, asked %d times before the last", got, user.lastTry)
	}
	if n := user.asked[0].TriesLeft; n != 3 {
		t.Errorf("the first prompt says %d tries left", n)
	}
	wantAnswer(t, nc, request, failed) // yes, c: and the TPM is locked
	wantAnswer(t, nc, request, failed)
	if got := key.tried(); !slices.Equal(got, []string{"a", "b", "c"}) || len(user.asked) != 3 {
		t.Errorf("tried %q, asked %d times", got, len(user.asked))
	}
	if n := <-user.told; n.Wait != time.Minute || n.Name != id.Name {
		t.Errorf("told %+v", n)
	}
	kept := s.recent.list()
	if last := kept[len(kept)-1]; last.Cause != string(CauseLockout) {
		t.Errorf("the reason is %+v", last)
	}
	key.softKey.mu.Lock()
	key.tries = 1
	key.softKey.mu.Unlock()
	user.answers = []string{"1234"}
	verify(t, id.Public, nil, ask(t, nc, request))
}

// TestLastTryIsTheThird: that the TPM has locked is told also when nobody would
// have been asked again.
func TestLastTryIsTheThird(t *testing.T) {
	id, soft := locked("1234", 3, true)
	id.Key = &limitedKey{softKey: soft, wait: time.Minute}
	user := &careful{told: make(chan Notice, 8)}
	user.answers = []string{"a", "b", "c"}
	user.goes = []error{nil}
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	wantAnswer(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0), failed)
	if got := soft.tried(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("tried %q", got)
	}
	if kept := s.recent.list(); len(kept) != 1 || kept[0].Cause != string(CauseLockout) {
		t.Errorf("kept %+v", kept)
	}
	select {
	case n := <-user.told:
		if n.Wait != time.Minute || n.Name != id.Name {
			t.Errorf("told %+v", n)
		}
	default: // the answer waits for it
		t.Error("nobody was told of the lockout")
	}
}

// TestEmptyPIN: a prompter that answers nothing costs one try, and not one for
// each signature.
func TestEmptyPIN(t *testing.T) {
	id, key := locked("1234", 32, true)
	user := &scripted{answers: []string{"", "", "", "", "", ""}}
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	for range 2 {
		wantAnswer(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0), failed)
	}
	if got := key.tried(); len(got) != 1 {
		t.Errorf("tried %q", got)
	}
}

// TestEmptyPINIsNone: a key that was said to have a PIN and has none is used by
// all who wait for it, and is not asked about again.
func TestEmptyPINIsNone(t *testing.T) {
	id, key := locked("", 32, true)
	user := newDialogs()
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	request := signMessage(id.Public.Marshal(), nil, 0)
	conns := []net.Conn{s.dial(t), s.dial(t), s.dial(t)}
	for i, nc := range conns {
		send(t, nc, request)
		if i == 0 {
			<-user.open
		}
	}
	s.waiting(t, len(conns))
	user.answer <- ""
	for _, nc := range conns {
		verify(t, id.Public, nil, recv(t, nc))
	}
	verify(t, id.Public, nil, ask(t, conns[0], request))
	if got := key.tried(); !slices.Equal(got, []string{"", "", "", ""}) {
		t.Errorf("tried %q", got)
	}
}

// TestGivenPIN: a PIN that needs nobody to type it is tried once, and again
// only when it is another one.
func TestGivenPIN(t *testing.T) {
	id, soft := locked("1234", 32, true)
	key := &limitedKey{softKey: soft}
	id.Key = key
	given, version, problem := "wrong", "1", error(nil)
	user := &scripted{}
	s := serve(t, Config{Source: fixed(id), Prompter: user, GivenPIN: func(name, print string) ([]byte, string, error) {
		if name != id.Name {
			t.Errorf("asked for the PIN of %q", name)
		}
		return []byte(given), version, problem
	}})
	nc := s.dial(t)
	request := signMessage(id.Public.Marshal(), nil, 0)
	for range 3 {
		wantAnswer(t, nc, request, failed)
	}
	if got := key.tried(); !slices.Equal(got, []string{"wrong"}) || len(user.asked) != 3 {
		t.Errorf("tried %q, asked %d times", got, len(user.asked))
	}
	given, version = "1234", "2"
	key.tries = 1 // it could be the last
	wantAnswer(t, nc, request, failed)
	key.tries = 2
	verify(t, id.Public, nil, ask(t, nc, request))
	key.tries = 1 // but this one was right before
	verify(t, id.Public, nil, ask(t, nc, request))
	problem = errors.New("file not found")
	wantAnswer(t, nc, request, failed)
	if got := key.tried(); !slices.Equal(got, []string{"wrong", "1234", "1234"}) {
		t.Errorf("tried %q", got)
	}
	if s.log.count("1234") > 0 {
		t.Error("the PIN is in the log")
	}
}

// TestGivenPINIsTheReason: where nobody can be asked, the reason that is kept is
// what was wrong with the PIN that was given.
func TestGivenPINIsTheReason(t *testing.T) {
	for name, test := range map[string]struct {
		given   string
		problem error
		want    []string // of one request after the other
	}{
		"unreadable": {"", errors.New("mode 0644"), []string{"cannot be used: mode 0644"}},
		"wrong":      {"wrong", nil, []string{"is wrong, and is not tried again", "is not tried: it was wrong"}},
	} {
		id, _ := locked("1234", 32, true)
		s := serve(t, Config{Source: fixed(id), GivenPIN: func(string, string) ([]byte, string, error) {
			return []byte(test.given), "1", test.problem
		}})
		for _, want := range test.want {
			wantAnswer(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0), failed)
			kept := s.recent.list()
			if last := kept[len(kept)-1]; last.Cause != string(CauseNoPrompt) || last.Detail != "the PIN that was given for it "+want {
				t.Errorf("%s: kept %+v, want %q", name, last, want)
			}
		}
	}
}

// TestLockoutInSign: what a key says when it is asked to sign is told as well.
func TestLockoutInSign(t *testing.T) {
	id := Identity{Public: publicOf(p256()), Comment: "c", Name: "n", Key: lockedKey{}}
	user := &careful{told: make(chan Notice, 8)}
	user.answers = []string{"1234"}
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	wantAnswer(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0), failed)
	if n := <-user.told; n.Wait != time.Hour {
		t.Errorf("told %+v", n)
	}
	if kept := s.recent.list(); len(kept) != 1 || kept[0].Cause != string(CauseLockout) {
		t.Errorf("kept %+v", kept)
	}
}

// lockedKey is in a TPM that takes no PIN.
type lockedKey struct{}

func (lockedKey) AuthRequired() bool { return true }

func (lockedKey) Sign(context.Context, []byte, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, fmt.Errorf("signing: %w", lockedOutFor(time.Hour))
}

type lockedOutFor time.Duration

func (lockedOutFor) Error() string              { return "TPM_RC_LOCKOUT" }
func (e lockedOutFor) LockedOut() time.Duration { return time.Duration(e) }

// bindMessage binds a connection to host A.
func bindMessage(forwarding bool) []byte {
	return append(appendString([]byte{msgExtension}, extSessionBind), bindBody(hostA(), "id", forwarding)...)
}
