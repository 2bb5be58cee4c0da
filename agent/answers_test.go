package agent

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// owned is a server that takes its clients for processes of its owner, with a
// key that has a PIN and one that has none.
func owned(t *testing.T, user Prompter, clock Clock) (s *testServer, id, free Identity, key *softKey) {
	t.Helper()
	id, key = locked("1234", 32, true)
	free = plain("free", p384())
	s = serveLocal(t, true, Config{Source: fixed(id, free), Prompter: user, Clock: clock})
	return s, id, free, key
}

func unlockWith(pin string, id Identity, ttl time.Duration) []byte {
	return (&UnlockRequest{Blob: id.Public.Marshal(), PIN: []byte(pin), TTL: ttl}).Marshal()
}

func unlockedBy(answer []byte) error {
	_, err := ParseUnlockAnswer(answer)
	return err
}

func TestUnlockKey(t *testing.T) {
	clock := newHandClock()
	s, id, free, key := owned(t, nil, clock)
	nc := s.dial(t)
	status := func(id Identity) KeyStatus {
		t.Helper()
		st, err := ParseStatusAnswer(ask(t, nc, (&StatusRequest{Blob: id.Public.Marshal()}).Marshal()))
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := status(id); st != (KeyStatus{Name: id.Name, NeedsPIN: true, TriesLeft: -1}) {
		t.Errorf("at first: %+v", st)
	}
	var wrong *WrongPINError
	if err := unlockedBy(ask(t, nc, unlockWith("4321", id, 0))); !errors.As(err, &wrong) || wrong.TriesLeft != 31 {
		t.Errorf("a wrong PIN: %v", err)
	}
	request := signMessage(id.Public.Marshal(), nil, 0)
	wantAnswer(t, nc, request, failed)
	if err := unlockedBy(ask(t, nc, unlockWith("", id, 0))); err == nil || errors.Is(err, ErrNoPIN) {
		t.Errorf("an empty PIN: %v", err)
	}
	if err := unlockedBy(ask(t, nc, unlockWith("1234", id, time.Minute))); err != nil {
		t.Fatal(err)
	}
	if st := status(id); !st.Remembered {
		t.Errorf("afterwards: %+v", st)
	}
	verify(t, id.Public, nil, ask(t, nc, request))
	clock.forward(time.Minute)
	wantAnswer(t, nc, request, failed)
	if err := unlockedBy(ask(t, nc, unlockWith("1234", id, 0))); err != nil {
		t.Fatal(err)
	}
	clock.forward(10000 * time.Hour)
	verify(t, id.Public, nil, ask(t, nc, request))
	if n, err := ParseForgetAnswer(ask(t, nc, ForgetRequest())); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	wantAnswer(t, nc, request, failed)
	if got := key.tried(); !slices.Equal(got, []string{"4321", "1234", "1234", "1234", "1234"}) {
		t.Errorf("tried %q", got)
	}

	if err := unlockedBy(ask(t, nc, unlockWith("1234", free, 0))); !errors.Is(err, ErrNoPIN) {
		t.Errorf("a key without a PIN: %v", err)
	}
	if st := status(free); st.NeedsPIN {
		t.Errorf("a key without a PIN: %+v", st)
	}
	if err := unlockedBy(ask(t, nc, unlockWith("1234", plain("x", p521()), 0))); !errors.Is(err, ErrNoKey) {
		t.Errorf("no such key: %v", err)
	}
	if _, err := ParseStatusAnswer(ask(t, nc, (&StatusRequest{Blob: []byte("x")}).Marshal())); !errors.Is(err, ErrNoKey) {
		t.Errorf("no such key: %v", err)
	}
	if life, err := ParseUnlockAnswer(ask(t, nc, unlockWith("1234", id, 0))); life != Forever || err != nil {
		t.Errorf("remembered for %v, %v", life, err)
	}
	if s.log.count("1234") > 0 || s.log.count("4321") > 0 {
		t.Error("a PIN is in the log")
	}
}

// TestUnlockAnswersDialog: who has a dialog open and gives the PIN elsewhere
// need not type it twice.
func TestUnlockAnswersDialog(t *testing.T) {
	user := newDialogs()
	s, id, _, _ := owned(t, user, nil)
	signing := s.dial(t)
	send(t, signing, signMessage(id.Public.Marshal(), nil, 0))
	<-user.open
	done := make(chan error)
	go func() { done <- unlockedBy(ask(t, s.dial(t), unlockWith("1234", id, 0))) }()
	<-user.closed
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	verify(t, id.Public, nil, recv(t, signing))
}

func TestRefusals(t *testing.T) {
	s, id, _, _ := owned(t, &scripted{answers: []string{"1", "2", "3"}}, nil)
	nc := s.dial(t)
	wantAnswer(t, nc, signMessage(id.Public.Marshal(), nil, 0), failed)
	wantAnswer(t, nc, signMessage([]byte("no key\x00"), nil, 0), failed)
	got, err := ParseRefusals(ask(t, nc, RefusalsRequest()))
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got[0].Cause != string(CauseWrongAuth) || got[0].Key != id.Name || got[0].Request != "sign" ||
		time.Since(got[0].Time) > time.Minute || got[1].Cause != string(CauseUnknownKey) || got[1].Fingerprint == "" {
		t.Errorf("%+v", got)
	}
	// There are never more than can be told, of whatever size.
	long := strings.Repeat("\x00\xff", 50000)
	for range 10 * maxRecent {
		s.recent.add(Refusal{Request: long, Key: long, Fingerprint: long, Cause: long, Detail: long})
	}
	if got, err := ParseRefusals(ask(t, nc, RefusalsRequest())); err != nil || len(got) != maxRecent {
		t.Errorf("%d, %v", len(got), err)
	}
	// What is told of a usual one is whole.
	detail := strings.Repeat("a way to ask, and why it was passed over; ", 20)
	s.recent.add(Refusal{Detail: detail})
	if got, err := ParseRefusals(ask(t, nc, RefusalsRequest())); err != nil || got[len(got)-1].Detail != detail {
		t.Errorf("%+v, %v", got[len(got)-1:], err)
	}
}

// TestOwnerOnly: nobody gets an answer who may be elsewhere, and while the agent
// is locked PINs can be forgotten, and that is all.
func TestOwnerOnly(t *testing.T) {
	id, key := locked("1234", 32, true)
	requests := map[string][]byte{
		extKeyStatus:  (&StatusRequest{Blob: id.Public.Marshal()}).Marshal(),
		extUnlockKey:  unlockWith("1234", id, 0),
		extForgetPINs: ForgetRequest(),
		extRefusals:   RefusalsRequest(),
		extHeldKeys:   HeldRequest(0),
	}
	query := message(msgExtension, extQuery)
	for _, local := range []bool{false, true} {
		s := serveLocal(t, local, Config{Source: fixed(id)})
		bound, nc := s.dial(t), s.dial(t)
		for name := range requests {
			if told := strings.Contains(string(ask(t, nc, query)), name); told != local {
				t.Errorf("%s is named: %t", name, told)
			}
		}
		wantAnswer(t, bound, bindMessage(true), succeeded)
		for name, request := range requests {
			wantAnswer(t, bound, request, failed)
			if !local {
				wantAnswer(t, nc, request, failed)
				continue
			}
			if m := ask(t, nc, append(bytes.Clone(request), 0)); !bytes.Equal(m, failed) {
				t.Errorf("%s with something behind it gets %x", name, m)
			}
			for i := len(extKeyStatus); i < len(request); i++ {
				if m := ask(t, nc, request[:i]); !bytes.Equal(m, failed) {
					t.Errorf("the first %d bytes of %s get %x", i, name, m)
				}
			}
		}
		wantAnswer(t, nc, lockMessage("x"), succeeded)
		for name, request := range requests {
			answered := !bytes.Equal(ask(t, nc, request), failed)
			if answered != (local && name == extForgetPINs) {
				t.Errorf("locked, %s is answered: %t", name, answered)
			}
		}
	}
	if len(key.tried()) > 0 {
		t.Errorf("tried %q", key.tried())
	}
}

func FuzzOwnerRequests(f *testing.F) {
	id, _ := locked("1234", 32, true)
	for _, m := range [][]byte{
		(&StatusRequest{Blob: id.Public.Marshal()}).Marshal(), unlockWith("1234", id, 5), ForgetRequest(), RefusalsRequest(), HeldRequest(1),
	} {
		f.Add(m)
	}
	a := New(Config{Source: fixed(id)})
	f.Fuzz(func(t *testing.T, m []byte) {
		w := &wire{rest: m}
		if w.byte() != msgExtension {
			return
		}
		name := w.text()
		if _, known := ownerAnswers[name]; !known || w.err != nil {
			return
		}
		answer := a.answerOwner(t.Context(), &conn{}, name, w)
		if len(answer) < 5 || len(answer) > maxMessage {
			t.Errorf("an answer of %d bytes", len(answer))
		}
	})
}

func FuzzOwnerAnswers(f *testing.F) {
	f.Add(response(extKeyStatus, (&KeyStatus{Name: "k", TriesLeft: 3}).marshal(nil)))
	f.Add(response(extUnlockKey, marshalUnlock(0, &WrongPINError{2})))
	f.Add(response(extForgetPINs, []byte{0, 0, 0, 1}))
	f.Add(response(extRefusals, (&Refusal{Request: "sign"}).marshal(nil)))
	f.Add(response(extHeldKeys, append(make([]byte, 4), (&Held{Comment: "c", Destinations: []string{"a>b"}}).marshal()...)))
	f.Fuzz(func(_ *testing.T, answer []byte) {
		ParseStatusAnswer(answer)
		ParseUnlockAnswer(answer)
		ParseForgetAnswer(answer)
		ParseRefusals(answer)
		ParseHeld(answer)
	})
}
