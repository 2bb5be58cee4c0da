package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"
)

// TestPromptCosts checks that a wrong PIN costs one try and all other answers cost
// none, by the TPM's own count.
func TestPromptCosts(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	a := newAskpass(t)
	d := s.serve(a.env())
	// The agent learns about a key at its first use. Do that before the counting.
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
		// Some key files wrongly claim to have a PIN, so the agent tries an empty
		// PIN once.
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

// TestPromptHangUp checks that the agent ends the dialog when its client hangs up, even
// if the program ignores SIGTERM, and that this costs no try.
func TestPromptHangUp(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	a := newAskpass(t)
	d := s.serve(a.env())
	for _, stubborn := range []bool{false, true} {
		s.costs(0, func() {
			conn := connect(t, d.socket)
			requestSignature(t, conn, s.public)
			q := a.next()
			if stubborn {
				q.does("stubborn")
				q.await("deaf")
			}
			conn.Close()
			q.gone()
			childless(t, d.cmd.Process.Pid)
			d.signs(s.pinless)
		})
	}
}

// badPinentry follows the protocol until the agent asks for the PIN.
const badPinentry = `#!/bin/sh
echo OK hello
while read -r word rest; do
	case $word in
	GETINFO) echo "D gnome3"; echo OK ;;
	GETPIN) echo; MISBEHAVE; ;;
	BYE) echo OK; exit ;;
	*) echo OK ;;
	esac
done
`

// TestPromptBadPinentry checks that the agent ends a pinentry that breaks the protocol
// or does not answer, and that this costs no try.
func TestPromptBadPinentry(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	if err := os.Mkdir(filepath.Join(s.home, ".gnupg"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ misbehaves, cause string }{
		"garbage":    {`printf '\377\376 \033[2J\001'; echo`, "not the protocol of a pinentry"},
		"a mebibyte": {`printf 'D '; head -c 1048576 /dev/zero | tr '\000' x; echo; echo OK`, "a line longer than 1000 octets"},
		"NUL":        {`echo 'D 12%0034'; echo OK`, "a NUL octet"},
		"crash":      {`kill -SEGV $$`, "ended without an answer, signal: segmentation fault"},
		"silence":    {`sleep 600`, "no answer at the prompt within 1s"},
		"cancel":     {`echo 'ERR 83886179 Operation cancelled'`, "refused at the prompt"},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.write("pinentry", strings.ReplaceAll(badPinentry, "MISBEHAVE", test.misbehaves), 0o700)
			s.write(".gnupg/gpg-agent.conf", "pinentry-program "+filepath.Join(s.home, "pinentry")+"\n", 0o600)
			limit := "1h"
			if name == "silence" {
				limit = "1s"
			}
			d := s.serve([]string{"DISPLAY=:99"}, "--prompt", "pinentry", "--prompt-timeout", limit)
			s.costs(0, func() {
				if err := d.sign(s.public); err == nil {
					t.Error("the agent signed, want a refusal")
				}
			})
			childless(t, d.cmd.Process.Pid)
			d.signs(s.pinless)
			d.stop()
			if log := d.logged(); !strings.Contains(log, test.cause) {
				t.Errorf("the log does not say %q:\n%s", test.cause, log)
			}
		})
	}
}

// TestPromptLocked checks that a locked agent lists no keys, does not sign, does not
// ask, and uses no try.
func TestPromptLocked(t *testing.T) {
	t.Parallel()
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
				t.Error("the agent signed, want a refusal")
			}
		}
		if keys, err := client.List(); err != nil || len(keys) > 0 {
			t.Error(keys, err)
		}
	})
}
