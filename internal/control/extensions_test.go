package control

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/consent"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
	"github.com/tpm-agent/tpm-agent/internal/wire"

	sshagent "golang.org/x/crypto/ssh/agent"
)

// pinKey is a key with a PIN, or without one if pin is empty. It accepts some
// wrong PINs, and then none for a minute.
type pinKey struct {
	crypto.Signer
	pin string

	mu    sync.Mutex
	left  int
	tried []string
}

func (k *pinKey) AuthRequired() bool { return k.pin != "" }

func (k *pinKey) Sign(_ context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tried = append(k.tried, string(auth))
	switch {
	case k.pin == "" || k.pin == string(auth) && k.left > 0:
		return k.Signer.Sign(rand.Reader, digest, opts)
	case k.left == 0:
		return nil, &consent.LockedOutError{Wait: time.Minute}
	}
	k.left--
	return nil, fmt.Errorf("signing: %w", &consent.WrongPINError{Left: k.left})
}

func (k *pinKey) attempts() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.tried)
}

// pinned returns an identity whose PIN is 1234.
func pinned() (agent.Identity, *pinKey) {
	k := &pinKey{Signer: sshtest.P256(), pin: "1234", left: 32}
	return agent.Identity{Public: sshtest.PublicOf(k.Signer), Name: "pinned.tpm", Comment: "pinned@test", Key: k}, k
}

// unpinned returns an identity without a PIN.
func unpinned(name string, s crypto.Signer) agent.Identity {
	return agent.Identity{Public: sshtest.PublicOf(s), Name: name, Comment: name + "@test", Key: &pinKey{Signer: s}}
}

// keyFiles is a ReadKeyFile for three contents.
func keyFiles(name, comment string, content []byte) (agent.Identity, error) {
	k := new(pinKey)
	switch string(content) {
	case "pin":
		k = &pinKey{Signer: sshtest.P384(), pin: "1234", left: 32}
	case "p256":
		k.Signer = sshtest.P256()
	case "rsa":
		k.Signer = sshtest.RSA2048()
	default:
		return agent.Identity{}, errors.New("not a key file")
	}
	return agent.Identity{Public: sshtest.PublicOf(k.Signer), Name: name, Comment: comment, Key: k}, nil
}

// typist is a Prompter that types PINs one after the other.
type typist struct {
	mu    sync.Mutex
	pins  []string
	asked int
}

func (u *typist) AuthValue(context.Context, ask.AuthPrompt) ([]byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked++
	if len(u.pins) == 0 {
		return nil, ask.ErrRefused
	}
	pin := []byte(u.pins[0])
	u.pins = u.pins[1:]
	return pin, nil
}

func (u *typist) prompts() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked
}

func (*typist) Confirm(context.Context, ask.ConfirmPrompt) (ask.Grant, error) {
	return ask.GrantNo, errors.New("no test asks for consent")
}
func (*typist) LastTry(context.Context, ask.AuthPrompt) error { return nil }
func (*typist) Inform(context.Context, ask.Notice)            {}

type source struct{ set *agent.Set }

func (s source) Identities() *agent.Set { return s.set }

func fixed(ids ...agent.Identity) []agent.Source { return []agent.Source{source{agent.NewSet(ids)}} }

// testAgent is an agent with the extensions, on a socket of its own.
type testAgent struct {
	keyring *agent.Keyring
	path    string
	log     *sshtest.Log
}

func (a *testAgent) dial(t *testing.T) net.Conn {
	t.Helper()
	return sshtest.DialUnix(t, a.path)
}

func (a *testAgent) client(t *testing.T) sshagent.ExtendedAgent {
	t.Helper()
	return sshagent.NewClient(a.dial(t))
}

// localListener accepts connections that are known to be from this machine, or
// not, as those of package socket are.
type localListener struct {
	net.Listener
	local bool
}

type localConn struct {
	net.Conn
	local bool
}

func (c localConn) Local() bool { return c.local }

func (l localListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return localConn{nc, l.local}, nil
}

// serveLocal serves clients that are processes of this machine.
func serveLocal(t *testing.T, c agent.Config) *testAgent {
	t.Helper()
	return serveOn(t, c, func(l net.Listener) net.Listener { return localListener{l, true} })
}

