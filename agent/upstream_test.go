package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	client "golang.org/x/crypto/ssh/agent"
)

// piped is an upstream in memory, for tests with a clock of their own. Each of
// its connections is answered by says, which may wait; nil closes it.
func piped(name string, says func(message []byte) []byte) Upstream {
	return Upstream{Name: name, Dial: func(ctx context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for {
				m, err := tryRecv(theirs)
				if err != nil {
					return
				}
				answer := says(m)
				if answer == nil {
					return
				}
				if _, err := theirs.Write(answer); err != nil {
					return
				}
			}
		}()
		return ours, nil
	}}
}

// takes is how long a list takes, and what is in it.
func takes(t *testing.T, r *relay) (time.Duration, string) {
	begun := time.Now()
	keys := r.list(t.Context())
	return time.Since(begun), names(keys)
}

// hanging answers lists while it is open, and leaves others waiting until it
// is opened again.
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

func (h *hanging) says(m []byte) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.shut {
		h.cond.Wait()
	}
	if m[0] == msgRequestIdentities {
		return listOf(listed{"blob", "key"})
	}
	return success()
}

// TestSilence: who waits how long for an upstream that does not answer.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHanging()
		u, log := upstreamsOf(piped("up", h.says))
		h.set(true)
		var wg sync.WaitGroup
		for _, c := range []struct{ at, want time.Duration }{
			{0, time.Second},
			{5 * time.Millisecond, 15 * time.Millisecond},
			{19 * time.Millisecond, time.Millisecond},
			{100 * time.Millisecond, probeGrace},
			{101 * time.Millisecond, 2 * time.Millisecond},
			{200 * time.Millisecond, 0},
			{2 * time.Second, 0},
			{10 * time.Second, 0},
			{11 * time.Second, probeGrace},
			{12 * time.Second, 0},
		} {
			wg.Go(func() {
				time.Sleep(c.at)
				if took, got := takes(t, newRelay(t, u)); took != c.want || got != "" {
					t.Errorf("after %v: %q in %v instead of %v", c.at, got, took, c.want)
				}
			})
		}
		wg.Wait()
		h.set(false)
		synctest.Wait()
		if took, got := takes(t, newRelay(t, u)); took != 0 || got != "key" {
			t.Errorf("back again: %q in %v", got, took)
		}
		if log.count("does not answer") != 1 || log.count("is back") != 1 {
			t.Errorf("log: %s", log)
		}
	})
}

// TestRemembered: a silent upstream's list of before is given for a minute, to
// those for whom it was made.
func TestRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHanging()
		u, _ := upstreamsOf(piped("up", h.says))
		free, bound := newRelay(t, u), newRelay(t, u)
		bound.bind([]byte{msgExtension})
		for _, r := range []*relay{free, bound} {
			if _, got := takes(t, r); got != "key" {
				t.Fatalf("listed %q", got)
			}
		}
		h.set(true)
		check := func(r *relay, want time.Duration, list string) {
			t.Helper()
			if took, got := takes(t, r); took != want || got != list {
				t.Errorf("%q in %v instead of %q in %v", got, took, list, want)
			}
		}
		check(free, time.Second, "key")
		check(bound, probeGrace, "")
		check(free, 0, "key")
		time.Sleep(rememberFor)
		check(bound, probeGrace, "")
		check(free, 0, "")
		if err := free.all(t.Context(), []byte{msgRemoveAllIdentities}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("removing all: %v", err)
		}
		h.set(false)
		synctest.Wait()
		check(bound, 0, "key")
		check(free, 0, "key")
	})
}

// TestBehindADialog: an upstream that does nothing else while it asks its user
// for one client is not waited for by the others.
func TestBehindADialog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := make(chan struct{}, 1) // OpenSSH's agent answers one request after the other
		yes := make(chan struct{})
		u, log := upstreamsOf(piped("up", func(m []byte) []byte {
			one <- struct{}{}
			defer func() { <-one }()
			if m[0] == msgSignRequest {
				<-yes
				return frame([]byte{msgSignResponse, 1})
			}
			return newHanging().says(m)
		}))
		signer, other := newRelay(t, u), newRelay(t, u)
		other.bind([]byte{msgExtension})
		signer.list(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, ok, err := signer.forKey(t.Context(), "blob", []byte{msgSignRequest}); !ok || err != nil {
				t.Errorf("signing: %v, %v", ok, err)
			}
		}()
		time.Sleep(30 * time.Second)
		for range 3 {
			if took, got := takes(t, other); took > probeGrace || got != "" {
				t.Errorf("%q in %v", got, took)
			}
		}
		close(yes)
		<-done
		if took, got := takes(t, other); took != 0 || got != "key" {
			t.Errorf("after the dialog: %q in %v", got, took)
		}
		if log.count("level=WARN") > 0 {
			t.Errorf("log: %s", log)
		}
	})
}

// TestBusyIsNotSilent: an upstream that is slow, but answers one client after
// the other, is waited for.
func TestBusyIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := make(chan struct{}, 1)
		u, _ := upstreamsOf(piped("up", func(m []byte) []byte {
			one <- struct{}{}
			defer func() { <-one }()
			time.Sleep(15 * time.Millisecond)
			return newHanging().says(m)
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

// TestUpstreamsSideBySide: two that hang cost no more than one, and nothing of
// the third.
func TestUpstreamsSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, good := newHanging(), newHanging()
		u, _ := upstreamsOf(piped("a", h.says), piped("b", h.says), piped("c", good.says))
		h.set(true)
		r := newRelay(t, u)
		for _, want := range []time.Duration{time.Second, probeGrace, 0} {
			if took, got := takes(t, r); took != want || got != "key" {
				t.Errorf("%q in %v instead of %v", got, took, want)
			}
		}
		// A key that nobody has listed: who is well is asked first.
		if _, ok, err := r.forKey(t.Context(), "other", []byte{msgRemoveIdentity}); !ok || err != nil {
			t.Error(ok, err)
		}
		// A key goes to the first that is awake.
		if answer, err := r.first(t.Context(), []byte{msgAddIdentity}, false); err != nil || answer[lengthSize] != msgSuccess {
			t.Error(answer, err)
		}
		h.set(false)
		synctest.Wait()
	})
}

