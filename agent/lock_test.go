package agent

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

func lockMessage(password string) []byte {
	return wire.AppendString([]byte{wire.MsgLock}, password)
}

func unlockMessage(password string) []byte {
	return wire.AppendString([]byte{wire.MsgUnlock}, password)
}

func wantAnswer(t *testing.T, nc net.Conn, message, want []byte) {
	t.Helper()
	if got := sshtest.Exchange(t, nc, message); !bytes.Equal(got, want) {
		t.Errorf("request %x is answered %x, want %x", message[:min(len(message), 20)], got, want)
	}
}

// TestLock checks what a locked agent answers, and that the right password
// unlocks it.
func TestLock(t *testing.T) {
	t.Parallel()
	id := plain("p256", sshtest.P256())
	blob := id.Public.Marshal()
	s := serve(t, Config{Sources: []Source{fixed(id)}})
	nc, other := s.dial(t), s.dial(t)
	empty := []byte{wire.MsgIdentitiesAnswer, 0, 0, 0, 0}

	wantAnswer(t, nc, unlockMessage("secret"), sshtest.Failed)
	wantAnswer(t, nc, lockMessage(""), sshtest.Failed)
	wantAnswer(t, nc, lockMessage("secret"), sshtest.Succeeded)
	for _, nc := range []net.Conn{nc, other, s.dial(t)} {
		wantAnswer(t, nc, sshtest.ListThem, empty)
		wantAnswer(t, nc, sshtest.SignMessage(blob, []byte("data"), 0), sshtest.Failed)
		wantAnswer(t, nc, sshtest.RemoveMessage(blob), sshtest.Failed)
		wantAnswer(t, nc, []byte{wire.MsgRemoveAllIdentities}, sshtest.Failed)
		wantAnswer(t, nc, lockMessage("secret"), sshtest.Failed)
		wantAnswer(t, nc, lockMessage("another"), sshtest.Failed)
		wantAnswer(t, nc, wire.AppendString([]byte{wire.MsgExtension}, extQuery), sshtest.Failed)
		wantAnswer(t, nc, wire.AppendString([]byte{wire.MsgExtension}, restrict.ExtSessionBind), []byte{wire.MsgExtensionFailure})
	}
	wantAnswer(t, other, unlockMessage(""), sshtest.Failed)
	wantAnswer(t, other, unlockMessage("Secret"), sshtest.Failed)
	wantAnswer(t, other, unlockMessage("secret"), sshtest.Succeeded)
	wantAnswer(t, other, unlockMessage("secret"), sshtest.Failed)
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 1 {
		t.Errorf("%d keys are left after locking and unlocking, want 1", n)
	}
	sshtest.VerifyAnswer(t, id.Public, []byte("data"), sshtest.Exchange(t, nc, sshtest.SignMessage(blob, []byte("data"), 0)))
	wantAnswer(t, nc, lockMessage("again"), sshtest.Succeeded)
	wantAnswer(t, nc, unlockMessage("secret"), sshtest.Failed)
	wantAnswer(t, nc, unlockMessage("again"), sshtest.Succeeded)
}

// TestLockMalformed checks that malformed requests do not lock the agent.
// They end ssh-agent.
func TestLockMalformed(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed(plain("p256", sshtest.P256()))}})
	nc := s.dial(t)
	for _, m := range [][]byte{{wire.MsgLock}, {wire.MsgUnlock}, {wire.MsgLock, 0, 0}, {wire.MsgLock, 0, 0, 0, 9, 'a'}, {wire.MsgUnlock, 255, 255, 255, 255}} {
		wantAnswer(t, nc, m, sshtest.Failed)
	}
	if n := sshtest.CountListed(t, sshtest.Exchange(t, nc, sshtest.ListThem)); n != 1 {
		t.Errorf("%d keys are listed, want 1", n)
	}
}

// TestUnlockDelay checks that each wrong password delays its answer and the next
// try by 100 milliseconds more, until the right one is given, and that other
// clients do not wait.
func TestUnlockDelay(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	s := serve(t, Config{Sources: []Source{fixed(plain("p256", sshtest.P256()))}, Clock: clock})
	nc, other := s.dial(t), s.dial(t)
	for range 2 {
		wantAnswer(t, nc, lockMessage("secret"), sshtest.Succeeded)
		for n := 1; n <= 3; n++ {
			want := time.Duration(n) * lockDelay
			sshtest.Send(t, nc, unlockMessage("wrong"))
			due := <-clock.Set
			if wait := due - clock.Now(); wait != want {
				t.Fatalf("wrong password %d waits for %v, want %v", n, wait, want)
			}
			sshtest.Exchange(t, other, sshtest.ListThem) // is answered although the clock stands still
			clock.Forward(want)
			if got := sshtest.Recv(t, nc); !bytes.Equal(got, sshtest.Failed) {
				t.Fatalf("wrong password %d is answered %x", n, got)
			}
		}
		wantAnswer(t, nc, unlockMessage("secret"), sshtest.Succeeded) // the wait is over
	}
}

