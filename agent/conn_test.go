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

	client "golang.org/x/crypto/ssh/agent"
)

// waiting is an identity whose signatures wait for gate or their context.
func waiting(name string) (Identity, *softKey) {
	k := &softKey{Signer: p256(), begun: make(chan struct{}), gate: make(chan struct{}), ended: make(chan struct{}, 8)}
	return identityOf(name, k), k
}

func TestPipelinedInOrder(t *testing.T) {
	id := plain("k", p256())
	nc := serve(t, Config{Source: fixed(id)}).dial(t)
	var all []byte
	for i := range 300 { // many more than are held at once
		all = append(all, frame(listThem)...)
		all = append(all, frame(signMessage(id.Public.Marshal(), []byte{byte(i)}, 0))...)
		all = append(all, frame([]byte{200})...)
	}
	go nc.Write(all) // the answers tell whether it worked
	for i := range 300 {
		if n := countListed(t, recv(t, nc)); n != 1 {
			t.Fatalf("%d keys", n)
		}
		verify(t, id.Public, []byte{byte(i)}, recv(t, nc))
		if m := recv(t, nc); !bytes.Equal(m, failed) {
			t.Fatalf("got %x", m)
		}
	}
}

// TestHangUp: each way to go ends the context of the signature in flight, also
// with more sent ahead than the agent reads.
func TestHangUp(t *testing.T) {
	bye := map[string]func(*net.UnixConn) error{
		"close":      (*net.UnixConn).Close,
		"half-close": (*net.UnixConn).CloseWrite,
		"garbage":    func(nc *net.UnixConn) error { _, err := nc.Write([]byte("\xff\xff\xff\xff")); return err },
		"length 0":   func(nc *net.UnixConn) error { _, err := nc.Write(make([]byte, 4)); return err },
		"sent ahead": func(nc *net.UnixConn) error {
			if _, err := nc.Write(bytes.Repeat(frame(listThem), 3*maxWaiting)); err != nil {
				return err
			}
			return nc.Close()
		},
	}
	for name, do := range bye {
		t.Run(name, func(t *testing.T) {
			id, key := waiting("k")
			s := serve(t, Config{Source: fixed(id)})
			nc := s.dial(t)
			send(t, nc, signMessage(id.Public.Marshal(), nil, 0))
			<-key.begun
			if err := do(nc); err != nil {
				t.Fatal(err)
			}
			<-key.ended
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			if s.log.count("nobody waits for the answer") != 1 {
				t.Errorf("log: %s", s.log)
			}
		})
	}
}

// TestAnswersBeforeEnd: what a half-closed client asked for and needs no
// waiting is answered, signatures are not made.
func TestAnswersBeforeEnd(t *testing.T) {
	id, key := waiting("k")
	s := serve(t, Config{Source: fixed(id)})
	nc := s.dial(t)
	sign := signMessage(id.Public.Marshal(), nil, 0)
	send(t, nc, sign, listThem, sign, listThem)
	<-key.begun
	nc.CloseWrite()
	for i, want := range []byte{msgFailure, msgIdentitiesAnswer, msgFailure, msgIdentitiesAnswer} {
		if m := recv(t, nc); m[0] != want {
			t.Errorf("answer %d is %x", i, m)
		}
	}
	isClosed(t, nc)
	if len(key.tried()) > 0 {
		t.Error("a signature was made for nobody")
	}
}

// TestTruncatedFrames hangs up within a frame, at every byte.
func TestTruncatedFrames(t *testing.T) {
	id := plain("k", p256())
	s := serve(t, Config{Source: fixed(id)})
	f := frame(signMessage(id.Public.Marshal(), []byte("data"), 0))
	for n := range f {
		nc := s.dial(t)
		nc.Write(f[:n])
		nc.CloseWrite()
		isClosed(t, nc)
		nc.Close()
	}
	verify(t, id.Public, nil, ask(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0)))
}

// TestNobodyWaitsForASignature: list and other keys' signatures go on.
func TestNobodyWaitsForASignature(t *testing.T) {
	slow, key := waiting("slow")
	fast := plain("fast", p384())
	s := serve(t, Config{Source: fixed(slow, fast)})
	stuck := s.dial(t)
	send(t, stuck, signMessage(slow.Public.Marshal(), nil, 0))
	<-key.begun
	nc := s.dial(t)
	countListed(t, ask(t, nc, listThem))
	verify(t, fast.Public, nil, ask(t, nc, signMessage(fast.Public.Marshal(), nil, 0)))
	key.gate <- struct{}{}
	verify(t, slow.Public, nil, recv(t, stuck))
}

func TestPanicInKey(t *testing.T) {
	bad := identityOf("bad", &softKey{Signer: p256(), panics: true})
	good := plain("good", p384())
	s := serve(t, Config{Source: fixed(bad, good)})
	for range 2 { // the key's line is not left locked either
		nc := s.dial(t)
		send(t, nc, signMessage(bad.Public.Marshal(), nil, 0), listThem)
		isClosed(t, nc)
	}
	verify(t, good.Public, nil, ask(t, s.dial(t), signMessage(good.Public.Marshal(), nil, 0)))
	if l := s.log.String(); !strings.Contains(l, "a key that panics") || !strings.Contains(l, "testkeys_test.go") {
		t.Errorf("no panic with stack in the log: %s", l)
	}
}

