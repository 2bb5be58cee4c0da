package agent

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

func lockMessage(password string) []byte {
	return appendString([]byte{msgLock}, password)
}

func unlockMessage(password string) []byte {
	return appendString([]byte{msgUnlock}, password)
}

func wantAnswer(t *testing.T, nc net.Conn, message, want []byte) {
	t.Helper()
	if got := ask(t, nc, message); !bytes.Equal(got, want) {
		t.Errorf("request %x is answered %x, want %x", message[:min(len(message), 20)], got, want)
	}
}

func TestLock(t *testing.T) {
	id := plain("p256", p256())
	blob := id.Public.Marshal()
	s := serve(t, Config{Source: fixed(id)})
	nc, other := s.dial(t), s.dial(t)
	empty := []byte{msgIdentitiesAnswer, 0, 0, 0, 0}

	wantAnswer(t, nc, unlockMessage("secret"), failed)
	wantAnswer(t, nc, lockMessage(""), failed)
	wantAnswer(t, nc, lockMessage("secret"), succeeded)
	for _, nc := range []net.Conn{nc, other, s.dial(t)} {
		wantAnswer(t, nc, listThem, empty)
		wantAnswer(t, nc, signMessage(blob, []byte("data"), 0), failed)
		wantAnswer(t, nc, removeMessage(blob), failed)
		wantAnswer(t, nc, []byte{msgRemoveAllIdentities}, failed)
		wantAnswer(t, nc, lockMessage("secret"), failed)
		wantAnswer(t, nc, lockMessage("another"), failed)
		wantAnswer(t, nc, appendString([]byte{msgExtension}, extQuery), failed)
		wantAnswer(t, nc, appendString([]byte{msgExtension}, extSessionBind), []byte{msgExtensionFailure})
	}
	wantAnswer(t, other, unlockMessage(""), failed)
	wantAnswer(t, other, unlockMessage("Secret"), failed)
	wantAnswer(t, other, unlockMessage("secret"), succeeded)
	wantAnswer(t, other, unlockMessage("secret"), failed)
	if n := countListed(t, ask(t, nc, listThem)); n != 1 {
		t.Errorf("%d keys are left after locking and unlocking, want 1", n)
	}
	verify(t, id.Public, []byte("data"), ask(t, nc, signMessage(blob, []byte("data"), 0)))
	wantAnswer(t, nc, lockMessage("again"), succeeded)
	wantAnswer(t, nc, unlockMessage("secret"), failed)
	wantAnswer(t, nc, unlockMessage("again"), succeeded)
}

// TestLockMalformed: ssh-agent exits for these; we go on, and are not locked.
func TestLockMalformed(t *testing.T) {
	s := serve(t, Config{Source: fixed(plain("p256", p256()))})
	nc := s.dial(t)
	for _, m := range [][]byte{{msgLock}, {msgUnlock}, {msgLock, 0, 0}, {msgLock, 0, 0, 0, 9, 'a'}, {msgUnlock, 255, 255, 255, 255}} {
		wantAnswer(t, nc, m, failed)
	}
	if n := countListed(t, ask(t, nc, listThem)); n != 1 {
		t.Errorf("%d keys are listed, want 1", n)
	}
}

// TestUnlockDelay counts in the agent's own time what wrong passwords wait
// for, and that nobody else waits.
func TestUnlockDelay(t *testing.T) {
	clock := newHandClock()
	s := serve(t, Config{Source: fixed(plain("p256", p256())), Clock: clock})
	nc, other := s.dial(t), s.dial(t)
	wantAnswer(t, nc, lockMessage("secret"), succeeded)
	for n := 1; n <= 120; n++ {
		want := min(time.Duration(n)*lockDelay, maxLockDelay)
		send(t, nc, unlockMessage("wrong"))
		due := <-clock.set
		if wait := due - clock.Now(); wait != want {
			t.Fatalf("wrong password %d waits for %v, want %v", n, wait, want)
		}
		ask(t, other, listThem) // is answered, though time stands still
		clock.forward(want)
		if got := recv(t, nc); !bytes.Equal(got, failed) {
			t.Fatalf("wrong password %d is answered %x", n, got)
		}
	}
	wantAnswer(t, nc, unlockMessage("secret"), succeeded) // the wait is over
	wantAnswer(t, nc, lockMessage("secret"), succeeded)
	send(t, nc, unlockMessage("wrong"))
	if due := <-clock.set; due-clock.Now() != lockDelay {
		t.Errorf("after a success a wrong password waits for %v, want %v", due-clock.Now(), lockDelay)
	}
	clock.forward(lockDelay)
	recv(t, nc)
}

