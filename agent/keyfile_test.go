package agent

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// localListener's connections are local or not, as socket.Conn says it.
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

// keyFiles takes two contents for key files.
func keyFiles(name, comment string, content []byte) (Identity, error) {
	switch string(content) {
	case "pin":
		return Identity{Public: publicOf(p384()), Name: name, Comment: comment, Key: &softKey{Signer: p384(), pin: []byte("1234"), required: true}}, nil
	case "p256":
		return Identity{Public: publicOf(p256()), Name: name, Comment: comment, Key: &softKey{Signer: p256()}}, nil
	case "rsa":
		return Identity{Public: publicOf(rsa2k()), Name: name, Comment: comment, Key: &softKey{Signer: rsa2k()}}, nil
	}
	return Identity{}, errors.New("no key file of ours")
}

func serveLocal(t *testing.T, local bool, c Config) *testServer {
	t.Helper()
	c.KeyFile = keyFiles
	return serveOn(t, c, func(l net.Listener) net.Listener { return localListener{l, local} })
}

func TestAddKeyFile(t *testing.T) {
	clock := newHandClock()
	s := serveLocal(t, true, Config{Source: fixed(), Clock: clock})
	nc := s.dial(t)
	seconds := uint32(60)
	m := KeyFileRequest{
		Name: "/home/me/.ssh/id_ecdsa.tpm", Comment: "me@here", Content: []byte("p256"),
		Certificates: []*ssh.Certificate{certFor(p256()), certFor(p256(), func(c *ssh.Certificate) { c.KeyId = "another" })},
		Lifetime:     &seconds,
		Destinations: []Destination{direct(toHost("", "a", hostA()))},
	}
	if err := ParseKeyFileAnswer(ask(t, nc, m.Marshal())); err != nil {
		t.Fatal(err)
	}
	answer := ask(t, nc, listThem)
	if n := countListed(t, answer); n != 3 || bytes.Count(answer, []byte("me@here")) != 3 {
		t.Errorf("%d keys are listed, want the key and two certificates", n)
	}
	if !strings.Contains(s.log.String(), "/home/me/.ssh/id_ecdsa.tpm") {
		t.Error("the log does not name the file")
	}
	// The constraints are on each of them.
	data := []byte("data")
	for _, pub := range []ssh.PublicKey{publicOf(p256()), m.Certificates[0], m.Certificates[1]} {
		wantAnswer(t, nc, signMessage(pub.Marshal(), data, 0), failed)
		atA := s.dial(t)
		wantAnswer(t, atA, extension(extSessionBind, bindBody(hostA(), "sid", false)), succeeded)
		data := login(pub, "sid", "me", nil)
		verify(t, publicOf(p256()), data, ask(t, atA, signMessage(pub.Marshal(), data, 0)))
	}
	clock.forward(60e9)
	if n := countListed(t, ask(t, nc, listThem)); n != 0 {
		t.Errorf("%d keys are listed after their lifetime", n)
	}
}

func pinLife(seconds byte) []byte {
	return extensionConstraint(extPINLife, appendString(nil, string([]byte{0, 0, 0, seconds}))...)
}

// TestAddKeyFileWithPINLife: what was said when a key was added counts, and not
// what the agent was told of all keys.
func TestAddKeyFileWithPINLife(t *testing.T) {
	clock, user := newHandClock(), &scripted{answers: slices.Repeat([]string{"1234"}, 20)}
	s := serveLocal(t, true, Config{
		Source: fixed(), Clock: clock, Prompter: user,
		PINLife: func(string, string) time.Duration { return time.Hour },
	})
	nc := s.dial(t)
	key := publicOf(p384()).Marshal()
	sign := func() (asked int) {
		before := len(user.asked)
		verify(t, publicOf(p384()), nil, ask(t, nc, signMessage(key, nil, 0)))
		return len(user.asked) - before
	}
	life := func(d time.Duration) *time.Duration { return &d }
	for name, test := range map[string]struct {
		life  *time.Duration
		after time.Duration // the second use is
		asked int           // then
	}{
		"as the agent was told":      {nil, time.Hour - 1, 0},
		"as the agent was told, not": {nil, time.Hour, 1},
		"off":                        {life(0), 0, 1},
		"a minute":                   {life(time.Minute), time.Minute - 1, 0},
		"a minute, not":              {life(time.Minute), time.Minute, 1},
		"session":                    {life(Forever), 1000 * time.Hour, 0},
	} {
		m := KeyFileRequest{Name: "k", Content: []byte("pin"), PINLife: test.life}
		if err := ParseKeyFileAnswer(ask(t, nc, m.Marshal())); err != nil {
			t.Fatal(err)
		}
		first := sign()
		clock.forward(test.after)
		if again := sign(); first != 1 || again != test.asked {
			t.Errorf("%s: asked %d times, and %d times later", name, first, again)
		}
	}
	// To give the PIN ahead of use is to want it remembered.
	m := KeyFileRequest{Name: "k", Content: []byte("pin"), PINLife: life(0)}
	if err := ParseKeyFileAnswer(ask(t, nc, m.Marshal())); err != nil {
		t.Fatal(err)
	}
	got, err := ParseUnlockAnswer(ask(t, nc, (&UnlockRequest{Blob: key, PIN: []byte("1234")}).Marshal()))
	if err != nil || got != Forever || sign() != 0 {
		t.Errorf("remembered for %v, %v", got, err)
	}
	// Nothing else has a PIN.
	wantAnswer(t, nc, constrained(adding(p256(), nil), pinLife(9)), failed)
}

