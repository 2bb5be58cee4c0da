package main

import (
	"testing"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"
)

// What each way to a PIN costs, by the TPM's own count of wrong tries.

// TestPromptCosts: a wrong PIN costs one try, and everything else none.
func TestPromptCosts(t *testing.T) {
	s := newScene(t, patient, "")
	a := newAskpass(t)
	d := s.serve(a.env())
	// What is learned of a key at its first use is learned before the counting.
	if _, err := d.asked(a, s.public, "say "+s.pin); err != nil {
		t.Fatal(err, d.logged())
	}
	one, two, three := "say "+s.wrong(8), "say "+s.wrong(8), "say "+s.wrong(8)
	for _, test := range []struct {
		name    string
		answers []string
		cost    int
		signs   bool
	}{
		{"right", []string{"say " + s.pin}, 0, true},
		{"a mistake", []string{one, "say " + s.pin}, 1, true},
		{"three mistakes", []string{one, two, three}, 3, false},
		{"the same mistake twice", []string{one, one, "say " + s.pin}, 1, true},
		{"the same mistake thrice", []string{one, one, one}, 1, false},
		{"cancel", []string{"cancel"}, 0, false},
		{"a mistake and cancel", []string{one, "cancel"}, 1, false},
		{"a crash", []string{"crash " + s.pin}, 0, false},
		{"a mebibyte", []string{"big"}, 0, false},
		// There are key files that say they have a PIN and have none, so an
		// empty one is tried, once.
		{"an empty line", []string{"say", "say " + s.pin}, 1, true},
		{"an empty line again", []string{"say", "say " + s.pin}, 0, true},
		{"nothing", []string{"nothing", "cancel"}, 0, false},
		{"a NUL", []string{"nul " + s.pin}, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.t = t
			s.costs(test.cost, func() {
				if _, err := d.asked(a, s.public, test.answers...); (err == nil) != test.signs {
					t.Errorf("%v; want a signature: %v\n%s", err, test.signs, d.logged())
				}
			})
		})
		s.t = t
	}
}

// TestPromptHangUp: a client that hangs up in the dialog takes it with it, and
// costs nothing, also if the PIN that is typed then would be wrong.
func TestPromptHangUp(t *testing.T) {
	s := newScene(t, patient, "")
	a := newAskpass(t)
	d := s.serve(a.env())
	s.costs(0, func() {
		conn := connect(t, d.socket)
		requestSignature(t, conn, s.public)
		q := a.next()
		conn.Close()
		q.gone()
		d.signs(s.pinless)
	})
}

// TestPromptLocked: an agent that is locked lists nothing, signs nothing, asks
// nobody, and costs nothing.
func TestPromptLocked(t *testing.T) {
	s := newScene(t, patient, "")
	a := newAskpass(t)
	d := s.serve(a.env())
	client := sshagent.NewClient(connect(t, d.socket))
	if err := client.Lock([]byte("lock")); err != nil {
		t.Fatal(err)
	}
	s.costs(0, func() {
		for _, key := range []ssh.PublicKey{s.public, s.pinless} {
			if _, err := d.asked(a, key); err == nil {
				t.Error("it signs")
			}
		}
		if keys, err := client.List(); err != nil || len(keys) > 0 {
			t.Error(keys, err)
		}
	})
}