// TestUnlockHangingUp: who hangs up and dials again is not let in earlier, and
// a right password waits for the wrong ones before it.
func TestUnlockHangingUp(t *testing.T) {
	clock := newHandClock()
	s := serve(t, Config{Source: fixed(), Clock: clock})
	wantAnswer(t, s.dial(t), lockMessage("secret"), succeeded)
	for n := 1; n <= 3; n++ {
		nc := s.dial(t)
		send(t, nc, unlockMessage("wrong"))
		for due := range clock.set {
			if due-clock.Now() == time.Duration(n)*lockDelay {
				break // this one's own wait, behind the one that it found
			}
			clock.forward(due - clock.Now())
		}
		nc.Close()
	}
	nc := s.dial(t)
	send(t, nc, unlockMessage("secret"))
	due := <-clock.set
	if wait := due - clock.Now(); wait != 3*lockDelay {
		t.Errorf("the right password waits for %v, want %v", wait, 3*lockDelay)
	}
	clock.forward(due - clock.Now())
	if got := recv(t, nc); !bytes.Equal(got, succeeded) {
		t.Errorf("the right password is answered %x", got)
	}
}

// TestLockEndsPrompts: a dialog that is open when the agent gets locked
// vanishes, and what was typed is not used.
func TestLockEndsPrompts(t *testing.T) {
	open := make(chan struct{})
	user := prompterFunc(func(ctx context.Context, _ AuthPrompt) ([]byte, error) {
		close(open)
		<-ctx.Done()
		return []byte("1234"), nil
	})
	key := &softKey{Signer: p256(), required: true, pin: []byte("1234")}
	id := identityOf("pin", key)
	s := serve(t, Config{Source: fixed(id), Prompter: user})
	signer, locker := s.dial(t), s.dial(t)
	send(t, signer, signMessage(id.Public.Marshal(), []byte("data"), 0))
	<-open
	wantAnswer(t, locker, lockMessage("secret"), succeeded)
	if got := recv(t, signer); !bytes.Equal(got, failed) {
		t.Errorf("the request with the open dialog is answered %x", got)
	}
	if tried := key.tried(); len(tried) > 0 {
		t.Errorf("a locked agent tried %q", tried)
	}
}

// TestLockIsTheReason: what is told of a question that ended so is that, also when
// the agent is unlocked already.
func TestLockIsTheReason(t *testing.T) {
	id, _ := locked("1234", 32, true)
	open, taken := make(chan struct{}), make(chan struct{})
	s := serve(t, Config{Source: fixed(id), Prompter: prompterFunc(func(ctx context.Context, _ AuthPrompt) ([]byte, error) {
		close(open)
		<-ctx.Done()
		<-taken
		return nil, fmt.Errorf("asking: %w", ctx.Err())
	})})
	signer, locker := s.dial(t), s.dial(t)
	send(t, signer, signMessage(id.Public.Marshal(), nil, 0))
	<-open
	wantAnswer(t, locker, lockMessage("secret"), succeeded)
	wantAnswer(t, locker, unlockMessage("secret"), succeeded)
	close(taken)
	if got := recv(t, signer); !bytes.Equal(got, failed) {
		t.Errorf("answer %x", got)
	}
	kept := s.recent.list()
	if len(kept) != 1 || kept[0].Cause != string(CauseLocked) || kept[0].Detail != "it was locked while the question was open" {
		t.Errorf("kept %+v", kept)
	}
}

// TestLockRace lets many lock at once: one of them does, with its password.
func TestLockRace(t *testing.T) {
	s := serve(t, Config{Source: fixed(), Clock: newHandClock()})
	var wg sync.WaitGroup
	answers := make([][]byte, 8)
	for i := range answers {
		nc := s.dial(t)
		wg.Go(func() {
			send(t, nc, lockMessage(string(rune('a'+i))))
			answers[i], _ = tryRecv(nc)
		})
	}
	wg.Wait()
	winner := -1
	for i, a := range answers {
		switch {
		case !bytes.Equal(a, succeeded):
		case winner >= 0:
			t.Fatal("two passwords have locked the agent")
		default:
			winner = i
		}
	}
	wantAnswer(t, s.dial(t), unlockMessage(string(rune('a'+winner))), succeeded)
}