func serveOn(t *testing.T, c agent.Config, kind func(net.Listener) net.Listener) *testAgent {
	t.Helper()
	a := &testAgent{path: filepath.Join(t.TempDir(), "s"), log: new(sshtest.Log)}
	c.Log = slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.keyring = agent.NewKeyring(c)
	l, err := net.Listen("unix", a.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- agent.New(a.keyring, Extensions(a.keyring, keyFiles)).Serve(ctx, kind(l)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return a
}

func wantAnswer(t *testing.T, nc net.Conn, message, want []byte) {
	t.Helper()
	if got := sshtest.Exchange(t, nc, message); !bytes.Equal(got, want) {
		t.Errorf("request %.40q: got %.40x, want %x", message, got, want)
	}
}

func wantKeys(t *testing.T, nc net.Conn, want int) {
	t.Helper()
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != want {
		t.Errorf("%d keys are listed, want %d", n, want)
	}
}

func lockMessage(password string) []byte {
	return sshtest.Message(wire.MsgLock, password)
}

func bindMessage(forwarding bool) []byte {
	return sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), "id", forwarding))
}

func queryMessage() []byte { return sshtest.Message(wire.MsgExtension, "query") }

func unlockWith(pin string, id agent.Identity, ttl time.Duration) []byte {
	return unlockRequest(id.Public.Marshal(), []byte(pin), ttl)
}

func toHost(user, name string, key ssh.Signer) restrict.Hop {
	return restrict.Hop{User: user, Host: name, Keys: []restrict.HostKey{{Key: key.PublicKey()}}}
}

// everyRequest returns one request of each kind, about id.
func everyRequest(id agent.Identity) map[string][]byte {
	return map[string][]byte{
		extAddKeyFile: (&keyFileRequest{Name: "k", Content: []byte("rsa")}).marshal(),
		extKeyStatus:  statusRequest(id.Public.Marshal()),
		extUnlockKey:  unlockWith("1234", id, 0),
		extForgetPINs: forgetRequest(),
		extRefusals:   refusalsRequest(),
		extHeldKeys:   heldRequest(0),
	}
}

// TestOwnerOnly checks that only processes of this machine get answers, that a
// forwarded connection gets none, and that a locked agent does no more than
// forget PINs.
func TestOwnerOnly(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		kind  func(net.Listener) net.Listener
		bind  []byte // sent first; nil: nothing
		owner bool
	}{
		"local":             {func(l net.Listener) net.Listener { return localListener{l, true} }, nil, true},
		"no descriptor":     {func(l net.Listener) net.Listener { return localListener{l, false} }, nil, false},
		"unknown":           {func(l net.Listener) net.Listener { return l }, nil, false},
		"bound to a login":  {func(l net.Listener) net.Listener { return localListener{l, true} }, bindMessage(false), false},
		"forwarded":         {func(l net.Listener) net.Listener { return localListener{l, true} }, bindMessage(true), false},
		"binding failed":    {func(l net.Listener) net.Listener { return localListener{l, true} }, sshtest.Extension(restrict.ExtSessionBind, nil), false},
		"remote, forwarded": {func(l net.Listener) net.Listener { return localListener{l, false} }, bindMessage(true), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, key := pinned()
			nc := serveOn(t, agent.Config{Sources: fixed(id)}, test.kind).dial(t)
			if test.bind != nil {
				sshtest.Exchange(t, nc, test.bind)
			}
			named := string(sshtest.Exchange(t, nc, queryMessage()))
			requests := everyRequest(id)
			for name, request := range requests {
				if strings.Contains(named, name) != test.owner {
					t.Errorf("query names %s: %t", name, !test.owner)
				}
				if answered := !bytes.Equal(sshtest.Exchange(t, nc, request), sshtest.Failed); answered != test.owner {
					t.Errorf("%s is answered: %t", name, answered)
				}
			}
			if !test.owner && len(key.attempts()) > 0 {
				t.Errorf("tried %q", key.attempts())
			}
			tried := len(key.attempts())
			wantAnswer(t, nc, lockMessage("x"), sshtest.Succeeded)
			for name, request := range requests {
				answered := !bytes.Equal(sshtest.Exchange(t, nc, request), sshtest.Failed)
				if answered != (test.owner && name == extForgetPINs) {
					t.Errorf("the locked agent answers %s: %t", name, answered)
				}
			}
			if len(key.attempts()) != tried {
				t.Errorf("a locked agent tried %q", key.attempts()[tried:])
			}
		})
	}
}

