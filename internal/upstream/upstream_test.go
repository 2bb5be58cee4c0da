package upstream

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"

	client "golang.org/x/crypto/ssh/agent"
)

// piped returns an upstream in memory, for tests with a clock of their own. Each
// message is answered by answer, which may wait; nil closes the connection.
func piped(name string, answer func(message []byte) []byte) Agent {
	return Agent{Name: name, Dial: func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for {
				m, err := sshtest.TryRecv(theirs)
				if err != nil {
					return
				}
				b := answer(m)
				if b == nil {
					return
				}
				if _, err := theirs.Write(b); err != nil {
					return
				}
			}
		}()
		return ours, nil
	}}
}

// takes returns how long a list takes, and the comments in it.
func takes(t *testing.T, r *Relay) (time.Duration, string) {
	begun := time.Now()
	keys := r.List(t.Context())
	return time.Since(begun), names(keys)
}

// A hanging upstream does not answer while it is shut.
type hanging struct {
	mu   sync.Mutex
	cond *sync.Cond
	shut bool
}

func newHanging() *hanging {
	h := new(hanging)
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *hanging) set(shut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shut = shut
	h.cond.Broadcast()
}

func (h *hanging) answer(m []byte) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.shut {
		h.cond.Wait()
	}
	switch m[0] {
	case wire.MsgRequestIdentities:
		return listOf("blob", "key")
	case wire.MsgSignRequest:
		return wire.Frame([]byte{wire.MsgSignResponse, 1})
	}
	return wire.Success()
}

// TestBreaker checks how long clients wait for an upstream that does not answer.
func TestBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHanging()
		u, log := upstreamsOf(piped("up", h.answer))
		h.set(true)
		var wg sync.WaitGroup
		for _, c := range []struct{ at, want time.Duration }{
			{0, patience},
			{patience / 2, patience}, // also counts as the first timeout
			{patience + 1, 0},
			{patience + firstPause - 1, 0},
			{patience + firstPause, patience}, // one client tries again
			{patience + firstPause + 1, 0},
			{2*patience + firstPause - 1, 0},
			{2*patience + 3*firstPause - 1, 0},
			{2*patience + 3*firstPause, patience},
			{3*patience + 7*firstPause - 1, 0},
		} {
			wg.Go(func() {
				time.Sleep(c.at)
				if took, got := takes(t, newRelay(t, u)); took != c.want || got != "" {
					t.Errorf("after %v: %q in %v, want %v", c.at, got, took, c.want)
				}
			})
		}
		wg.Wait()
		for range 10 { // The pause does not grow forever.
			time.Sleep(longestPause)
			if took, _ := takes(t, newRelay(t, u)); took != patience {
				t.Errorf("after the longest pause: %v", took)
			}
		}
		h.set(false)
		time.Sleep(longestPause)
		for range 2 {
			if took, got := takes(t, newRelay(t, u)); took != 0 || got != "key" {
				t.Errorf("back again: %q in %v", got, took)
			}
		}
		if log.Count("agent fails") != 1 || log.Count("is back") != 1 {
			t.Errorf("log: %s", log)
		}
	})
}

// TestAnyAnswerResets checks that any answer ends the pause after a timeout.
func TestAnyAnswerResets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHanging()
		u, _ := upstreamsOf(piped("up", h.answer))
		signer, other := newRelay(t, u), newRelay(t, u)
		signer.List(t.Context())
		h.set(true)
		if took, got := takes(t, other); took != patience || got != "" {
			t.Errorf("%q in %v", got, took)
		}
		if err := other.All(t.Context(), []byte{wire.MsgRemoveAllIdentities}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("removing all: %v", err)
		}
		if _, ok, err := other.ForKey(t.Context(), "blob", []byte{wire.MsgSignRequest}); ok || !errors.Is(err, errSilent) {
			t.Errorf("signing: %v, %v", ok, err)
		}
		h.set(false)
		if _, ok, err := signer.ForKey(t.Context(), "blob", []byte{wire.MsgSignRequest}); !ok || err != nil {
			t.Errorf("signing: %v, %v", ok, err)
		}
		if took, got := takes(t, other); took != 0 || got != "key" {
			t.Errorf("%q in %v", got, took)
		}
	})
}

