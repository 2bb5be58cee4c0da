package agent

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"

	client "golang.org/x/crypto/ssh/agent"
)

// waiting returns an identity whose signatures wait for gate or the end of
// their context.
func waiting(name string) (Identity, *softKey) {
	k := &softKey{Signer: sshtest.P256(), begun: make(chan struct{}), gate: make(chan struct{}), ended: make(chan struct{}, 8)}
	return identityOf(name, k), k
}

// TestPipelinedInOrder checks that requests sent ahead are answered in
// order.
func TestPipelinedInOrder(t *testing.T) {
	t.Parallel()
	id := plain("k", sshtest.P256())
	nc := serve(t, Config{Sources: []Source{fixed(id)}}).dial(t)
	var all []byte
	for i := range 300 { // many more than the agent queues
		all = append(all, wire.Frame(sshtest.ListThem)...)
		all = append(all, wire.Frame(sshtest.SignMessage(id.Public.Marshal(), []byte{byte(i)}, 0))...)
		all = append(all, wire.Frame([]byte{200})...)
	}
	go nc.Write(all) // the answers show whether it worked
	for i := range 300 {
		if n := sshtest.CountListed(t, sshtest.Recv(t, nc)); n != 1 {
			t.Fatalf("%d keys", n)
		}
		sshtest.VerifyAnswer(t, id.Public, []byte{byte(i)}, sshtest.Recv(t, nc))
		if m := sshtest.Recv(t, nc); !bytes.Equal(m, sshtest.Failed) {
			t.Fatalf("got %x", m)
		}
	}
}

// TestHangUp checks that each way to hang up cancels the signature in
// flight, even if more was sent ahead than the agent reads.
func TestHangUp(t *testing.T) {
	t.Parallel()
	bye := map[string]func(*net.UnixConn) error{
		"close":      (*net.UnixConn).Close,
		"half-close": (*net.UnixConn).CloseWrite,
		"garbage":    func(nc *net.UnixConn) error { _, err := nc.Write([]byte("\xff\xff\xff\xff")); return err },
		"length 0":   func(nc *net.UnixConn) error { _, err := nc.Write(make([]byte, 4)); return err },
		"sent ahead": func(nc *net.UnixConn) error {
			if _, err := nc.Write(bytes.Repeat(wire.Frame(sshtest.ListThem), 3*maxWaiting)); err != nil {
				return err
			}
			return nc.Close()
		},
	}
	for name, do := range bye {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, key := waiting("k")
			s := serve(t, Config{Sources: []Source{fixed(id)}})
			nc := s.dial(t)
			sshtest.Send(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
			<-key.begun
			if err := do(nc); err != nil {
				t.Fatal(err)
			}
			<-key.ended
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			if s.log.Count(string(refusal.HungUp)) != 1 {
				t.Errorf("log: %s", s.log)
			}
		})
	}
}

// TestAnswersBeforeEnd checks that after a half-close no signatures are
// made, and all other requests are answered.
func TestAnswersBeforeEnd(t *testing.T) {
	t.Parallel()
	id, key := waiting("k")
	s := serve(t, Config{Sources: []Source{fixed(id)}})
	nc := s.dial(t)
	sign := sshtest.SignMessage(id.Public.Marshal(), nil, 0)
	sshtest.Send(t, nc, sign, sshtest.ListThem, sign, sshtest.ListThem)
	<-key.begun
	nc.CloseWrite()
	for i, want := range []byte{wire.MsgFailure, wire.MsgIdentitiesAnswer, wire.MsgFailure, wire.MsgIdentitiesAnswer} {
		if m := sshtest.Recv(t, nc); m[0] != want {
			t.Errorf("answer %d is %x", i, m)
		}
	}
	sshtest.IsClosed(t, nc)
	if len(key.tried()) > 0 {
		t.Error("a signature was made after the client had gone")
	}
}