// TestMalformed checks that requests are refused if they end early, or have
// anything in them or behind them that the agent does not know.
func TestMalformed(t *testing.T) {
	t.Parallel()
	id, key := pinned()
	a := serveLocal(t, agent.Config{Sources: fixed(id)})
	nc := a.dial(t)
	withText := func(name, text string) []byte {
		m := wire.AppendString(wire.AppendString([]byte{wire.MsgExtension}, name), text)
		if name == extUnlockKey {
			m = wire.AppendString(m, "1234")
		}
		return m
	}
	for name, request := range everyRequest(id) {
		for problem, m := range map[string][]byte{
			"a byte":          append(bytes.Clone(request), 0),
			"an empty string": wire.AppendString(bytes.Clone(request), ""),
			"a string":        wire.AppendString(bytes.Clone(request), "more"),
			"no JSON":         withText(name, "no JSON"),
			"half an object":  withText(name, "{"),
			"an array":        withText(name, "[]"),
			"an unknown name": withText(name, `{"Unknown":1}`),
			"a wrong type":    withText(name, `{"Name":{},"Blob":{},"First":{}}`),
			"two objects":     withText(name, "{}{}"),
			"a bracket":       withText(name, "{}]"),
		} {
			if got := sshtest.Exchange(t, nc, m); !bytes.Equal(got, sshtest.Failed) {
				t.Errorf("%s with %s: got %q", name, problem, got)
			}
		}
		for i := 1 + 4 + len(name); i < len(request); i++ {
			if got := sshtest.Exchange(t, nc, request[:i]); !bytes.Equal(got, sshtest.Failed) {
				t.Errorf("the first %d bytes of %s: got %q", i, name, got)
			}
		}
	}
	if len(key.attempts()) > 0 {
		t.Errorf("tried %q", key.attempts())
	}
	wantKeys(t, nc, 1)
	if a.log.Count("1234") > 0 {
		t.Error("a PIN is in the log")
	}
}

// TestAddKeyFile checks that a key file and its certificates are offered under
// the constraints of the request, and that their names need not be UTF-8.
func TestAddKeyFile(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	a := serveLocal(t, agent.Config{Sources: fixed(), Clock: clock})
	nc := a.dial(t)
	seconds := uint32(60)
	m := keyFileRequest{
		Name: "/home/me/.ssh/id_\xe9.tpm", Comment: "m\xe9@here", Content: []byte("p256"),
		Certificates: []*ssh.Certificate{sshtest.CertFor(sshtest.P256()), sshtest.CertFor(sshtest.P256(), func(c *ssh.Certificate) { c.KeyId = "another" })},
		Lifetime:     &seconds,
		Destinations: []restrict.Destination{{To: toHost("", "a", sshtest.HostA())}},
	}
	if err := parseKeyFileAnswer(sshtest.Exchange(t, nc, m.marshal())); err != nil {
		t.Fatal(err)
	}
	answer := sshtest.Exchange(t, nc, sshtest.ListThem)
	if n := sshtest.CountListed(t, answer); n != 3 || bytes.Count(answer, []byte("m\xe9@here")) != 3 {
		t.Errorf("%d keys are listed, want the key and two certificates", n)
	}
	if !strings.Contains(a.log.String(), `/home/me/.ssh/id_\xe9.tpm`) {
		t.Error("the log does not name the file")
	}
	for _, pub := range []ssh.PublicKey{sshtest.PublicOf(sshtest.P256()), m.Certificates[0], m.Certificates[1]} {
		wantAnswer(t, nc, sshtest.SignMessage(pub.Marshal(), []byte("data"), 0), sshtest.Failed)
		atA := a.dial(t)
		wantAnswer(t, atA, bindMessage(false), sshtest.Succeeded)
		data := sshtest.Login(pub, "id", "me", nil)
		sshtest.VerifyAnswer(t, sshtest.PublicOf(sshtest.P256()), data, sshtest.Exchange(t, atA, sshtest.SignMessage(pub.Marshal(), data, 0)))
	}
	clock.Forward(time.Minute)
	wantKeys(t, nc, 0)
}

// TestAddKeyFileWithPINLife checks that the life of a PIN that came with the key
// counts, rather than the agent's default.
func TestAddKeyFileWithPINLife(t *testing.T) {
	t.Parallel()
	key := sshtest.PublicOf(sshtest.P384())
	life := func(d time.Duration) *time.Duration { return &d }
	for name, test := range map[string]struct {
		life  *time.Duration
		after time.Duration // the second use
		asked int           // for the second use
	}{
		"default":          {nil, time.Hour - 1, 0},
		"default is over":  {nil, time.Hour, 1},
		"off":              {life(0), 0, 1},
		"a minute":         {life(time.Minute), time.Minute - 1, 0},
		"a minute is over": {life(time.Minute), time.Minute, 1},
		"forever":          {life(restrict.Forever), 1000 * time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock, user := sshtest.NewClock(), &typist{pins: []string{"1234", "1234"}}
			nc := serveLocal(t, agent.Config{
				Sources: fixed(), Clock: clock, Prompter: user,
				PINLife: func(string, string) time.Duration { return time.Hour },
			}).dial(t)
			m := keyFileRequest{Name: "k", Content: []byte("pin"), PINLife: test.life}
			if err := parseKeyFileAnswer(sshtest.Exchange(t, nc, m.marshal())); err != nil {
				t.Fatal(err)
			}
			for i, want := range []int{1, 1 + test.asked} {
				sshtest.VerifyAnswer(t, key, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(key.Marshal(), nil, 0)))
				if n := user.prompts(); n != want {
					t.Errorf("asked %d times by use %d, want %d", n, i, want)
				}
				clock.Forward(test.after)
			}
		})
	}
}

