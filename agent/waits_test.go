package agent

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// patient is a user who leaves every prompt open until the test ends it.
type patient struct {
	open    chan struct{} // each prompt sends when it opens
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

func (p *patient) AuthValue(ctx context.Context, _ ask.AuthPrompt) ([]byte, error) {
	return []byte("1234"), p.wait(ctx)
}

func (p *patient) Confirm(ctx context.Context, _ ask.ConfirmPrompt) (ask.Grant, error) {
	return ask.GrantOnce, p.wait(ctx)
}
func (p *patient) LastTry(ctx context.Context, _ ask.AuthPrompt) error { return p.wait(ctx) }
func (*patient) Inform(context.Context, ask.Notice)                    {}

// TestWhoWaitsForWhom checks that ten clients can list, sign with another
// key, add and bind while a prompt for a PIN, one for consent, a signature
// in the TPM and an upstream agent that never answers keep others waiting.
// The order of events shows it, not the time.
func TestWhoWaitsForWhom(t *testing.T) {
	t.Parallel()
	user := &patient{open: make(chan struct{}), release: make(chan struct{})}
	pin := identityOf("pin", &softKey{Signer: sshtest.P256(), required: true, pin: []byte("1234")})
	slow := identityOf("slow", &softKey{Signer: sshtest.P384(), begun: make(chan struct{}), gate: make(chan struct{})})
	free := plain("free", sshtest.P521())
	asked, ended := make(chan struct{}), make(chan struct{})
	silent := sshtest.Pretend(t, func(f *sshtest.Fake, n int, nc net.Conn) {
		if f.Next(n, nc) == nil {
			return
		}
		if n == 0 {
			close(asked)
		}
		<-ended
	})
	s := serve(t, Config{
		Sources: []Source{fixed(pin, slow, free)}, Prompter: user, Clock: sshtest.NewClock(), Upstreams: []upstream.Agent{upstreamAt(silent.Path)},
	})
	data := []byte("data")
	wantAnswer(t, s.dial(t), constrained(sshtest.Adding(sshtest.RSA2048(), nil), confirmed()), sshtest.Succeeded)

	held := []net.Conn{s.dial(t), s.dial(t), s.dial(t), s.dial(t)}
	sshtest.Send(t, held[0], sshtest.SignMessage(pin.Public.Marshal(), data, 0))
	<-user.open
	sshtest.Send(t, held[1], sshtest.SignMessage(sshtest.PublicOf(sshtest.RSA2048()).Marshal(), data, 2))
	<-user.open
	sshtest.Send(t, held[2], sshtest.SignMessage(slow.Public.Marshal(), data, 0))
	<-slow.Key.(*softKey).begun
	sshtest.Send(t, held[3], sshtest.ListThem)
	<-asked

	var others sync.WaitGroup
	for range 10 {
		nc := s.dial(t)
		others.Go(func() {
			for range 4 {
				if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n < 4 {
					t.Errorf("%d keys are listed, want at least this agent's own", n)
				}
				sshtest.VerifyAnswer(t, free.Public, data, sshtest.Exchange(t, nc, sshtest.SignMessage(free.Public.Marshal(), data, 0)))
				wantAnswer(t, nc, sshtest.Adding(sshtest.Ed25519(), nil), sshtest.Succeeded)
				sshtest.Exchange(t, nc, sshtest.Message(wire.MsgExtension, extQuery))
			}
			wantAnswer(t, nc, sshtest.Extension(restrict.ExtSessionBind, sshtest.BindBody(sshtest.HostA(), "sid", false)), sshtest.Succeeded)
			sshtest.Exchange(t, nc, sshtest.ListThem)
		})
	}
	others.Wait() // all of the above still wait

	close(ended)
	close(user.release)
	close(slow.Key.(*softKey).gate)
	sshtest.VerifyAnswer(t, pin.Public, data, sshtest.Recv(t, held[0]))
	sshtest.VerifyAnswer(t, sshtest.PublicOf(sshtest.RSA2048()), data, sshtest.Recv(t, held[1]))
	sshtest.VerifyAnswer(t, slow.Public, data, sshtest.Recv(t, held[2]))
	if n := sshtest.CountListed(t, sshtest.Recv(t, held[3])); n < 4 {
		t.Errorf("%d keys are listed for the client that waited for the upstream agent", n)
	}
}