func TestAddKeyFileRefused(t *testing.T) {
	good := KeyFileRequest{Name: "k", Content: []byte("p256")}
	with := func(change func(*KeyFileRequest)) []byte {
		k := good
		change(&k)
		return k.Marshal()
	}
	s := serveLocal(t, true, Config{Source: fixed()})
	nc := s.dial(t)
	for problem, m := range map[string][]byte{
		"no key file of ours": with(func(k *KeyFileRequest) { k.Content = nil }),
		"not for the key":     with(func(k *KeyFileRequest) { k.Certificates = []*ssh.Certificate{certFor(rsa2k())} }),
		"not known":           append(good.Marshal(), 99),
		"inside a field":      good.Marshal()[:50],
		"two lives":           append(good.Marshal(), bytes.Repeat(pinLife(1), 2)...),
		"3 octets":            append(good.Marshal(), extensionConstraint(extPINLife, 0, 0, 0, 3, 0, 0, 1)...),
		"two lifetimes":       append(good.Marshal(), bytes.Repeat(lifetime(1), 2)...),
	} {
		if err := ParseKeyFileAnswer(ask(t, nc, m)); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("want %q, got %v", problem, err)
		}
	}
	if n := countListed(t, ask(t, nc, listThem)); n != 0 {
		t.Errorf("%d keys are listed", n)
	}
	wantAnswer(t, nc, lockMessage("p"), succeeded)
	if err := ParseKeyFileAnswer(ask(t, nc, good.Marshal())); !errors.Is(err, ErrNoKeyFiles) {
		t.Errorf("a locked agent answers %v", err)
	}
}

// TestAddKeyFileFromElsewhere: what may have come through a forwarding is
// refused, and not told that there is such a thing.
func TestAddKeyFileFromElsewhere(t *testing.T) {
	m := (&KeyFileRequest{Name: "k", Content: []byte("p256")}).Marshal()
	query := message(msgExtension, extQuery)
	refuses := func(nc net.Conn) {
		t.Helper()
		if err := ParseKeyFileAnswer(ask(t, nc, m)); !errors.Is(err, ErrNoKeyFiles) {
			t.Errorf("the answer is %v", err)
		}
		if strings.Contains(string(ask(t, nc, query)), extAddKeyFile) {
			t.Error("the extension is named")
		}
		if n := countListed(t, ask(t, nc, listThem)); n != 0 {
			t.Errorf("%d keys are listed", n)
		}
	}
	refuses(serveLocal(t, false, Config{Source: fixed()}).dial(t))
	refuses(serve(t, Config{Source: fixed(), KeyFile: keyFiles}).dial(t)) // cannot be asked
	nc := serveLocal(t, true, Config{Source: fixed()}).dial(t)
	if !strings.Contains(string(ask(t, nc, query)), extAddKeyFile) {
		t.Error("the extension is not named to a local client")
	}
	ask(t, nc, extension(extSessionBind, bindBody(hostA(), "sid", true)))
	refuses(nc)
	nc = serveLocal(t, true, Config{Source: fixed()}).dial(t)
	ask(t, nc, extension(extSessionBind, nil)) // a bind that fails is one of a remote session, too
	refuses(nc)
}

func TestParseKeyFileAnswer(t *testing.T) {
	for _, answer := range [][]byte{nil, {msgSuccess}, {28}, {29}, message(29, "other", ""), message(29, extAddKeyFile), append([]byte{29}, 255, 255, 255, 255)} {
		if err := ParseKeyFileAnswer(answer); err == nil || errors.Is(err, ErrNoKeyFiles) {
			t.Errorf("answer %x: %v", answer, err)
		}
	}
	if err := ParseKeyFileAnswer(message(29, extAddKeyFile, "")); err != nil {
		t.Error(err)
	}
}
