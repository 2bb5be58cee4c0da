package agent

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// remembering is an agent that remembers PINs for a time, with a key that has
// one and a user who knows it.
type remembering struct {
	*testServer
	id    Identity
	key   *softKey
	user  *scripted
	clock *handClock
	src   *changing
	told  int // how often Config.Remembering was called
}

func remember(t *testing.T, life time.Duration) *remembering {
	id, key := locked("1234", 32, true)
	r := &remembering{id: id, key: key, user: &scripted{}, clock: newHandClock(), src: fixed(id)}
	r.user.answers = slices.Repeat([]string{"1234"}, 20)
	r.testServer = serve(t, Config{
		Source: r.src, Prompter: r.user, Clock: r.clock,
		Remembering: func() { r.told++ },
		PINLife: func(name, print string) time.Duration {
			if name != id.Name || print != ssh.FingerprintSHA256(id.Public) {
				t.Errorf("asked for the life of %q, %s", name, print)
			}
			return life
		},
	})
	return r
}

// sign signs, and says how often somebody was asked for that.
func (r *remembering) sign(t *testing.T) (asked int) {
	t.Helper()
	before := len(r.user.asked)
	verify(t, r.id.Public, nil, ask(t, r.dial(t), signMessage(r.id.Public.Marshal(), nil, 0)))
	return len(r.user.asked) - before
}

func (r *remembering) held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pins)
}

func TestPINIsRemembered(t *testing.T) {
	r := remember(t, 15*time.Minute)
	if n := r.sign(t); n != 1 {
		t.Fatalf("asked %d times", n)
	}
	r.clock.forward(15*time.Minute - 1)
	if n := r.sign(t); n != 0 {
		t.Errorf("asked %d times while it is remembered", n)
	}
	r.clock.forward(1)
	if n := r.sign(t); n != 1 {
		t.Errorf("asked %d times when the time was over", n)
	}
	r.user.checkWiped(t)
	if n := r.log.count("PIN remembered"); n != 2 || r.told != 2 {
		t.Errorf("%d log lines, told %d times", n, r.told)
	}
}

// lockTaker is a log that waits for the agent's lock before it takes a line, as
// one might for its reader.
type lockTaker struct {
	slog.Handler
	a    *Agent
	held []string // the lines that came under the lock
}

func (l *lockTaker) Handle(_ context.Context, r slog.Record) error {
	free := make(chan struct{})
	go func() {
		l.a.mu.Lock()
		defer l.a.mu.Unlock()
		close(free)
	}()
	if !within(10*time.Second, free) {
		l.held = append(l.held, r.Message)
	}
	return nil
}

// TestPINIsLoggedWithoutLock: a log that cannot be written holds up nobody else.
func TestPINIsLoggedWithoutLock(t *testing.T) {
	r := remember(t, Forever)
	held := &lockTaker{Handler: slog.NewTextHandler(io.Discard, nil), a: r.Agent}
	r.Agent.log = slog.New(held)
	r.sign(t)
	r.ForgetPINs()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if len(held.held) > 0 {
		t.Errorf("logged under the lock: %q", held.held)
	}
}

// TestPINIsNotRemembered is what happens if nobody asks for it.
func TestPINIsNotRemembered(t *testing.T) {
	r := remember(t, 0)
	if a, b := r.sign(t), r.sign(t); a != 1 || b != 1 || r.held() != 0 || r.told != 0 {
		t.Errorf("asked %d and %d times, %d held, told %d times", a, b, r.held(), r.told)
	}
}