// TestPINLifeIsRoundedUp checks that the life of a PIN is sent in whole seconds,
// and that one that is not over does not become 0.
func TestPINLifeIsRoundedUp(t *testing.T) {
	t.Parallel()
	for life, want := range map[time.Duration]time.Duration{
		0: 0, -1: 0, 1: time.Second, time.Second: time.Second, time.Second + 1: 2 * time.Second,
		restrict.Forever: restrict.Forever, 1 << 62: restrict.Forever,
	} {
		c, err := restrict.ParseConstraints((&keyFileRequest{PINLife: &life}).constraints())
		if err != nil || c.PINLife == nil || *c.PINLife != want {
			t.Errorf("%v is sent as %+v, %v, want %v", life, c, err, want)
		}
	}
}

// TestUnlockWithoutPINLife checks that a PIN that is given before it is needed is
// remembered, even if the key was added with a PIN life of 0.
func TestUnlockWithoutPINLife(t *testing.T) {
	t.Parallel()
	nc := serveLocal(t, agent.Config{Sources: fixed()}).dial(t)
	m := keyFileRequest{Name: "k", Content: []byte("pin"), PINLife: new(time.Duration)}
	if err := parseKeyFileAnswer(sshtest.Exchange(t, nc, m.marshal())); err != nil {
		t.Fatal(err)
	}
	key := sshtest.PublicOf(sshtest.P384())
	life, err := parseUnlockAnswer(sshtest.Exchange(t, nc, unlockRequest(key.Marshal(), []byte("1234"), 0)))
	if err != nil || life != restrict.Forever {
		t.Errorf("remembered for %v, %v", life, err)
	}
	sshtest.VerifyAnswer(t, key, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(key.Marshal(), nil, 0)))
}

// TestAddKeyFileRefused checks that the client is told why a key is not added.
func TestAddKeyFileRefused(t *testing.T) {
	t.Parallel()
	good := keyFileRequest{Name: "k", Content: []byte("p256")}
	file := func(change func(*keyFile)) []byte {
		m := keyFile{Name: []byte("k"), Content: []byte("p256")}
		change(&m)
		return newRequest(extAddKeyFile, m, nil)
	}
	limits := func(b ...byte) []byte { return file(func(m *keyFile) { m.Constraints = b }) }
	life := []byte{restrict.ConstrainLifetime, 0, 0, 0, 1}
	pinLife := func(seconds ...byte) []byte {
		return wire.AppendString(wire.AppendString([]byte{restrict.ConstrainExtension}, "pin-life@tpm-agent.github.io"), string(seconds))
	}
	a := serveLocal(t, agent.Config{Sources: fixed()})
	nc := a.dial(t)
	for problem, m := range map[string][]byte{
		"not a key file":  file(func(m *keyFile) { m.Content = nil }),
		"not for the key": file(func(m *keyFile) { m.Certificates = [][]byte{sshtest.CertFor(sshtest.RSA2048()).Marshal()} }),
		"a certificate":   file(func(m *keyFile) { m.Certificates = [][]byte{sshtest.PublicOf(sshtest.P256()).Marshal()} }),
		"a certificate:":  file(func(m *keyFile) { m.Certificates = [][]byte{[]byte("damaged")} }),
		"unknown":         limits(99),
		"inside a field":  limits(life[:3]...),
		"two lifetimes":   limits(slices.Concat(life, life)...),
		"two lives":       limits(slices.Concat(pinLife(0, 0, 0, 1), pinLife(0, 0, 0, 1))...),
		"3 bytes":         limits(pinLife(0, 0, 1)...),
	} {
		if err := parseKeyFileAnswer(sshtest.Exchange(t, nc, m)); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("got %v, want %q", err, problem)
		}
	}
	long := limits(wire.AppendString([]byte{restrict.ConstrainExtension}, strings.Repeat("\x01", 100_000))...)
	if answer := sshtest.Exchange(t, nc, long); len(answer) > wire.MaxMessage || parseKeyFileAnswer(answer) == nil {
		t.Errorf("an answer of %d bytes", len(answer))
	}
	wantKeys(t, nc, 0)
	wantAnswer(t, nc, lockMessage("p"), sshtest.Succeeded)
	if err := parseKeyFileAnswer(sshtest.Exchange(t, nc, good.marshal())); !errors.Is(err, errNoKeyFiles) {
		t.Errorf("a locked agent answers %v", err)
	}
}