// TestIdle: a connection that is not used is closed, and replaced.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, dials := piped("up", newHanging().says), 0
		u, _ := upstreamsOf(Upstream{Name: "up", Dial: func(ctx context.Context) (net.Conn, error) {
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
				t.Errorf("%d: %q, %d dials instead of %d", i, got, dials, c.dials)
			}
		}
	})
}

// TestNothingPilesUp: however many list at an upstream that is of no use, its
// descriptors and goroutines are bounded.
func TestNothingPilesUp(t *testing.T) {
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
			up := pretend(t, func(*fake, int, net.Conn) { <-end })
			t.Cleanup(func() { close(end) })
			return up.path
		},
		"never answers": func(t *testing.T) string { return pretend(t, noEnd).path },
		"trickles": func(t *testing.T) string {
			return pretend(t, func(_ *fake, _ int, nc net.Conn) {
				for _, b := range listOf(listed{"blob", "key"}) {
					if _, err := nc.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second) // what it is about
				}
			}).path
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			dialled, open, begun := 0, 0, time.Now()
			up := at(start(t))
			u, _ := upstreamsOf(Upstream{Name: name, Dial: func(ctx context.Context) (net.Conn, error) {
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
						if got := names(r.list(t.Context())); got != "" {
							t.Errorf("listed %q", got)
						}
					}
				})
			}
			wg.Wait()
			mu.Lock()
			defer mu.Unlock()
			if open > 1 { // the probe
				t.Errorf("%d connections are open", open)
			}
			probes := 1 + int(time.Since(begun)/probePatience)
			if name != "queue is full" && dialled > clients+probes { // there a dial takes nothing
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

// fullQueue is a socket that nobody can connect to any more.
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
	dialUnix(t, path)
	return path
}

// TestStopped: OpenSSH's agent, stopped and continued.
func TestStopped(t *testing.T) {
	up := startAgent(t)
	up.add(t, "key", p256())
	u, log := upstreamsOf(at(up.path))
	for names(newRelay(t, u).list(t.Context())) != "key" {
		u, log = upstreamsOf(at(up.path)) // it had no processor for a second
	}
	goroutines := runtime.NumGoroutine()
	files := openFiles(t)
	up.signal(t, syscall.SIGSTOP)
	var wg sync.WaitGroup
	for i := range 50 {
		r := newRelay(t, u)
		want := "key"
		if i%2 == 0 {
			r.bind(bindOf(hostA(), "id", true))
			want = ""
		}
		wg.Go(func() {
			for range 4 {
				if got := names(r.list(t.Context())); got != want {
					t.Errorf("listed %q instead of %q", got, want)
				}
			}
		})
	}
	wg.Wait()
	soon(t, "they are all gone but the probe", func() bool {
		return runtime.NumGoroutine()-goroutines <= 2 && openFiles(t)-files <= 1
	})
	up.signal(t, syscall.SIGCONT)
	r := newRelay(t, u)
	r.bind(bindOf(hostA(), "id", true))
	soon(t, "it comes back", func() bool { return names(r.list(t.Context())) == "key" })
	// Who has its list may be earlier than the line that the probe logs.
	soon(t, "the log says so", func() bool { return log.count("is back") > 0 })
	if n := log.count("does not answer"); n == 0 || n != log.count("is back") {
		t.Errorf("log: %s", log)
	}
}

// TestProof: only who checks bindings gets a key whose use depends on them.
func TestProof(t *testing.T) {
	add := []byte("\x19a key with destinations")
	keyring := func(t *testing.T) string {
		ring := client.NewKeyring()
		return pretend(t, func(_ *fake, _ int, nc net.Conn) { client.ServeAgent(ring, nc) }).path
	}
	always := func(answer []byte) func(t *testing.T) string {
		return func(t *testing.T) string {
			return answering(t, func(m []byte) []byte {
				switch {
				case m[0] == msgRequestIdentities:
					return listOf()
				case string(m) == string(add):
					t.Error("it was given the key")
				}
				return answer
			}).path
		}
	}
	for name, start := range map[string]func(t *testing.T) string{
		"knows no extension":  always(failure()),
		"takes every binding": always(success()),
		"refuses all":         always(frame([]byte{msgExtensionFailure})),
		"answers nonsense":    always(frame([]byte{99})),
		"hangs up":            always(nil),
		"keyring":             keyring,
		"missing":             func(t *testing.T) string { return t.TempDir() + "/none" },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := relayTo(t, start(t))
			answer, err := r.first(t.Context(), add, true)
			if err == nil || string(answer) != string(failure()) {
				t.Errorf("%x, %v", answer, err)
			}
		})
	}
	t.Run("ssh-agent", func(t *testing.T) {
		up := startAgent(t)
		r, _ := relayTo(t, always(success())(t), up.path)
		r.bind(bindOf(hostA(), "id", true))
		for range 3 {
			// It is no key, which is the agent's own verdict.
			if answer, err := r.first(t.Context(), add, true); err == nil || !strings.Contains(err.Error(), errNoBinding.Error()) || answer[lengthSize] != msgFailure {
				t.Errorf("%x, %v", answer, err)
			}
		}
		if err := r.ups.list[1].provesBinding(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