func TestPINIsForgotten(t *testing.T) {
	for name, event := range map[string]func(t *testing.T, r *remembering){
		"ForgetPINs": func(t *testing.T, r *remembering) {
			if n := r.ForgetPINs(); n != 1 {
				t.Errorf("forgot %d", n)
			}
		},
		"Forget": func(_ *testing.T, r *remembering) { r.Forget() },
		"request": func(t *testing.T, r *remembering) {
			body, err := new(Agent).forgetPINs(t.Context(), nil, &wire{rest: []byte("x")})
			if err == nil {
				t.Errorf("takes a request with something behind it: %x", body)
			}
			if n := r.ForgetPINs(); n != 1 {
				t.Errorf("forgot %d", n)
			}
		},
		"lock": func(t *testing.T, r *remembering) {
			wantAnswer(t, r.dial(t), lockMessage("x"), succeeded)
			if r.held() != 0 {
				t.Error("held while locked")
			}
			wantAnswer(t, r.dial(t), unlockMessage("x"), succeeded)
		},
		"key removed": func(t *testing.T, r *remembering) {
			wantAnswer(t, r.dial(t), removeMessage(r.id.Public.Marshal()), succeeded)
			if r.held() != 0 {
				t.Error("held after the key was removed")
			}
			r.Reload()
		},
		"all removed": func(t *testing.T, r *remembering) {
			wantAnswer(t, r.dial(t), []byte{msgRemoveAllIdentities}, succeeded)
			if r.held() != 0 {
				t.Error("held after all keys were removed")
			}
			r.Reload()
		},
		"file gone, nobody asks": func(t *testing.T, r *remembering) {
			r.src.set.Store(NewSet(nil))
			r.clock.forward(sweepEvery)
			if r.held() != 0 {
				t.Error("held though the file is gone")
			}
			r.src.set.Store(NewSet([]Identity{r.id}))
		},
		"file changed": func(_ *testing.T, r *remembering) {
			other := r.id
			r.key = &softKey{Signer: r.key.Signer, pin: []byte("1234"), required: true}
			other.Key = r.key
			r.src.set.Store(NewSet([]Identity{other}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := remember(t, Forever)
			if a, b := r.sign(t), r.sign(t); a != 1 || b != 0 {
				t.Fatalf("asked %d and %d times before", a, b)
			}
			event(t, r)
			if n := r.sign(t); n != 1 {
				t.Errorf("asked %d times afterwards", n)
			}
		})
	}
}

// TestWrongPINIsForgotten: one that is wrong all of a sudden costs one try.
func TestWrongPINIsForgotten(t *testing.T) {
	r := remember(t, Forever)
	r.sign(t)
	r.key.mu.Lock()
	r.key.pin, r.key.auths = []byte("4321"), nil
	r.key.mu.Unlock()
	r.user.answers = []string{"4321"}
	if n := r.sign(t); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if got := r.key.tried(); !slices.Equal(got, []string{"1234", "4321"}) {
		t.Errorf("tried %q", got)
	}
}

// TestLockedMeanwhile: a PIN that was right when the agent is locked is not
// remembered by it.
func TestLockedMeanwhile(t *testing.T) {
	id, key := locked("1234", 32, true)
	key.begun, key.gate = make(chan struct{}), make(chan struct{})
	s := serve(t, Config{
		Source: fixed(id), Prompter: &scripted{answers: []string{"1234"}},
		PINLife: func(string, string) time.Duration { return Forever },
	})
	nc := s.dial(t)
	send(t, nc, signMessage(id.Public.Marshal(), nil, 0))
	<-key.begun
	wantAnswer(t, s.dial(t), lockMessage("x"), succeeded)
	close(key.gate)
	recv(t, nc)
	s.rounds.wait(time.Minute)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pins) > 0 {
		t.Error("the PIN is remembered")
	}
}

// TestForgottenMeanwhile: a PIN that was typed before all were forgotten is
// forgotten with them.
func TestForgottenMeanwhile(t *testing.T) {
	r := remember(t, Forever)
	r.key.begun, r.key.gate = make(chan struct{}), make(chan struct{})
	nc := r.dial(t)
	send(t, nc, signMessage(r.id.Public.Marshal(), nil, 0))
	<-r.key.begun
	r.ForgetPINs()
	close(r.key.gate)
	verify(t, r.id.Public, nil, recv(t, nc))
	if r.held() != 0 {
		t.Error("the PIN is remembered")
	}
}

// TestRememberedInParallel: as many as like use it at the same time, and
// forgetting it waits for none of them.
func TestRememberedInParallel(t *testing.T) {
	r := remember(t, Forever)
	r.sign(t)
	done := make(chan struct{})
	for range 16 {
		nc := r.dial(t)
		go func() {
			defer func() { done <- struct{}{} }()
			for range 20 {
				verify(t, r.id.Public, nil, ask(t, nc, signMessage(r.id.Public.Marshal(), nil, 0)))
			}
		}()
	}
	r.user.mu.Lock()
	r.user.answers = slices.Repeat([]string{"1234"}, 1000)
	r.user.mu.Unlock()
	for range 20 {
		r.ForgetPINs()
	}
	for range 16 {
		<-done
	}
	r.user.checkWiped(t)
}

// consenting counts consents and answers them.
type consenting struct {
	scripted
	how   []Grant
	asked []ConfirmPrompt
}

func (c *consenting) Confirm(_ context.Context, p ConfirmPrompt) (Grant, error) {
	c.asked = append(c.asked, p)
	how := c.how[0]
	c.how = c.how[1:]
	if how == GrantNo {
		return how, ErrRefused
	}
	return how, nil
}

