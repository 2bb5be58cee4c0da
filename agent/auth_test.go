package agent

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// locked returns an identity with a PIN.
func locked(pin string, tries int, required bool) (Identity, *softKey) {
	k := &softKey{Signer: sshtest.P256(), pin: []byte(pin), tries: tries, required: required}
	return identityOf("locked", k), k
}

// TestPIN checks what the owner is asked, and which PINs are tried.
func TestPIN(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		required bool
		tries    int
		answers  []string
		tried    []string // the values that the key was tried with
		ok       bool
		left     []int // tries left, as each prompt says
	}{
		"right":                       {true, 32, []string{"1234"}, []string{"1234"}, true, []int{-1}},
		"hint was wrong":              {false, 32, []string{"1234"}, []string{"", "1234"}, true, []int{31}},
		"wrong, then right":           {true, 32, []string{"1", "1234"}, []string{"1", "1234"}, true, []int{-1, 31}},
		"wrong three times":           {true, 32, []string{"1", "2", "3", "1234"}, []string{"1", "2", "3"}, false, []int{-1, 31, 30}},
		"the same wrong one again":    {true, 32, []string{"1", "1", "1234"}, []string{"1", "1234"}, true, []int{-1, 31, 31}},
		"an empty PIN after empty":    {false, 32, []string{"", "1234"}, []string{"", "1234"}, true, []int{31, 31}},
		"the last try is announced":   {true, 2, []string{"1", "1234"}, []string{"1", "1234"}, true, []int{-1, 1}},
		"stops at the lockout":        {true, 2, []string{"1", "2", "1234"}, []string{"1", "2"}, false, []int{-1, 1}},
		"number of tries unknown":     {true, -1, []string{"1", "1234"}, []string{"1", "1234"}, true, []int{-1, -1}},
		"the user says no":            {true, 32, nil, nil, false, []int{-1}},
		"the user says no after that": {true, 32, []string{"1"}, []string{"1"}, false, []int{-1, 31}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, key := locked("1234", tt.tries, tt.required)
			user := &scripted{answers: tt.answers}
			s := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user})
			answer := sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0))
			if ok := !bytes.Equal(answer, sshtest.Failed); ok != tt.ok {
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
			if s.log.Count("1234") > 0 {
				t.Error("the PIN is in the log")
			}
		})
	}
}

// TestLastTryIsRemembered checks that the first prompt of the next request
// also says how many tries are left.
func TestLastTryIsRemembered(t *testing.T) {
	t.Parallel()
	id, _ := locked("1234", 4, true)
	user := &scripted{answers: []string{"1", "2", "3", "1234"}}
	nc := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user}).dial(t)
	sshtest.Exchange(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0))
	sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0)))
	if p := user.asked[3]; p.TriesLeft != 1 || p.Retry {
		t.Errorf("asked %+v", p)
	}
}

// TestHintIsTriedOnce checks that an empty auth value costs one try, not one
// for each signature.
func TestHintIsTriedOnce(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, false)
	user := &scripted{answers: []string{"1234", "1234"}}
	nc := serve(t, Config{Sources: []Source{fixed(id)}, Prompter: user}).dial(t)
	for range 2 {
		sshtest.VerifyAnswer(t, id.Public, nil, sshtest.Exchange(t, nc, sshtest.SignMessage(id.Public.Marshal(), nil, 0)))
	}
	if got := key.tried(); !slices.Equal(got, []string{"", "1234", "1234"}) {
		t.Errorf("tried %q", got)
	}
}

// TestNoPrompter checks that a key with a PIN is not tried if the owner
// cannot be asked.
func TestNoPrompter(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	s := serve(t, Config{Sources: []Source{fixed(id)}})
	if m := sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0)); !bytes.Equal(m, sshtest.Failed) {
		t.Errorf("answer %x", m)
	}
	if len(key.tried()) > 0 || s.log.Count(string(refusal.NoPrompt)) != 1 {
		t.Errorf("tried %q, log %s", key.tried(), s.log)
	}
}

// TestRemovedWhilePrompting checks that a key that is removed while a prompt
// is open signs nothing, not even for the request behind the prompt.
func TestRemovedWhilePrompting(t *testing.T) {
	t.Parallel()
	id, key := locked("1234", 32, true)
	var s *testServer
	s = serve(t, Config{Sources: []Source{fixed(id)}, Prompter: prompterFunc(func(context.Context, ask.AuthPrompt) ([]byte, error) {
		if m := sshtest.Exchange(t, s.dial(t), []byte{wire.MsgRemoveAllIdentities}); !bytes.Equal(m, sshtest.Succeeded) {
			t.Errorf("remove all: %x", m)
		}
		return []byte("1234"), nil
	})})
	if m := sshtest.Exchange(t, s.dial(t), sshtest.SignMessage(id.Public.Marshal(), nil, 0)); !bytes.Equal(m, sshtest.Failed) {
		t.Errorf("answer %x", m)
	}
	if len(key.tried()) > 0 {
		t.Error("the key was used")
	}
}