// TestUnlock checks what becomes of PINs that are given before they are needed.
func TestUnlock(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	id, key := pinned()
	free := unpinned("free", sshtest.P384())
	a := serveLocal(t, agent.Config{Sources: fixed(id, free), Clock: clock})
	nc := a.dial(t)
	give := func(pin string, id agent.Identity, ttl time.Duration) (time.Duration, error) {
		t.Helper()
		return parseUnlockAnswer(sshtest.Exchange(t, nc, unlockWith(pin, id, ttl)))
	}
	status := func(id agent.Identity) keyStatus {
		t.Helper()
		st, err := parseStatusAnswer(sshtest.Exchange(t, nc, statusRequest(id.Public.Marshal())))
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	sign := sshtest.SignMessage(id.Public.Marshal(), nil, 0)

	if st := status(id); st != (keyStatus{NeedsPIN: true, TriesLeft: -1}) {
		t.Errorf("at first: %+v", st)
	}
	var wrong *consent.WrongPINError
	if _, err := give("4321", id, 0); !errors.As(err, &wrong) || wrong.Left != 31 {
		t.Errorf("a wrong PIN: %v", err)
	}
	if st := status(id); st != (keyStatus{NeedsPIN: true, TriesLeft: 31}) {
		t.Errorf("after a wrong PIN: %+v", st)
	}
	wantAnswer(t, nc, sign, sshtest.Failed)
	if _, err := give("", id, 0); err == nil || errors.Is(err, consent.ErrNoPIN) {
		t.Errorf("an empty PIN: %v", err)
	}
	if life, err := give("1234", id, time.Minute); life != time.Minute || err != nil {
		t.Fatalf("remembered for %v, %v", life, err)
	}
	if st := status(id); !st.Remembered {
		t.Errorf("after the right PIN: %+v", st)
	}
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, sign))
	clock.Forward(time.Minute)
	wantAnswer(t, nc, sign, sshtest.Failed)
	if life, err := give("1234", id, 0); life != restrict.Forever || err != nil {
		t.Fatalf("remembered for %v, %v", life, err)
	}
	clock.Forward(10_000 * time.Hour)
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, sign))
	if n, err := parseForgetAnswer(sshtest.Exchange(t, nc, forgetRequest())); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	wantAnswer(t, nc, sign, sshtest.Failed)
	if got := key.attempts(); !slices.Equal(got, []string{"4321", "1234", "1234", "1234", "1234"}) {
		t.Errorf("tried %q", got)
	}

	if _, err := give("1234", free, 0); !errors.Is(err, consent.ErrNoPIN) {
		t.Errorf("a key without a PIN: %v", err)
	}
	if st := status(free); st.NeedsPIN {
		t.Errorf("a key without a PIN: %+v", st)
	}
	if _, err := give("1234", unpinned("x", sshtest.P521()), 0); !errors.Is(err, agent.ErrNoKey) {
		t.Errorf("an unknown key: %v", err)
	}
	if _, err := parseStatusAnswer(sshtest.Exchange(t, nc, statusRequest([]byte("x")))); !errors.Is(err, agent.ErrNoKey) {
		t.Errorf("an unknown key: %v", err)
	}
	if a.log.Count("1234") > 0 || a.log.Count("4321") > 0 {
		t.Error("a PIN is in the log")
	}
}

// TestUnlockLockedOut checks that the owner is told about a lockout, and for how
// long it lasts.
func TestUnlockLockedOut(t *testing.T) {
	t.Parallel()
	id, key := pinned()
	key.left = 1
	nc := serveLocal(t, agent.Config{Sources: fixed(id)}).dial(t)
	var wrong *consent.WrongPINError
	if _, err := parseUnlockAnswer(sshtest.Exchange(t, nc, unlockWith("4321", id, 0))); !errors.As(err, &wrong) || wrong.Left != 0 {
		t.Errorf("the last try: %v", err)
	}
	var locked *consent.LockedOutError
	if _, err := parseUnlockAnswer(sshtest.Exchange(t, nc, unlockWith("1234", id, 0))); !errors.As(err, &locked) || locked.Wait != time.Minute {
		t.Errorf("after the last try: %v", err)
	}
}

// openDialog is a Prompter whose dialogs stay open until they are taken away.
type openDialog struct {
	typist
	open, closed chan struct{}
}

func (d *openDialog) AuthValue(ctx context.Context, _ ask.AuthPrompt) ([]byte, error) {
	d.open <- struct{}{}
	<-ctx.Done()
	d.closed <- struct{}{}
	return nil, ctx.Err()
}