// TestUnlockHangingUp checks that hanging up and dialling again does not
// shorten the delay after wrong passwords, and that the right password waits
// for it, too.
func TestUnlockHangingUp(t *testing.T) {
	t.Parallel()
	clock := sshtest.NewClock()
	s := serve(t, Config{Sources: []Source{fixed()}, Clock: clock})
	wantAnswer(t, s.dial(t), lockMessage("secret"), sshtest.Succeeded)
	for n := 1; n <= 3; n++ {
		nc := s.dial(t)
		sshtest.Send(t, nc, unlockMessage("wrong"))
		for due := range clock.Set {
			if due-clock.Now() == time.Duration(n)*lockDelay {
				break // its own wait comes after that of earlier passwords
			}
			clock.Forward(due - clock.Now())
		}
		nc.Close()
	}
	nc := s.dial(t)
	sshtest.Send(t, nc, unlockMessage("secret"))
	due := <-clock.Set
	if wait := due - clock.Now(); wait != 3*lockDelay {
		t.Errorf("the right password waits for %v, want %v", wait, 3*lockDelay)
	}
	clock.Forward(due - clock.Now())
	if got := sshtest.Recv(t, nc); !bytes.Equal(got, sshtest.Succeeded) {
		t.Errorf("the right password is answered %x", got)
	}
}

// TestLockEndsPrompts checks that locking closes an open prompt, and that
// what was typed is not used.
func TestLockEndsPrompts(t *testing.T) {
	t.Parallel()
	open := make(chan struct{})
	user := prompterFunc(func(ctx context.Context, _ ask.AuthPrompt) ([]byte, error) {
		close(open)
		<-ctx.Done()
		return []byte("1234"), nil
	})
	key := &softKey{Signer: sshtest.P256(), required: true, pin: []byte("1234")}
	id := identityOf("pin", key)
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
	signer, locker := s.dial(t), s.dial(t)
	sshtest.Send(t, signer, sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0))
	<-open
	wantAnswer(t, locker, lockMessage("secret"), sshtest.Succeeded)
	if got := sshtest.Recv(t, signer); !bytes.Equal(got, sshtest.Failed) {
		t.Errorf("the request with the open dialog is answered %x", got)
	}
	if tried := key.tried(); len(tried) > 0 {
		t.Errorf("the locked agent tried %q", tried)
	}
}

// TestLockIsTheReason checks that a prompt that was closed by locking is
// kept as such, even if the agent is unlocked again by then.
func TestLockIsTheReason(t *testing.T) {
	t.Parallel()
	id, _ := locked("1234", 32, true)
	open, taken := make(chan struct{}), make(chan struct{})
	s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: prompterFunc(func(ctx context.Context, _ ask.AuthPrompt) ([]byte, error) {
		close(open)
		<-ctx.Done()
		<-taken
		return nil, fmt.Errorf("asking: %w", ctx.Err())
	})})
	signer, locker := s.dial(t), s.dial(t)
	sshtest.Send(t, signer, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	<-open
	wantAnswer(t, locker, lockMessage("secret"), sshtest.Succeeded)
	wantAnswer(t, locker, unlockMessage("secret"), sshtest.Succeeded)
	close(taken)
	if got := sshtest.Recv(t, signer); !bytes.Equal(got, sshtest.Failed) {
		t.Errorf("answer %x", got)
	}
	kept := s.Refusals()
	if len(kept) != 1 || kept[0].Cause != string(refusal.Locked) || kept[0].Detail != "it was locked while the question was open" {
		t.Errorf("kept %+v", kept)
	}
}

// TestLockRace checks that only one of many clients locks the agent, and
// that its password unlocks it.
func TestLockRace(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Sources: []Source{fixed()}, Clock: sshtest.NewClock()})
	var wg sync.WaitGroup
	answers := make([][]byte, 8)
	for i := range answers {
		nc := s.dial(t)
		wg.Go(func() {
			sshtest.Send(t, nc, lockMessage(string(rune('a'+i))))
			answers[i], _ = sshtest.TryRecv(nc)
		})
	}
	wg.Wait()
	winner := -1
	for i, a := range answers {
		switch {
		case !bytes.Equal(a, sshtest.Succeeded):
		case winner >= 0:
			t.Fatal("two passwords have locked the agent")
		default:
			winner = i
		}
	}
	wantAnswer(t, s.dial(t), unlockMessage(string(rune('a'+winner))), sshtest.Succeeded)
}

// lockDelay is the time that a wrong password costs: see package consent.
const lockDelay = 100 * time.Millisecond
