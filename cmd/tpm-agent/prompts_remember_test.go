package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"
)

// TestPromptRemembered checks that with --pin-ttl the agent asks once and then uses the
// remembered PIN at no cost, and that it does not remember a wrong PIN.
func TestPromptRemembered(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	a := newAskpass(t)
	d := s.serve(a.env(), "--pin-ttl", "1h")
	s.costs(1, func() {
		if _, err := d.asked(a, s.public, "say "+s.wrong(8), "cancel"); err == nil {
			t.Error("the agent signed, want a refusal")
		}
	})
	s.costs(0, func() {
		for i := range 20 {
			var answers []string
			if i == 0 {
				answers = []string{"say " + s.pin}
			}
			if _, err := d.asked(a, s.public, answers...); err != nil {
				t.Error(err, d.logged())
			}
		}
	})
}

// TestPromptRememberedPerKey checks that the --pin-ttl of tpm-agent add overrides that
// of the agent.
func TestPromptRememberedPerKey(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ agent, add, says string }{
		{"", "15m", "for 15 minutes"},
		{"1h", "off", "not at all"},
	} {
		s := newScene(t, patient, "")
		a := newAskpass(t)
		var args []string
		if test.agent != "" {
			args = []string{"--pin-ttl", test.agent}
		}
		d := s.serve(a.env(), args...)
		out, err := s.command("tpm-agent", "add", "--socket", d.socket, "--pin-ttl", test.add, "keys/id.tpm").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Its PIN, once typed, is remembered "+test.says+"\n") {
			t.Fatalf("%v: %s", err, out)
		}
		again := []string{"say " + s.pin}
		if test.add != "off" {
			again = nil
		}
		for _, answers := range [][]string{{"say " + s.pin}, again} {
			if _, err := d.asked(a, s.public, answers...); err != nil {
				t.Error(err, d.logged())
			}
		}
	}
}

// waysToForget are the ways to make an agent forget a PIN.
var waysToForget = []struct {
	name   string
	ttl    string
	forget func(t *testing.T, d *agentRun)
	after  func(t *testing.T, d *agentRun) // makes the agent offer the key again; nil if it still does
}{
	{"tpm-agent lock", "1h", func(t *testing.T, d *agentRun) {
		if out, err := d.lock().CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}, nil},
	{"ssh-add -x", "1h", func(t *testing.T, d *agentRun) {
		client := sshagent.NewClient(connect(t, d.socket))
		if err := client.Lock([]byte("lock")); err != nil {
			t.Error(err)
		}
		if err := client.Unlock([]byte("lock")); err != nil {
			t.Error(err)
		}
	}, nil},
	{"SIGUSR1", "session", func(t *testing.T, d *agentRun) {
		if err := d.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
		d.offersAgain() // the agent handles the signal by the next request
	}, nil},
	{"time", "1s", func(t *testing.T, d *agentRun) {
		for start := time.Now(); len(inMemory(t, d.cmd.Process.Pid, d.pin)) > 0 && time.Since(start) < longEnough; {
			time.Sleep(20 * time.Millisecond)
		}
	}, nil},
	{"ssh-add -d", "1h", func(t *testing.T, d *agentRun) {
		cmd := d.command("ssh-add", "-d", filepath.Join(d.keys, "id.pub"))
		cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}, func(t *testing.T, d *agentRun) {
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Error(err)
		}
		d.offersAgain()
	}},
}

// TestPromptMemoryFileRemoved checks that the agent forgets a PIN when its key file is
// removed.
func TestPromptMemoryFileRemoved(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, randomPIN(memoryPIN))
	a := newAskpass(t)
	d := s.serve(a.env(), "--pin-ttl", "1h")
	if _, err := d.asked(a, s.public, "say "+s.pin); err != nil {
		t.Fatal(err, d.logged())
	}
	if err := os.Remove(filepath.Join(s.keys, "id.tpm")); err != nil {
		t.Fatal(err)
	}
	d.signs(s.pinless) // makes the agent read the directory
	for start := time.Now(); len(inMemory(t, d.cmd.Process.Pid, s.pin)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > longEnough {
			t.Fatal("the PIN stays in memory after its key file was removed")
		}
	}
}