// TestUnlockAnswersDialog checks that a PIN that is given while a dialog asks for
// it closes the dialog and answers the request behind it.
func TestUnlockAnswersDialog(t *testing.T) {
	t.Parallel()
	user := &openDialog{open: make(chan struct{}), closed: make(chan struct{})}
	id, _ := pinned()
	a := serveLocal(t, agent.Config{Sources: fixed(id), Prompter: user})
	signing, unlocking := a.dial(t), a.dial(t)
	sshtest.Send(t, signing, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	<-user.open
	sshtest.Send(t, unlocking, unlockWith("1234", id, 0))
	<-user.closed
	if _, err := parseUnlockAnswer(sshtest.Recv(t, unlocking)); err != nil {
		t.Fatal(err)
	}
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Recv(t, signing))
}

// TestRefusals checks that the reasons of refusals are told, and that they fit
// into one answer whatever is in them.
func TestRefusals(t *testing.T) {
	t.Parallel()
	id, _ := pinned()
	a := serveLocal(t, agent.Config{Sources: fixed(id), Prompter: &typist{pins: []string{"1", "2", "3"}}})
	nc := a.dial(t)
	told := func() []refusal.Record {
		t.Helper()
		all, err := parseRefusals(sshtest.Exchange(t, nc, refusalsRequest()))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if got := told(); len(got) != 0 {
		t.Errorf("at first: %+v", got)
	}
	wantAnswer(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0), sshtest.Failed)
	wantAnswer(t, nc, sshtest.SignMessage([]byte("no key\x00"), nil, 0), sshtest.Failed)
	got := told()
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	if got[0].Cause != string(refusal.WrongAuth) || got[0].Key != id.Name || got[0].Request != "sign" || got[0].Time.IsZero() ||
		got[1].Cause != string(refusal.UnknownKey) || got[1].Fingerprint == "" {
		t.Errorf("%+v", got)
	}
	unknown := &agent.Client{Peer: peer.Peer{PID: -1, UID: -1}}
	for _, text := range []string{"\x00\xff", "<", "\"", "é"} {
		long := strings.Repeat(text, 50_000)
		for range 100 {
			a.keyring.RefuseMalformed(unknown, long, errors.New(long))
		}
		if got := told(); len(got) == 0 {
			t.Errorf("no refusals are told when they are full of %q", text)
		}
	}
	detail := strings.Repeat("a way to ask, and why it was passed over; ", 20)
	a.keyring.RefuseMalformed(unknown, "sign", errors.New(detail))
	if got := told(); got[len(got)-1].Detail != detail {
		t.Errorf("the latest refusal is %+v", got[len(got)-1])
	}
}

// heldBy asks for all pages of held keys.
func heldBy(t *testing.T, nc net.Conn) (all []agent.Held, answers int) {
	t.Helper()
	for next := 0; ; answers++ {
		some, more, err := parseHeld(sshtest.Exchange(t, nc, heldRequest(next)))
		if err != nil || more != 0 && more <= next {
			t.Fatal(next, more, err)
		}
		if all = append(all, some...); more == 0 {
			return all, answers + 1
		}
		next = more
	}
}

func add(t *testing.T, a *testAgent, key sshagent.AddedKey) {
	t.Helper()
	if err := a.client(t).Add(key); err != nil {
		t.Fatal(err)
	}
}

