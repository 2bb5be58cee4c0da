package agent

import (
	"context"
	"net"
	"sync"
	"testing"
)

// patient is a user who leaves every dialog open until he is told otherwise.
type patient struct {
	open    chan struct{} // each dialog sends when it is there
	release chan struct{}
}

func (p *patient) wait(ctx context.Context) error {
	p.open <- struct{}{}
	select {
	case <-p.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *patient) AuthValue(ctx context.Context, _ AuthPrompt) ([]byte, error) {
	return []byte("1234"), p.wait(ctx)
}

func (p *patient) Confirm(ctx context.Context, _ ConfirmPrompt) (Grant, error) {
	return GrantOnce, p.wait(ctx)
}
func (p *patient) LastTry(ctx context.Context, _ AuthPrompt) error { return p.wait(ctx) }
func (*patient) Inform(context.Context, Notice)                    {}

// TestWhoWaitsForWhom holds up, at the same time, a dialog for a PIN, one for
// consent, a signature in the TPM, a lock password's delay and an upstream
// agent that never answers; and has 20 other clients list, sign with another
// key, add, remove and bind meanwhile. All of theirs is done while all of
// those still wait: nothing is measured, the order says it.
func TestWhoWaitsForWhom(t *testing.T) {
	user := &patient{open: make(chan struct{}), release: make(chan struct{})}
	pin := identityOf("pin", &softKey{Signer: p256(), required: true, pin: []byte("1234")})
	slow := identityOf("slow", &softKey{Signer: p384(), begun: make(chan struct{}), gate: make(chan struct{})})
	free := plain("free", p521())
	asked, ended := make(chan struct{}), make(chan struct{})
	silent := pretend(t, func(f *fake, n int, nc net.Conn) {
		if f.next(n, nc) == nil {
			return
		}
		if n == 0 {
			close(asked)
		}
		<-ended
	})
	s := serve(t, Config{
		Source: fixed(pin, slow, free), Prompter: user, Clock: newHandClock(), Upstreams: []Upstream{at(silent.path)},
	})
	data := []byte("data")
	wantAnswer(t, s.dial(t), constrained(adding(rsa2k(), nil), confirmed()), succeeded)

	held := []net.Conn{s.dial(t), s.dial(t), s.dial(t), s.dial(t)}
	send(t, held[0], signMessage(pin.Public.Marshal(), data, 0))
	<-user.open
	send(t, held[1], signMessage(publicOf(rsa2k()).Marshal(), data, 2))
	<-user.open
	send(t, held[2], signMessage(slow.Public.Marshal(), data, 0))
	<-slow.Key.(*softKey).begun
	send(t, held[3], listThem)
	<-asked

	var others sync.WaitGroup
	for range 20 {
		nc := s.dial(t)
		others.Go(func() {
			for range 10 {
				if n := countListed(t, ask(t, nc, listThem)); n < 4 {
					t.Errorf("%d keys are listed, want our own at least", n)
				}
				verify(t, free.Public, data, ask(t, nc, signMessage(free.Public.Marshal(), data, 0)))
				wantAnswer(t, nc, adding(ed(), nil), succeeded)
				ask(t, nc, message(msgExtension, extQuery))
			}
			wantAnswer(t, nc, extension(extSessionBind, bindBody(hostA(), "sid", false)), succeeded)
			ask(t, nc, listThem)
		})
	}
	others.Wait() // and all of the above still wait

	close(ended)
	close(user.release)
	close(slow.Key.(*softKey).gate)
	verify(t, pin.Public, data, recv(t, held[0]))
	verify(t, publicOf(rsa2k()), data, recv(t, held[1]))
	verify(t, slow.Public, data, recv(t, held[2]))
	if n := countListed(t, recv(t, held[3])); n < 4 {
		t.Errorf("who waited for the upstream agent is shown %d keys", n)
	}
}