func TestGrants(t *testing.T) {
	id := plain("k", p256())
	login := func(user string) []byte { return loginData(t, id.Public, "session", user) }
	for name, tt := range map[string]struct {
		how   []Grant
		event func(r *testServer, clock *handClock)
		again int   // prompts after the event
		pids  []int // of the clients, one after the other; the last stays
	}{
		"once":            {how: []Grant{GrantOnce, GrantOnce}, again: 1},
		"minutes":         {how: []Grant{GrantMinutes}, event: func(_ *testServer, c *handClock) { c.forward(GrantTime - 1) }},
		"minutes over":    {how: []Grant{GrantMinutes, GrantOnce}, event: func(_ *testServer, c *handClock) { c.forward(GrantTime) }, again: 1},
		"until locked":    {how: []Grant{GrantUntilLocked}, event: func(_ *testServer, c *handClock) { c.forward(1000 * time.Hour) }},
		"PINs forgotten":  {how: []Grant{GrantUntilLocked, GrantOnce}, event: func(s *testServer, _ *handClock) { s.ForgetPINs() }, again: 1},
		"process":         {how: []Grant{GrantProcess}, pids: []int{os.Getpid()}},
		"another process": {how: []Grant{GrantProcess, GrantOnce}, pids: []int{os.Getpid(), os.Getppid()}, again: 1},
		"process unknown": {how: []Grant{GrantProcess, GrantOnce}, again: 1},
		"out of range":    {how: []Grant{GrantOnce, 77}, again: 1},
		"key removed":     {how: []Grant{GrantUntilLocked, GrantOnce}, event: func(s *testServer, _ *handClock) { s.removeOwn(newIdentity(id)); s.Reload() }, again: 1},
		"refused is kept": {how: []Grant{GrantOnce, GrantNo}, again: 1},
	} {
		t.Run(name, func(t *testing.T) {
			user := &consenting{how: append(tt.how, GrantOnce)}
			clock := newHandClock()
			told := 0
			s := serveOn(t, Config{Source: fixed(id), Prompter: user, Clock: clock, ConfirmAll: true, Remembering: func() { told++ }}, func(l net.Listener) net.Listener {
				return &peerListener{Listener: l, pids: tt.pids}
			})
			nc := s.dial(t)
			verify(t, id.Public, login("git"), ask(t, nc, signMessage(id.Public.Marshal(), login("git"), 0)))
			if want := tt.how[0] > GrantOnce && name != "process unknown"; want != (told == 1) {
				t.Errorf("told %d times that something is remembered", told)
			}
			if tt.event != nil {
				tt.event(s, clock)
			}
			before := len(user.asked)
			answer := ask(t, s.dial(t), signMessage(id.Public.Marshal(), login("git"), 0))
			if n := len(user.asked) - before; n != tt.again {
				t.Errorf("asked %d times, not %d", n, tt.again)
			}
			if refused := tt.again == 1 && (tt.how[1] == GrantNo || tt.how[1] > GrantUntilLocked); refused != bytes.Equal(answer, failed) {
				t.Errorf("answer %x", answer)
			}
			if u := user.asked[0].Use; u.Kind != UseLogin || u.User != "git" {
				t.Errorf("asked about %+v", u)
			}
			before = len(user.asked)
			verify(t, id.Public, login("root"), ask(t, s.dial(t), signMessage(id.Public.Marshal(), login("root"), 0)))
			if len(user.asked)-before != 1 {
				t.Error("consent for one login is taken for another")
			}
		})
	}
}

// peerListener's connections are from processes that the test chooses.
type peerListener struct {
	net.Listener
	pids []int
}

type peerConn struct {
	net.Conn
	pid int
}

func (c peerConn) Peer() (pid, uid int) { return c.pid, os.Getuid() }

func (l *peerListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil || len(l.pids) == 0 {
		return nc, err
	}
	pid := l.pids[0]
	if len(l.pids) > 1 {
		l.pids = l.pids[1:]
	}
	return peerConn{nc, pid}, nil
}

// loginData is what ssh has signed to log in.
func loginData(t *testing.T, key ssh.PublicKey, session, user string) []byte {
	t.Helper()
	data := ssh.Marshal(signedUserauth{
		SessionID: []byte(session), Number: msgUserauthRequest, User: user, Service: serviceConnection,
		Method: methodPublicKey, HasSig: 1, Algorithm: key.Type(), Key: key.Marshal(),
	})
	if _, err := parseUserauth(data, key); err != nil {
		t.Fatal(err)
	}
	return data
}

// forgetful has all PINs and consent forgotten while it asks.
type forgetful struct {
	consenting
	forget func() int
}

func (f *forgetful) Confirm(ctx context.Context, p ConfirmPrompt) (Grant, error) {
	f.forget()
	return f.consenting.Confirm(ctx, p)
}

// TestConsentForgottenMeanwhile: as with PINs, a consent that was asked for
// before all were forgotten holds for this once.
func TestConsentForgottenMeanwhile(t *testing.T) {
	id := plain("k", p256())
	user := &forgetful{consenting: consenting{how: []Grant{GrantUntilLocked, GrantUntilLocked}}}
	s := serve(t, Config{Source: fixed(id), Prompter: user, ConfirmAll: true})
	user.forget = s.ForgetPINs
	for range 2 {
		verify(t, id.Public, nil, ask(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0)))
	}
	if len(user.asked) != 2 {
		t.Errorf("asked %d times", len(user.asked))
	}
}

// TestRememberedSetsNoAlarms: using a PIN that is remembered leaves the clock
// alone.
func TestRememberedSetsNoAlarms(t *testing.T) {
	r := remember(t, time.Hour)
	r.sign(t)
	before := len(r.clock.set)
	for range 5 {
		r.sign(t)
	}
	if n := len(r.clock.set) - before; n != 0 || r.clock.pending() != 1 {
		t.Errorf("%d alarms were set, %d are pending", n, r.clock.pending())
	}
}
