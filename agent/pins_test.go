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

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// remembering is an agent that remembers PINs, with a key that has one and a
// user who types it.
type remembering struct {
	*testServer
	id    Identity
	key   *softKey
	user  *scripted
	clock *sshtest.Clock
	src   *changing
	told  int // how often Config.Remembering was called
}

func remember(t *testing.T, life time.Duration, log slog.Handler) *remembering {
	id, key := locked("1234", 32, true)
	r := &remembering{id: id, key: key, user: &scripted{}, clock: sshtest.NewClock(), src: fixed(id)}
	r.user.answers = slices.Repeat([]string{"1234"}, 20)
	c := Config{
		Sources: []Source{r.src}, Prompter: r.user, Clock: r.clock,
		Remembering: func() { r.told++ },
		PINLife: func(name, print string) time.Duration {
			if name != id.Name || print != ssh.FingerprintSHA256(id.Public) {
				t.Errorf("asked for the life of %q, %s", name, print)
			}
			return life
		},
	}
	if log != nil {
		c.Log = slog.New(log)
	}
	r.testServer = serve(t, c)
	return r
}

// sign signs, and returns how often the user was asked.
func (r *remembering) sign(t *testing.T) (asked int) {
	t.Helper()
	before := len(r.user.asked)
	sshtest.VerifyAnswer(t, r.id.Public, nil, sshtest.Exchange(t, r.dial(t), sshtest.SignMessage(r.id.Public.Marshal(), nil, 0)))
	return len(r.user.asked) - before
}

func (r *remembering) held() int {
	if r.owner.PINLeft(&newIdentity(r.id).Identity) > 0 {
		return 1
	}
	return 0
}

// TestPINIsRemembered checks that a PIN is remembered for its time, and
// asked for again afterwards.
func TestPINIsRemembered(t *testing.T) {
	t.Parallel()
	r := remember(t, 15*time.Minute, nil)
	if n := r.sign(t); n != 1 {
		t.Fatalf("asked %d times", n)
	}
	r.clock.Forward(15*time.Minute - 1)
	if n := r.sign(t); n != 0 {
		t.Errorf("asked %d times while it is remembered", n)
	}
	r.clock.Forward(1)
	if n := r.sign(t); n != 1 {
		t.Errorf("asked %d times when the time was over", n)
	}
	r.user.checkWiped(t)
	if n := r.log.Count("PIN remembered"); n != 2 || r.told != 2 {
		t.Errorf("%d log lines, told %d times", n, r.told)
	}
}

// lockTaker is a log that takes each lock of the agent before it takes a line, as
// a log may wait for a reader who waits for the agent.
type lockTaker struct {
	slog.Handler
	take func()   // takes and releases the locks
	held []string // the lines that were logged under a lock
}

// locksOf returns a function that takes and releases the locks of an agent.
func locksOf(a *Agent, id Identity) func() {
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.owner.PINLeft(&newIdentity(id).Identity)
	}
}

func (l *lockTaker) Handle(_ context.Context, line slog.Record) error {
	free := make(chan struct{})
	go func() {
		defer close(free)
		l.take()
	}()
	if !within(time.Minute, free) {
		l.held = append(l.held, line.Message)
	}
	return nil
}

// TestLoggedWithoutLock checks that no lock is held while a line is logged about
// PINs, or about keys that are not listed.
func TestLoggedWithoutLock(t *testing.T) {
	t.Parallel()
	log := &lockTaker{Handler: slog.NewTextHandler(io.Discard, nil)}
	r := remember(t, restrict.Forever, log)
	log.take = locksOf(r.Agent, r.id)
	r.sign(t)
	r.key.mu.Lock()
	r.key.pin = []byte("4321") // so that the remembered PIN is forgotten
	r.key.mu.Unlock()
	r.user.answers = []string{"4321"}
	r.sign(t)
	r.ForgetPINs(nil)
	r.src.set.Store(NewSet(many(wire.MaxListed+1, "")))
	sshtest.Exchange(t, r.dial(t), sshtest.ListThem)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if len(log.held) > 0 {
		t.Errorf("logged under a lock: %q", log.held)
	}
}

// TestPINIsNotRemembered checks that a PIN is asked for each time if its
// life is 0.
func TestPINIsNotRemembered(t *testing.T) {
	t.Parallel()
	r := remember(t, 0, nil)
	if a, b := r.sign(t), r.sign(t); a != 1 || b != 1 || r.held() != 0 || r.told != 0 {
		t.Errorf("asked %d and %d times, %d held, told %d times", a, b, r.held(), r.told)
	}
}