// TestBehindADialog has an upstream that does nothing else while its user thinks
// about a signature. The signature waits; the lists of other clients do not.
func TestBehindADialog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		one := make(chan struct{}, 1) // OpenSSH's agent answers one request at a time.
		yes := make(chan struct{})
		u, log := upstreamsOf(piped("up", func(m []byte) []byte {
			one <- struct{}{}
			defer func() { <-one }()
			if m[0] == wire.MsgSignRequest {
				<-yes
			}
			return newHanging().answer(m)
		}))
		signer, other := newRelay(t, u), newRelay(t, u)
		other.Bind([]byte{wire.MsgExtension})
		signer.List(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, ok, err := signer.ForKey(t.Context(), "blob", []byte{wire.MsgSignRequest}); !ok || err != nil {
				t.Errorf("signing: %v, %v", ok, err)
			}
		}()
		time.Sleep(time.Hour)
		for _, want := range []time.Duration{patience, 0, 0} {
			if took, got := takes(t, other); took != want || got != "" {
				t.Errorf("%q in %v, want %v", got, took, want)
			}
		}
		close(yes)
		<-done
		if took, got := takes(t, other); took != 0 || got != "key" {
			t.Errorf("after the dialog: %q in %v", got, took)
		}
		if log.Count("agent fails") != 1 || log.Count("is back") != 1 {
			t.Errorf("log: %s", log)
		}
	})
}

// TestBusyIsNotSilent checks that clients wait for an upstream that is slow, and
// answers one of them after the other.
func TestBusyIsNotSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		one := make(chan struct{}, 1)
		u, _ := upstreamsOf(piped("up", func(m []byte) []byte {
			one <- struct{}{}
			defer func() { <-one }()
			time.Sleep(15 * time.Millisecond)
			return newHanging().answer(m)
		}))
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				if took, got := takes(t, newRelay(t, u)); got != "key" {
					t.Errorf("%q in %v", got, took)
				}
			})
		}
		wg.Wait()
	})
}

// TestUpstreamsSideBySide checks that two upstreams that hang delay a list no longer
// than one, and that the third is listed and used.
func TestUpstreamsSideBySide(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, good := newHanging(), newHanging()
		u, _ := upstreamsOf(piped("a", h.answer), piped("b", h.answer), piped("c", good.answer))
		h.set(true)
		r := newRelay(t, u)
		for _, want := range []time.Duration{patience, 0, 0} {
			if took, got := takes(t, r); took != want || got != "key" {
				t.Errorf("%q in %v, want %v", got, took, want)
			}
		}
		if _, ok, err := newRelay(t, u).ForKey(t.Context(), "blob", []byte{wire.MsgRemoveIdentity}); !ok || err != nil {
			t.Error(ok, err)
		}
		// A key goes to the first upstream that answers.
		if answer, err := r.First(t.Context(), []byte{wire.MsgAddIdentity}, false); err != nil || answer[wire.LengthSize] != wire.MsgSuccess {
			t.Error(answer, err)
		}
		h.set(false)
		synctest.Wait()
	})
}

// TestIdle checks that an unused connection is closed, and replaced when needed.
func TestIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		up, dials := piped("up", newHanging().answer), 0
		u, _ := upstreamsOf(Agent{Name: "up", Dial: func(ctx context.Context) (net.Conn, error) {
			dials++
			return up.Dial(ctx)
		}})
		r := newRelay(t, u)
		for i, c := range []struct {
			pause time.Duration
			dials int
		}{{0, 1}, {idleTime - 1, 1}, {idleTime - 1, 1}, {idleTime + 1, 2}, {0, 2}} {
			time.Sleep(c.pause)
			if _, got := takes(t, r); got != "key" || dials != c.dials {
				t.Errorf("%d: %q, %d dials, want %d", i, got, dials, c.dials)
			}
		}
	})
}