// TestManyClients: 64 at once, of which one hangs up and one sends garbage.
func TestManyClients(t *testing.T) {
	ids := []Identity{plain("p256", p256()), plain("rsa", rsa2k()), plain("p521", p521())}
	s := serve(t, Config{Source: fixed(ids...)})
	var wg sync.WaitGroup
	for i := range 64 {
		nc := s.dial(t)
		wg.Go(func() {
			id := ids[i%len(ids)]
			switch i {
			case 20:
				nc.Write(frame(signMessage(id.Public.Marshal(), nil, 0)))
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

// inBubble serves pipes on the bubble's clock.
func inBubble(t *testing.T, c Config, l *pipes) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	a := New(c)
	go func() { served <- a.Serve(ctx, l) }()
	return sync.OnceValue(func() error { cancel(); return <-served })
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		stop := inBubble(t, Config{Source: fixed(plain("k", p256()))}, l)
		nc := l.dial()
		time.Sleep(1000 * time.Hour) // silence between messages is no offence
		countListed(t, ask(t, nc, listThem))

		begun := time.Now()
		nc.Write([]byte{0, 0})
		isClosed(t, nc)
		if d := time.Since(begun); d != readTimeout {
			t.Errorf("half a message was waited for %v", d)
		}
		nc = l.dial()
		send(t, nc, listThem)
		synctest.Wait() // the answer is not taken
		time.Sleep(writeTimeout + time.Second)
		isClosed(t, nc)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestShutdown(t *testing.T) {
	for name, deaf := range map[string]bool{"cancelled": false, "does not end": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				id, key := waiting("k")
				key.deaf = deaf
				l := newPipes()
				stop := inBubble(t, Config{Source: fixed(id), Grace: time.Minute}, l)
				idle, busy := l.dial(), l.dial()
				send(t, busy, signMessage(id.Public.Marshal(), nil, 0))
				<-key.begun
				begun := time.Now()
				err := stop()
				isClosed(t, idle)
				if d := time.Since(begun); (err != nil) != deaf || (d != time.Minute && !deaf) || d > 2*time.Minute {
					t.Errorf("Serve returned %v after %v", err, d)
				}
				close(key.gate)
			})
		})
	}
}

// TestShutdownFinishes: the request in flight is answered, idle clients are
// not waited for.
func TestShutdownFinishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id, key := waiting("k")
		l := newPipes()
		stop := inBubble(t, Config{Source: fixed(id)}, l)
		idle, busy := l.dial(), l.dial()
		send(t, busy, signMessage(id.Public.Marshal(), nil, 0))
		<-key.begun
		go stop()
		isClosed(t, idle)
		key.gate <- struct{}{}
		verify(t, id.Public, nil, recv(t, busy))
		isClosed(t, busy)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestShutdownTakesQuestionsAway: nobody waits for an answer to a question when
// the agent is to end, and no other is asked. What was answered is finished.
func TestShutdownTakesQuestionsAway(t *testing.T) {
	for name, confirm := range map[string]bool{"PIN": false, "consent": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				id, key := locked("1234", 32, true)
				user, log := &patient{open: make(chan struct{}, 9)}, new(record)
				l := newPipes()
				stop := inBubble(t, Config{
					Source: fixed(id), Prompter: user, ConfirmAll: confirm, Grace: time.Hour,
					Log: slog.New(slog.NewTextHandler(log, nil)),
				}, l)
				nc := l.dial()
				request := signMessage(id.Public.Marshal(), nil, 0)
				send(t, nc, request, request)
				<-user.open
				begun := time.Now()
				go stop()
				for range 2 {
					if got, err := tryRecv(nc); err == nil && !bytes.Equal(got, failed) {
						t.Errorf("answer %x", got)
					}
				}
				if err := stop(); err != nil || time.Since(begun) > 0 {
					t.Errorf("it took %v to end, %v", time.Since(begun), err)
				}
				if log.count(string(CauseEnding)) == 0 || len(key.tried()) > 0 {
					t.Errorf("tried %q; log: %s", key.tried(), log)
				}
			})
		})
	}
}

func TestOutOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipes(syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED)
		var log record
		stop := inBubble(t, Config{Source: fixed(), Log: slog.New(slog.NewTextHandler(&log, nil))}, l)
		begun := time.Now()
		nc := l.dial()
		if d := time.Since(begun); d != 35*time.Millisecond {
			t.Errorf("accepted after %v", d)
		}
		countListed(t, ask(t, nc, listThem))
		if log.count("no new connections") != 1 {
			t.Errorf("log: %s", &log)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestBrokenListener(t *testing.T) {
	if err := New(Config{Source: fixed()}).Serve(t.Context(), newPipes(syscall.EBADF)); err == nil {
		t.Error("Serve returned no error")
	}
}

// TestAnnouncedLength: memory is taken for what comes, not for what is said.
func TestAnnouncedLength(t *testing.T) {
	for _, come := range []int{0, 1, firstRead, 100_000} {
		r := &widest{r: bytes.NewReader(make([]byte, come))}
		if _, err := readBytes(r, maxMessage); err == nil {
			t.Error("read what was not there")
		}
		if most := 2*come + firstRead; r.asked > most {
			t.Errorf("%d bytes came, and there was room for %d", come, r.asked)
		}
	}
}

// widest keeps how much room there was altogether.
type widest struct {
	r     io.Reader
	asked int
}

func (w *widest) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if w.asked += n; err != nil {
		w.asked += len(p)
	}
	return n, err
}