// TestHeldKeys checks what is told about each kind of key, and as time passes.
func TestHeldKeys(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	id, _ := pinned()
	up := serveOn(t, agent.Config{Sources: fixed()}, func(l net.Listener) net.Listener { return l })
	add(t, up, sshagent.AddedKey{PrivateKey: sshtest.NewECDSA(elliptic.P256()), Comment: "far"})
	a := serveLocal(t, agent.Config{Sources: fixed(id), Clock: clock, Upstreams: []upstream.Agent{{
		Name: "up", Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", up.path) },
	}}})
	nc := a.dial(t)
	add(t, a, sshagent.AddedKey{PrivateKey: sshtest.NewECDSA(elliptic.P256()), Comment: "soft", ConfirmBeforeUse: true})
	hour := uint32(3600)
	file := keyFileRequest{Name: "/there", Comment: "added", Content: []byte("rsa"), Lifetime: &hour, Confirm: true, Destinations: []restrict.Destination{
		{From: toHost("", "a", sshtest.HostA()), To: toHost("u", "b", sshtest.HostD())},
	}}
	if err := parseKeyFileAnswer(sshtest.Exchange(t, nc, file.marshal())); err != nil {
		t.Fatal(err)
	}
	if _, err := parseUnlockAnswer(sshtest.Exchange(t, nc, unlockWith("1234", id, time.Minute))); err != nil {
		t.Fatal(err)
	}
	clock.Forward(10 * time.Second)
	got, _ := heldBy(t, nc)
	listed, err := a.client(t).List()
	if err != nil || len(listed) != len(got) {
		t.Fatalf("%d are listed, %d held, %v", len(listed), len(got), err)
	}
	for i, k := range listed {
		if !bytes.Equal(got[i].Blob, k.Blob) || got[i].Comment != k.Comment {
			t.Errorf("%+v is listed as %v", got[i], k)
		}
		got[i].Blob = nil
	}
	want := []agent.Held{
		{Comment: id.Comment, Name: id.Name, Keeper: agent.InDirectory, PIN: 50 * time.Second},
		{Comment: "soft", Keeper: agent.InMemory, Confirm: true},
		{Comment: "added", Name: "/there", Keeper: agent.InKeyFile, Mortal: true, Lifetime: 3590 * time.Second, Confirm: true, Destinations: []string{"a>u@b"}},
		{Comment: "far", Name: "up", Keeper: agent.InUpstream},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	clock.Forward(time.Hour)
	got, _ = heldBy(t, nc)
	if len(got) != 3 || got[0].PIN != 0 || slices.ContainsFunc(got, func(h agent.Held) bool { return h.Mortal }) {
		t.Errorf("later: %+v", got)
	}
}

// TestHeldAndRemoved checks that a removed key is not held, and that all keys are
// to be confirmed if the agent was told so.
func TestHeldAndRemoved(t *testing.T) {
	t.Parallel()
	one, two := unpinned("one", sshtest.P256()), unpinned("two", sshtest.P384())
	nc := serveLocal(t, agent.Config{Sources: fixed(one, two), ConfirmAll: true}).dial(t)
	wantAnswer(t, nc, sshtest.RemoveMessage(one.Public.Marshal()), sshtest.Succeeded)
	if got, _ := heldBy(t, nc); len(got) != 1 || got[0].Comment != two.Comment || !got[0].Confirm {
		t.Errorf("%+v", got)
	}
}

// TestHeldPages checks that keys that do not fit into one answer are told in
// several, and that one that fits into none is left out.
func TestHeldPages(t *testing.T) {
	t.Parallel()
	var ids []agent.Identity
	for i := range 20 {
		size := 50_000
		if i == 7 {
			size = wire.MaxMessage
		}
		id := unpinned(strings.Repeat("x", size), sshtest.NewECDSA(elliptic.P256()))
		id.Comment = "c"
		ids = append(ids, id)
	}
	nc := serveLocal(t, agent.Config{Sources: fixed(ids...)}).dial(t)
	got, answers := heldBy(t, nc)
	if len(got) != len(ids)-1 || answers != 4 {
		t.Errorf("%d keys in %d answers", len(got), answers)
	}
	for _, first := range []int{len(ids), 1<<32 - 1} {
		if some, next, err := parseHeld(sshtest.Exchange(t, nc, heldRequest(first))); len(some) != 0 || next != 0 || err != nil {
			t.Errorf("from key %d: %d keys, %d, %v", first, len(some), next, err)
		}
	}
}

// answerOf returns an agent's answer to an extension.
func answerOf(name string, answer any) []byte {
	return encode(wire.AppendString([]byte{wire.MsgExtensionResponse}, name), answer, nil)
}

// TestUnlockAnswers checks that the outcomes of an unlock reach the command as
// the errors that they were.
func TestUnlockAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		answer unlocked
		want   error
	}{
		{unlocked{Outcome: unlockDone, Life: time.Hour}, nil},
		{unlocked{Outcome: unlockWrong, TriesLeft: 3}, &consent.WrongPINError{Left: 3}},
		{unlocked{Outcome: unlockWrong, TriesLeft: -1}, &consent.WrongPINError{Left: -1}},
		{unlocked{Outcome: unlockLockedOut, Wait: time.Minute}, &consent.LockedOutError{Wait: time.Minute}},
		{unlocked{Outcome: unlockLockedOut}, &consent.LockedOutError{}},
		{unlocked{Outcome: unlockNoPIN}, consent.ErrNoPIN},
		{unlocked{Outcome: unlockNoKey}, agent.ErrNoKey},
		{unlocked{Outcome: unlockFailed, Problem: "the TPM is on fire"}, errors.New("the TPM is on fire")},
	} {
		life, got := parseUnlockAnswer(answerOf(extUnlockKey, test.answer))
		if !reflect.DeepEqual(got, test.want) || life != test.answer.Life {
			t.Errorf("%+v: got %#v, %v", test.answer, got, life)
		}
	}
}

// parsers are the functions that read answers, by extension.
func parsers() map[string]func([]byte) error {
	return map[string]func([]byte) error{
		extAddKeyFile: parseKeyFileAnswer,
		extKeyStatus:  func(b []byte) error { _, err := parseStatusAnswer(b); return err },
		extUnlockKey:  func(b []byte) error { _, err := parseUnlockAnswer(b); return err },
		extForgetPINs: func(b []byte) error { _, err := parseForgetAnswer(b); return err },
		extRefusals:   func(b []byte) error { _, err := parseRefusals(b); return err },
		extHeldKeys:   func(b []byte) error { _, _, err := parseHeld(b); return err },
	}
}