// TestPINIsForgotten checks all events after which a PIN must be forgotten.
func TestPINIsForgotten(t *testing.T) {
	t.Parallel()
	for name, event := range map[string]func(t *testing.T, r *remembering){
		"ForgetPINs": func(t *testing.T, r *remembering) {
			if n := r.ForgetPINs(nil); n != 1 {
				t.Errorf("forgot %d", n)
			}
		},
		"Forget": func(_ *testing.T, r *remembering) { r.Forget() },
		"lock": func(t *testing.T, r *remembering) {
			wantAnswer(t, r.dial(t), lockMessage("x"), sshtest.Succeeded)
			if r.held() != 0 {
				t.Error("held while locked")
			}
			wantAnswer(t, r.dial(t), unlockMessage("x"), sshtest.Succeeded)
		},
		"key removed": func(t *testing.T, r *remembering) {
			wantAnswer(t, r.dial(t), sshtest.RemoveMessage(r.id.Public.Marshal()), sshtest.Succeeded)
			if r.held() != 0 {
				t.Error("held after the key was removed")
			}
			r.Reload()
		},
		"all removed": func(t *testing.T, r *remembering) {
			wantAnswer(t, r.dial(t), []byte{wire.MsgRemoveAllIdentities}, sshtest.Succeeded)
			if r.held() != 0 {
				t.Error("held after all keys were removed")
			}
			r.Reload()
		},
		"file gone, no requests": func(t *testing.T, r *remembering) {
			r.src.set.Store(NewSet(nil))
			r.clock.Forward(30 * time.Second)
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
			t.Parallel()
			r := remember(t, restrict.Forever, nil)
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

// TestWrongPINIsForgotten checks that a remembered PIN that has become wrong
// costs one try.
func TestWrongPINIsForgotten(t *testing.T) {
	t.Parallel()
	r := remember(t, restrict.Forever, nil)
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

// TestLockedMeanwhile checks that a PIN is not remembered if the agent was
// locked while the key tried it.
func TestLockedMeanwhile(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	key.begun, key.gate = make(chan struct{}), make(chan struct{})
	s := serve(t, Config{
		Sources: []Source{fixed(id)}, Prompter: &scripted{answers: []string{"1234"}},
		PINLife: func(string, string) time.Duration { return restrict.Forever },
	})
	nc := s.dial(t)
	sshtest.Send(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	<-key.begun
	wantAnswer(t, s.dial(t), lockMessage("x"), sshtest.Succeeded)
	close(key.gate)
	sshtest.Recv(t, nc)
	if err := s.owner.Wait(time.Minute); err != nil {
		t.Error(err)
	}
	if s.owner.PINLeft(&newIdentity(id).Identity) > 0 {
		t.Error("the PIN is remembered")
	}
}

// TestForgottenMeanwhile checks that a PIN is not remembered if all PINs
// were forgotten while the key tried it.
func TestForgottenMeanwhile(t *testing.T) {
	t.Parallel()
	r := remember(t, restrict.Forever, nil)
	r.key.begun, r.key.gate = make(chan struct{}), make(chan struct{})
	nc := r.dial(t)
	sshtest.Send(t, nc, sshtest.SignMessage(r.id.Public.Marshal(), nil, 0))
	<-r.key.begun
	r.ForgetPINs(nil)
	close(r.key.gate)
	sshtest.VerifyAnswer(t, r.id.Public, nil, sshtest.Recv(t, nc))
	if r.held() != 0 {
		t.Error("the PIN is remembered")
	}
}

// TestRememberedInParallel checks that many requests use a remembered PIN at
// once while it is forgotten again and again.
func TestRememberedInParallel(t *testing.T) {
	t.Parallel()
	r := remember(t, restrict.Forever, nil)
	r.sign(t)
	done := make(chan struct{})
	for range 16 {
		nc := r.dial(t)
		go func() {
			defer func() { done <- struct{}{} }()
			for range 20 {
				sshtest.VerifyAnswer(t, r.id.Public, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(r.id.Public.Marshal(), nil, 0)))
			}
		}()
	}
	r.user.mu.Lock()
	r.user.answers = slices.Repeat([]string{"1234"}, 1000)
	r.user.mu.Unlock()
	for range 20 {
		r.ForgetPINs(nil)
	}
	for range 16 {
		<-done
	}
	r.user.checkWiped(t)
}

// consenting answers prompts for consent and keeps them.
type consenting struct {
	scripted
	how   []ask.Grant
	asked []ask.ConfirmPrompt
}

func (c *consenting) Confirm(_ context.Context, p ask.ConfirmPrompt) (ask.Grant, error) {
	c.asked = append(c.asked, p)
	how := c.how[0]
	c.how = c.how[1:]
	if how == ask.GrantNo {
		return how, ask.ErrRefused
	}
	return how, nil
}

// TestGrants checks for how long consent holds, and for which use.
func TestGrants(t *testing.T) {
	t.Parallel()
	id := plain("k", sshtest.P256())
	login := func(user string) []byte { return loginData(t, id.Public, "session", user) }
	for name, tt := range map[string]struct {
		how   []ask.Grant
		event func(r *testServer, clock *sshtest.Clock)
		again int   // prompts after the event
		pids  []int // of the clients, in order; the last one is used again
	}{
		"once":               {how: []ask.Grant{ask.GrantOnce, ask.GrantOnce}, again: 1},
		"minutes":            {how: []ask.Grant{ask.GrantMinutes}, event: func(_ *testServer, c *sshtest.Clock) { c.Forward(ask.GrantTime - 1) }},
		"minutes over":       {how: []ask.Grant{ask.GrantMinutes, ask.GrantOnce}, event: func(_ *testServer, c *sshtest.Clock) { c.Forward(ask.GrantTime) }, again: 1},
		"until locked":       {how: []ask.Grant{ask.GrantUntilLocked}, event: func(_ *testServer, c *sshtest.Clock) { c.Forward(1000 * time.Hour) }},
		"PINs forgotten":     {how: []ask.Grant{ask.GrantUntilLocked, ask.GrantOnce}, event: func(s *testServer, _ *sshtest.Clock) { s.ForgetPINs(nil) }, again: 1},
		"process":            {how: []ask.Grant{ask.GrantProcess}, pids: []int{os.Getpid()}},
		"another process":    {how: []ask.Grant{ask.GrantProcess, ask.GrantOnce}, pids: []int{os.Getpid(), os.Getppid()}, again: 1},
		"process unknown":    {how: []ask.Grant{ask.GrantProcess, ask.GrantOnce}, again: 1},
		"out of range":       {how: []ask.Grant{ask.GrantOnce, 77}, again: 1},
		"key removed":        {how: []ask.Grant{ask.GrantUntilLocked, ask.GrantOnce}, event: func(s *testServer, _ *sshtest.Clock) { s.hide(newIdentity(id)); s.owner.Sweep(); s.Reload() }, again: 1},
		"refused afterwards": {how: []ask.Grant{ask.GrantOnce, ask.GrantNo}, again: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			user := &consenting{how: append(tt.how, ask.GrantOnce)}
			clock := sshtest.NewClock()
			told := 0
			s := serveOn(t, Config{Sources: []Source{fixed(id)}, Prompter: user, Clock: clock, ConfirmAll: true, Remembering: func() { told++ }}, func(l net.Listener) net.Listener {
				return &peerListener{Listener: l, pids: tt.pids}
			})
			nc := s.dial(t)
			sshtest.VerifyAnswer(t, id.Public, login("git"), sshtest.Exchange(t, nc, sshtest.SignMessage(id.Public.Marshal(), login("git"), 0)))
			if want := tt.how[0] > ask.GrantOnce && name != "process unknown"; want != (told == 1) {
				t.Errorf("told %d times that something is remembered", told)
			}
			if tt.event != nil {
				tt.event(s, clock)
			}
			before := len(user.asked)
			answer := sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), login("git"), 0))
			if n := len(user.asked) - before; n != tt.again {
				t.Errorf("asked %d times, not %d", n, tt.again)
			}
			if refused := tt.again == 1 && (tt.how[1] == ask.GrantNo || tt.how[1] > ask.GrantUntilLocked); refused != bytes.Equal(answer, sshtest.Failed) {
				t.Errorf("answer %x", answer)
			}
			if u := user.asked[0].Use; u.Kind != ask.UseLogin || u.User != "git" {
				t.Errorf("asked about %+v", u)
			}
			before = len(user.asked)
			sshtest.VerifyAnswer(t, id.Public, login("root"), sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), login("root"), 0)))
			if len(user.asked)-before != 1 {
				t.Error("consent for one login is taken for another")
			}
		})
	}
}

