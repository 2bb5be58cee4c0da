package agent

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"
)

// locked is an identity with a PIN.
func locked(pin string, tries int, required bool) (Identity, *softKey) {
	k := &softKey{Signer: p256(), pin: []byte(pin), tries: tries, required: required}
	return identityOf("locked", k), k
}

func TestPIN(t *testing.T) {
	tests := map[string]struct {
		required bool
		tries    int
		answers  []string
		tried    []string // by the key
		ok       bool
		left     []int // as told in each prompt
	}{
		"right":                       {true, 32, []string{"1234"}, []string{"1234"}, true, []int{-1}},
		"hint was wrong":              {false, 32, []string{"1234"}, []string{"", "1234"}, true, []int{31}},
		"wrong, then right":           {true, 32, []string{"1", "1234"}, []string{"1", "1234"}, true, []int{-1, 31}},
		"wrong three times":           {true, 32, []string{"1", "2", "3", "1234"}, []string{"1", "2", "3"}, false, []int{-1, 31, 30}},
		"the same wrong one again":    {true, 32, []string{"1", "1", "1234"}, []string{"1", "1234"}, true, []int{-1, 31, 31}},
		"an empty one after empty":    {false, 32, []string{"", "1234"}, []string{"", "1234"}, true, []int{31, 31}},
		"last try is told":            {true, 2, []string{"1", "1234"}, []string{"1", "1234"}, true, []int{-1, 1}},
		"stops at the lockout":        {true, 2, []string{"1", "2", "1234"}, []string{"1", "2"}, false, []int{-1, 1}},
		"number of tries not known":   {true, -1, []string{"1", "1234"}, []string{"1", "1234"}, true, []int{-1, -1}},
		"the user says no":            {true, 32, nil, nil, false, []int{-1}},
		"the user says no after that": {true, 32, []string{"1"}, []string{"1"}, false, []int{-1, 31}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			id, key := locked("1234", tt.tries, tt.required)
			user := &scripted{answers: tt.answers}
			s := serve(t, Config{Source: fixed(id), Prompter: user})
			answer := ask(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0))
			if ok := !bytes.Equal(answer, failed); ok != tt.ok {
				t.Errorf("answer %x", answer)
			}
			if got := key.tried(); !slices.Equal(got, tt.tried) {
				t.Errorf("the key was tried with %q, not %q", got, tt.tried)
			}
			var left []int
			for i, p := range user.asked {
				left = append(left, p.TriesLeft)
				if p.Name != id.Name || p.Fingerprint != ssh.FingerprintSHA256(id.Public) {
					t.Errorf("prompt %d is about %q", i, p.Name)
				}
			}
			if !slices.Equal(left, tt.left) {
				t.Errorf("prompts said %d tries left, not %d", left, tt.left)
			}
			user.checkWiped(t)
			if s.log.count("1234") > 0 {
				t.Error("the PIN is in the log")
			}
		})
	}
}

// TestLastTryIsRemembered: the next request's first prompt says it as well.
func TestLastTryIsRemembered(t *testing.T) {
	id, _ := locked("1234", 4, true)
	user := &scripted{answers: []string{"1", "2", "3", "1234"}}
	nc := serve(t, Config{Source: fixed(id), Prompter: user}).dial(t)
	ask(t, nc, signMessage(id.Public.Marshal(), nil, 0))
	verify(t, id.Public, nil, ask(t, nc, signMessage(id.Public.Marshal(), nil, 0)))
	if p := user.asked[3]; p.TriesLeft != 1 || p.Retry {
		t.Errorf("asked %+v", p)
	}
}

// TestHintIsTriedOnce: an empty auth value costs one try, not one for each
// signature.
func TestHintIsTriedOnce(t *testing.T) {
	id, key := locked("1234", 32, false)
	user := &scripted{answers: []string{"1234", "1234"}}
	nc := serve(t, Config{Source: fixed(id), Prompter: user}).dial(t)
	for range 2 {
		verify(t, id.Public, nil, ask(t, nc, signMessage(id.Public.Marshal(), nil, 0)))
	}
	if got := key.tried(); !slices.Equal(got, []string{"", "1234", "1234"}) {
		t.Errorf("tried %q", got)
	}
}

func TestNoPrompter(t *testing.T) {
	id, key := locked("1234", 32, true)
	s := serve(t, Config{Source: fixed(id)})
	if m := ask(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0)); !bytes.Equal(m, failed) {
		t.Errorf("answer %x", m)
	}
	if len(key.tried()) > 0 || s.log.count(string(CauseNoPrompt)) != 1 {
		t.Errorf("tried %q, log %s", key.tried(), s.log)
	}
}

// TestRemovedWhilePrompting: after a removal nothing is signed, not even what
// was asked for before.
func TestRemovedWhilePrompting(t *testing.T) {
	id, key := locked("1234", 32, true)
	var s *testServer
	s = serve(t, Config{Source: fixed(id), Prompter: prompterFunc(func(context.Context, AuthPrompt) ([]byte, error) {
		if m := ask(t, s.dial(t), []byte{msgRemoveAllIdentities}); !bytes.Equal(m, succeeded) {
			t.Errorf("remove all: %x", m)
		}
		return []byte("1234"), nil
	})})
	if m := ask(t, s.dial(t), signMessage(id.Public.Marshal(), nil, 0)); !bytes.Equal(m, failed) {
		t.Errorf("answer %x", m)
	}
	if len(key.tried()) > 0 {
		t.Error("the key was used")
	}
}