// everyAnswer returns one answer of each kind.
func everyAnswer() map[string][]byte {
	held, err := json.Marshal(agent.Held{Comment: "c", Destinations: []string{"a>b"}})
	if err != nil {
		panic(err)
	}
	return map[string][]byte{
		extAddKeyFile: answerOf(extAddKeyFile, outcome{}),
		extKeyStatus:  answerOf(extKeyStatus, keyStatus{TriesLeft: 3}),
		extUnlockKey:  answerOf(extUnlockKey, unlocked{Outcome: unlockDone}),
		extForgetPINs: answerOf(extForgetPINs, forgottenPINs{1}),
		extRefusals:   answerOf(extRefusals, []refusal.Record{{Time: time.Unix(1, 0), Request: "sign", Chain: []string{"git", "ssh"}}}),
		extHeldKeys:   answerOf(extHeldKeys, heldKeys{Keys: []json.RawMessage{held}, Next: 7}),
	}
}

// TestDamagedAnswers checks that an answer is not accepted if it was cut, has
// something unknown in it or behind it, or answers a different request.
func TestDamagedAnswers(t *testing.T) {
	t.Parallel()
	whole := everyAnswer()
	for name, parse := range parsers() {
		if err := parse(whole[name]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i := range whole[name] {
			if parse(whole[name][:i]) == nil {
				t.Errorf("%s: the first %d bytes are accepted", name, i)
			}
		}
		inside := wire.AppendString([]byte{wire.MsgExtensionResponse}, name)
		for problem, b := range map[string][]byte{
			"a byte":          append(bytes.Clone(whole[name]), 0),
			"an empty string": wire.AppendString(bytes.Clone(whole[name]), ""),
			"an unknown name": wire.AppendString(bytes.Clone(inside), `{"Unknown":1}`),
			"two objects":     wire.AppendString(bytes.Clone(inside), "{}{}"),
			"no JSON":         wire.AppendString(bytes.Clone(inside), "x"),
			"success":         {wire.MsgSuccess},
			"the old failure": {wire.MsgExtensionFailure},
		} {
			if parse(b) == nil {
				t.Errorf("%s with %s is accepted", name, problem)
			}
		}
		want := ErrNotOwner
		if name == extAddKeyFile {
			want = errNoKeyFiles
		}
		if err := parse([]byte{wire.MsgFailure}); !errors.Is(err, want) {
			t.Errorf("%s: a failure is %v", name, err)
		}
		for other, b := range whole {
			if other != name && parse(b) == nil {
				t.Errorf("%s accepts the answer to %s", name, other)
			}
		}
	}
	unknown := answerOf(extHeldKeys, heldKeys{Keys: []json.RawMessage{json.RawMessage(`{"Unknown":1}`)}})
	if _, _, err := parseHeld(unknown); err == nil {
		t.Error("a held key with an unknown name in it is accepted")
	}
}

// FuzzRequests checks that no request makes the agent panic, and that all answers
// fit into a message and can be read.
func FuzzRequests(f *testing.F) {
	id, _ := pinned()
	for name, request := range everyRequest(id) {
		f.Add(request[1+4+len(name):])
	}
	f.Add(encode(nil, heldPage{-1}, nil))
	f.Add(encode(nil, keyFile{Name: []byte("k"), Content: []byte("pin"), Constraints: []byte{restrict.ConstrainConfirm}}, nil))
	f.Add(encode(nil, unlock{Blob: id.Public.Marshal(), TTL: -1}, []byte("1234")))
	k := agent.NewKeyring(agent.Config{Sources: fixed(id)})
	extensions := Extensions(k, keyFiles)
	f.Fuzz(func(t *testing.T, body []byte) {
		client := &agent.Client{Peer: peer.Peer{PID: -1, UID: -1}}
		for name, e := range extensions {
			answer, err := e.Answer(t.Context(), client, bytes.Clone(body))
			if err != nil {
				continue
			}
			message := append(wire.AppendString([]byte{wire.MsgExtensionResponse}, name), answer...)
			if len(message) > wire.MaxMessage {
				t.Errorf("%s: an answer of %d bytes", name, len(message))
			}
			if err := decodeAnswer(message, name, new(json.RawMessage)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// FuzzAnswers checks that no answer makes a command panic.
func FuzzAnswers(f *testing.F) {
	for _, answer := range everyAnswer() {
		f.Add(answer)
	}
	f.Add(answerOf(extUnlockKey, unlocked{Outcome: unlockWrong, TriesLeft: 2}))
	f.Fuzz(func(_ *testing.T, answer []byte) {
		for _, parse := range parsers() {
			parse(answer)
		}
	})
}