// TestPromptMemoryForgotten checks that a PIN is not in memory any more after it was
// forgotten, and that the agent then asks again.
func TestPromptMemoryForgotten(t *testing.T) {
	t.Parallel()
	// A longer PIN is hashed before use, so its digest is as secret as the PIN.
	for given, n := range map[string]int{"typed": memoryPIN, "unlock": 100} {
		for _, way := range waysToForget {
			t.Run(given+", "+way.name, func(t *testing.T) {
				s := newScene(t, patient, randomPIN(n))
				a := newAskpass(t)
				d := s.serve(a.env(), "--pin-ttl", way.ttl)
				s.costs(0, func() {
					if given == "unlock" {
						if out, code := d.unlocks(s.pin); code != 0 {
							t.Fatalf("unlock: status %d\n%s", code, out)
						}
					} else if _, err := d.asked(a, s.public, "say "+s.pin); err != nil {
						t.Fatal(err, d.logged())
					}
					if way.name != "time" {
						d.signs(s.public)
						if n := len(inMemory(t, d.cmd.Process.Pid, s.pin)); n == 0 {
							t.Error("a remembered PIN was not found in memory")
						}
					}
					way.forget(t, d)
					digest := sha256.Sum256([]byte(s.pin))
					for _, secret := range []string{s.pin, string(digest[:])} {
						if found := inMemory(t, d.cmd.Process.Pid, secret); len(found) > 0 {
							t.Errorf("the forgotten PIN is in memory:\n%s", strings.Join(found, "\n"))
						}
					}
					// Search before this step: for a signal handler the kernel saves the
					// registers in memory, and they may still contain copied octets.
					if way.after != nil {
						way.after(t, d)
					}
					if _, err := d.asked(a, s.public, "cancel"); err == nil {
						t.Error("the agent signed, want a refusal")
					}
				})
			})
		}
	}
}

// offersAgain waits until the agent lists the key with the PIN.
func (d *agentRun) offersAgain() {
	d.t.Helper()
	client := sshagent.NewClient(connect(d.t, d.socket))
	for start := time.Now(); time.Since(start) < longEnough; time.Sleep(time.Millisecond) {
		keys, err := client.List()
		if err != nil {
			d.t.Fatal(err)
		}
		for _, key := range keys {
			if string(key.Blob) == string(d.public.Marshal()) {
				return
			}
		}
	}
	d.t.Error("the agent does not offer the key again")
}

// TestPromptUnlock checks that a wrong PIN given to unlock costs one try and is not
// remembered.
func TestPromptUnlock(t *testing.T) {
	t.Parallel()
	for _, n := range []int{4, 32, 33, 100} {
		t.Run(fmt.Sprintf("%d octets", n), func(t *testing.T) {
			s := newScene(t, patient, randomPIN(n))
			a := newAskpass(t)
			d := s.serve(a.env())
			s.costs(1, func() {
				if out, code := d.unlocks(s.wrong(n)); code == 0 || !strings.Contains(out, "wrong PIN") {
					t.Errorf("status %d\n%s", code, out)
				}
				if _, err := d.asked(a, s.public, "cancel"); err == nil {
					t.Error("the agent signed, want a refusal")
				}
			})
			s.costs(0, func() {
				if out, code := d.unlocks(s.pin); code != 0 {
					t.Errorf("status %d\n%s", code, out)
				}
				d.signs(s.public)
			})
		})
	}
}

// TestPromptPINFromFile checks that the agent tries a wrong PIN from a file only once
// and then asks the user, and that it uses the file again when it has changed.
func TestPromptPINFromFile(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, "")
	a := newAskpass(t)
	s.write("pin", s.wrong(8)+"\n", 0o600)
	d := s.serve(a.env(), "--pin-from", ssh.FingerprintSHA256(s.public)+"=file:"+filepath.Join(s.home, "pin"))
	s.costs(1, func() {
		for range 3 {
			if _, err := d.asked(a, s.public, "say "+s.pin); err != nil {
				t.Error(err, d.logged())
			}
		}
	})
	s.write("pin", s.pin+"\n", 0o600)
	s.costs(0, func() {
		for range 3 {
			if _, err := d.asked(a, s.public); err != nil {
				t.Error(err, d.logged())
			}
		}
	})
}