// TestTruncatedFrames checks that the agent survives clients that hang up
// within a frame, after each byte.
func TestTruncatedFrames(t *testing.T) {
	t.Parallel()
	id := plain("k", sshtest.P256())
	s := serve(t, Config{Sources: []Source{fixed(id)}})
	f := wire.Frame(sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0))
	for n := range f {
		nc := s.dial(t)
		nc.Write(f[:n])
		nc.CloseWrite()
		sshtest.IsClosed(t, nc)
		nc.Close()
	}
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0)))
}

// TestSlowSignature checks that lists and the signatures of other keys do
// not wait for a slow one.
func TestSlowSignature(t *testing.T) {
	t.Parallel()
	slow, key := waiting("slow")
	fast := plain("fast", sshtest.P384())
	s := serve(t, Config{Sources: []Source{fixed(slow, fast)}})
	stuck := s.dial(t)
	sshtest.Send(t, stuck, sshtest.SignMessage(slow.Public.Marshal(), nil, 0))
	<-key.begun
	nc := s.dial(t)
	sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem))
	sshtest.VerifyAnswer(t, fast.Public, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(fast.Public.Marshal(), nil, 0)))
	key.gate <- struct{}{}
	sshtest.VerifyAnswer(t, slow.Public, nil, sshtest.Recv(t, stuck))
}

// TestPanicInKey checks that a panic in a key closes only the connection
// that asked for the signature.
func TestPanicInKey(t *testing.T) {
	t.Parallel()
	bad := identityOf("bad", &softKey{Signer: sshtest.P256(), panics: true})
	good := plain("good", sshtest.P384())
	s := serve(t, Config{Sources: []Source{fixed(bad, good)}})
	for range 2 { // the turn of the key is given up, too
		nc := s.dial(t)
		sshtest.Send(t, nc, sshtest.SignMessage(bad.Public.Marshal(), nil, 0), sshtest.ListThem)
		sshtest.IsClosed(t, nc)
	}
	sshtest.VerifyAnswer(t, good.Public, nil, sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(good.Public.Marshal(), nil, 0)))
	if l := s.log.String(); !strings.Contains(l, "a key that panics") || !strings.Contains(l, "testkeys_test.go") {
		t.Errorf("no panic with stack in the log: %s", l)
	}
}

// TestManyClients checks 64 clients at once, of which one hangs up and one
// sends garbage.
func TestManyClients(t *testing.T) {
	t.Parallel()
	ids := []Identity{plain("p256", sshtest.P256()), plain("rsa", sshtest.RSA2048()), plain("p521", sshtest.P521())}
	s := serve(t, Config{Sources: []Source{fixed(ids...)}})
	var wg sync.WaitGroup
	for i := range 64 {
		nc := s.dial(t)
		wg.Go(func() {
			id := ids[i%len(ids)]
			switch i {
			case 20:
				nc.Write(wire.Frame(sshtest.SignMessage(id.Public.Marshal(), nil, 0)))
				nc.Close()
				return
			case 40:
				io.WriteString(nc, "GET / HTTP/1.1\r\n\r\n")
				if b, _ := io.ReadAll(nc); len(b) > 0 {
					t.Errorf("garbage is answered with %x", b)
				}
				return
			}
			sig, err := client.NewClient(nc).SignWithFlags(id.Public, []byte{byte(i)}, 2)
			if err == nil {
				err = id.Public.Verify([]byte{byte(i)}, sig)
			}
			if err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// inBubble serves l in a synctest bubble.
func inBubble(t *testing.T, c Config, l *pipes) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	a := New(NewKeyring(c), nil)
	go func() { served <- a.Serve(ctx, l) }()
	return sync.OnceValue(func() error { cancel(); return <-served })
}

// TestDeadlines checks that a client may be silent between messages, but not
// within one, and that it must take its answers.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		stop := inBubble(t, Config{Sources: []Source{fixed(plain("k", sshtest.P256()))}}, l)
		nc := l.dial()
		time.Sleep(1000 * time.Hour) // a client may be silent between messages
		sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem))

		begun := time.Now()
		nc.Write([]byte{0, 0})
		sshtest.IsClosed(t, nc)
		if d := time.Since(begun); d != readTimeout {
			t.Errorf("the agent waited %v for half a message", d)
		}
		nc = l.dial()
		sshtest.Send(t, nc, sshtest.ListThem)
		synctest.Wait() // the answer is not read
		time.Sleep(writeTimeout + time.Second)
		sshtest.IsClosed(t, nc)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestShutdown checks that Serve cancels requests after the grace time, and
// returns an error if they do not end.
func TestShutdown(t *testing.T) {
	t.Parallel()
	for name, deaf := range map[string]bool{"cancelled": false, "does not end": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				id, key := waiting("k")
				key.deaf = deaf
				l := newPipes()
				stop := inBubble(t, Config{Sources: []Source{fixed(id)}, Grace: time.Minute}, l)
				idle, busy := l.dial(), l.dial()
				sshtest.Send(t, busy, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
				<-key.begun
				begun := time.Now()
				err := stop()
				sshtest.IsClosed(t, idle)
				if d := time.Since(begun); (err != nil) != deaf || (d != time.Minute && !deaf) || d > 2*time.Minute {
					t.Errorf("Serve returned %v after %v", err, d)
				}
				close(key.gate)
			})
		})
	}
}