// peerListener accepts connections from processes that the test chooses.
type peerListener struct {
	net.Listener
	pids []int
}

type peerConn struct {
	net.Conn
	pid int
}

func (c peerConn) Peer() (pid, uid int, program string) { return c.pid, os.Getuid(), "test" }

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

// loginData returns what ssh has signed to log in.
func loginData(t *testing.T, key ssh.PublicKey, session, user string) []byte {
	t.Helper()
	return sshtest.Login(key, session, user, nil)
}

// forgetful forgets all PINs and consent while it asks for consent.
type forgetful struct {
	consenting
	forget func() int
}

func (f *forgetful) Confirm(ctx context.Context, p ask.ConfirmPrompt) (ask.Grant, error) {
	f.forget()
	return f.consenting.Confirm(ctx, p)
}

// TestConsentForgottenMeanwhile checks that consent holds only once if all
// consent was forgotten while the prompt was open.
func TestConsentForgottenMeanwhile(t *testing.T) {
	t.Parallel()
	id := plain("k", sshtest.P256())
	user := &forgetful{consenting: consenting{how: []ask.Grant{ask.GrantUntilLocked, ask.GrantUntilLocked}}}
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user, ConfirmAll: true})
	user.forget = func() int { return s.ForgetPINs(nil) }
	for range 2 {
		sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0)))
	}
	if len(user.asked) != 2 {
		t.Errorf("asked %d times", len(user.asked))
	}
}

// TestRememberedSetsNoAlarms checks that the use of a remembered PIN sets no
// alarms.
func TestRememberedSetsNoAlarms(t *testing.T) {
	t.Parallel()
	r := remember(t, time.Hour, nil)
	r.sign(t)
	before := len(r.clock.Set)
	for range 5 {
		r.sign(t)
	}
	if n := len(r.clock.Set) - before; n != 0 || r.clock.Pending() != 1 {
		t.Errorf("%d alarms were set, %d are pending", n, r.clock.Pending())
	}
}