// TestNothingPilesUp has many clients list the keys of an upstream that never
// answers, and checks that no connection stays open.
func TestNothingPilesUp(t *testing.T) {
	t.Parallel()
	const clients, lists = 50, 4
	for name, start := range map[string]func(t *testing.T) string{
		"never accepts": func(t *testing.T) string {
			path := t.TempDir() + "/s"
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			return path
		},
		"queue is full": func(t *testing.T) string { return fullQueue(t) },
		"never reads": func(t *testing.T) string {
			end := make(chan struct{})
			up := sshtest.Pretend(t, func(*sshtest.Fake, int, net.Conn) { <-end })
			t.Cleanup(func() { close(end) })
			return up.Path
		},
		"never answers": func(t *testing.T) string { return sshtest.Pretend(t, sshtest.NoEnd).Path },
		"trickles": func(t *testing.T) string {
			return sshtest.Pretend(t, func(_ *sshtest.Fake, _ int, nc net.Conn) {
				for _, b := range listOf("blob", "key") {
					if _, err := nc.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second) // The whole list would take half a minute.
				}
			}).Path
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			dialled, open := 0, 0
			up := at(start(t))
			u, _ := upstreamsOf(Agent{Name: name, Dial: func(ctx context.Context) (net.Conn, error) {
				nc, err := up.Dial(ctx)
				mu.Lock()
				defer mu.Unlock()
				if dialled++; err != nil {
					return nil, err
				}
				open++
				return &countedConn{Conn: nc, closed: func() { mu.Lock(); defer mu.Unlock(); open-- }}, nil
			}})
			var wg sync.WaitGroup
			for range clients {
				r := newRelay(t, u)
				wg.Go(func() {
					for range lists {
						if got := names(r.List(t.Context())); got != "" {
							t.Errorf("listed %q", got)
						}
					}
				})
			}
			wg.Wait()
			mu.Lock()
			defer mu.Unlock()
			if open > 0 {
				t.Errorf("%d connections are open", open)
			}
			if name != "queue is full" && dialled > clients { // This one fails at once.
				t.Errorf("dialled %d times", dialled)
			}
		})
	}
}

type countedConn struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *countedConn) Close() error { c.once.Do(c.closed); return c.Conn.Close() }

// fullQueue returns the path of a socket that accepts no more connections.
func fullQueue(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/s"
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sshtest.DialUnix(t, path)
	return path
}

// TestStopped stops OpenSSH's agent and continues it.
func TestStopped(t *testing.T) {
	t.Parallel()
	up := sshtest.StartAgent(t)
	up.Add(t, "key", sshtest.P256())
	u, log := upstreamsOf(at(up.Path))
	up.Signal(t, syscall.SIGSTOP)
	var wg sync.WaitGroup
	for i := range 50 {
		r := newRelay(t, u)
		if i%2 == 0 {
			r.Bind(bindOf(sshtest.HostA(), "id", true))
		}
		wg.Go(func() {
			for range 4 {
				if got := names(r.List(t.Context())); got != "" {
					t.Errorf("listed %q", got)
				}
			}
		})
	}
	wg.Wait()
	up.Signal(t, syscall.SIGCONT)
	r := newRelay(t, u)
	r.Bind(bindOf(sshtest.HostA(), "id", true))
	sshtest.Soon(t, "it comes back", func() bool { return names(r.List(t.Context())) == "key" })
	if n := log.Count("agent fails"); n == 0 || n != log.Count("is back") {
		t.Errorf("log: %s", log)
	}
}

// TestProof checks that a key with destinations goes only to an agent that checks
// bindings.
func TestProof(t *testing.T) {
	t.Parallel()
	add := []byte("\x19a key with destinations")
	keyring := func(t *testing.T) string {
		ring := client.NewKeyring()
		return sshtest.Pretend(t, func(_ *sshtest.Fake, _ int, nc net.Conn) { client.ServeAgent(ring, nc) }).Path
	}
	always := func(answer []byte) func(t *testing.T) string {
		return func(t *testing.T) string {
			return sshtest.Answering(t, func(m []byte) []byte {
				switch {
				case m[0] == wire.MsgRequestIdentities:
					return listOf()
				case string(m) == string(add):
					t.Error("the upstream got the key")
				}
				return answer
			}).Path
		}
	}
	for name, start := range map[string]func(t *testing.T) string{
		"knows no extension":  always(wire.Failure()),
		"takes every binding": always(wire.Success()),
		"refuses all":         always(wire.Frame([]byte{wire.MsgExtensionFailure})),
		"answers nonsense":    always(wire.Frame([]byte{99})),
		"hangs up":            always(nil),
		"keyring":             keyring,
		"missing":             func(t *testing.T) string { return t.TempDir() + "/none" },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := relayTo(t, start(t))
			answer, err := r.First(t.Context(), add, true)
			if err == nil || string(answer) != string(wire.Failure()) {
				t.Errorf("%x, %v", answer, err)
			}
		})
	}
	t.Run("ssh-agent", func(t *testing.T) {
		up := sshtest.StartAgent(t)
		r, _ := relayTo(t, always(wire.Success())(t), up.Path)
		r.Bind(bindOf(sshtest.HostA(), "id", true))
		for range 3 {
			// The agent refuses it, because it is no key.
			if answer, err := r.First(t.Context(), add, true); err == nil || !strings.Contains(err.Error(), errNoBinding.Error()) || answer[wire.LengthSize] != wire.MsgFailure {
				t.Errorf("%x, %v", answer, err)
			}
		}
		if err := r.links[1].up.provesBinding(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