// TestShutdownFinishes checks that a shutdown closes idle connections and
// answers the request in flight.
func TestShutdownFinishes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id, key := waiting("k")
		l := newPipes()
		stop := inBubble(t, Config{Sources: []Source{fixed(id)}}, l)
		idle, busy := l.dial(), l.dial()
		sshtest.Send(t, busy, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
		<-key.begun
		go stop()
		sshtest.IsClosed(t, idle)
		key.gate <- struct{}{}
		sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Recv(t, busy))
		sshtest.IsClosed(t, busy)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestShutdownClosesPrompts checks that a shutdown closes open prompts, and
// that no more are opened.
func TestShutdownClosesPrompts(t *testing.T) {
	t.Parallel()
	for name, confirm := range map[string]bool{"PIN": false, "consent": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				id, key := locked("1234", 32, true)
				user, log := &patient{open: make(chan struct{}, 9)}, new(sshtest.Log)
				l := newPipes()
				stop := inBubble(t, Config{
					Sources: []Source{fixed(id)}, Prompter: user, ConfirmAll: confirm, Grace: time.Hour,
					Log: slog.New(slog.NewTextHandler(log, nil)),
				}, l)
				nc := l.dial()
				request := sshtest.SignMessage(id.Public.Marshal(), nil, 0)
				sshtest.Send(t, nc, request, request)
				<-user.open
				begun := time.Now()
				go stop()
				for range 2 {
					if got, err := sshtest.TryRecv(nc); err == nil && !bytes.Equal(got, sshtest.Failed) {
						t.Errorf("answer %x", got)
					}
				}
				if err := stop(); err != nil || time.Since(begun) > 0 {
					t.Errorf("it took %v to end, %v", time.Since(begun), err)
				}
				if log.Count("the agent is shutting down") == 0 || len(key.tried()) > 0 {
					t.Errorf("tried %q; log: %s", key.tried(), log)
				}
			})
		})
	}
}

// TestOutOfDescriptors checks that Serve goes on after errors of accept(2)
// that pass.
func TestOutOfDescriptors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipes(syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED)
		var log sshtest.Log
		stop := inBubble(t, Config{Sources: []Source{fixed()}, Log: slog.New(slog.NewTextHandler(&log, nil))}, l)
		begun := time.Now()
		nc := l.dial()
		if d := time.Since(begun); d != 35*time.Millisecond {
			t.Errorf("accepted after %v", d)
		}
		sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem))
		if log.Count("no new connections") != 1 {
			t.Errorf("log: %s", &log)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestBrokenListener checks that Serve returns the error of a listener that
// fails for good.
func TestBrokenListener(t *testing.T) {
	t.Parallel()
	if err := New(NewKeyring(Config{Sources: []Source{fixed()}}), nil).Serve(t.Context(), newPipes(syscall.EBADF)); err == nil {
		t.Error("Serve returned no error")
	}
}
