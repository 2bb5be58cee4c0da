package main

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// TestPromptLockout checks the agent from the first wrong PIN to the end of a lockout.
// It must ask before it uses the last try. In the lockout it must not ask for a PIN,
// must tell the user how long it lasts, and must still use keys without a PIN.
func TestPromptLockout(t *testing.T) {
	t.Parallel()
	s := newScene(t, lockoutParameters{tries: 3, recovery: time.Hour}, "")
	a := newAskpass(t)
	d := s.serve(a.env())

	s.costs(2, func() { // two wrong PINs, and a refusal of the third try
		shown, err := d.asked(a, s.public, "say "+s.wrong(8), "say "+s.wrong(8), "cancel")
		if err == nil {
			t.Error("the agent signed, want a refusal")
		}
		aboutTheLastTry(t, shown[len(shown)-1])
	})
	d.whySays("refused at the prompt")
	s.costs(0, func() { // the next request asks about the last try at once
		shown, err := d.asked(a, s.public, "cancel")
		if err == nil {
			t.Error("the agent signed, want a refusal")
		}
		aboutTheLastTry(t, shown[0])
	})
	s.costs(0, func() { // consent, and the right PIN
		if _, err := d.asked(a, s.public, "say yes", "say "+s.pin); err != nil {
			t.Error(err, d.logged())
		}
	})
	s.costs(1, func() { // consent, and a wrong PIN
		if _, err := d.asked(a, s.public, "say yes", "say "+s.wrong(8)); err == nil {
			t.Error("the agent signed, want a refusal")
		}
	})
	if l, err := s.tap.Lockout(); err != nil || !l.Locked {
		t.Fatalf("%+v, %v; want a TPM in lockout", l, err)
	}

	s.costs(0, func() {
		for range 3 {
			if _, err := d.asked(a, s.public); err == nil { // must not ask
				t.Error("the agent signed in a lockout")
			}
			d.signs(s.pinless)
			for _, list := range [][]string{{"ssh-add", "-l"}, {"tpm-agent", "list", "--key-dir", s.keys}} {
				cmd := d.command(list[0], list[1:]...)
				cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
				if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), ssh.FingerprintSHA256(s.public)) {
					t.Errorf("%q in a lockout: %v\n%s", list, err, out)
				}
			}
		}
	})
	d.whySays("1h") // the time left, rounded up
	if out, code := d.unlocks(s.pin); code == 0 || !strings.Contains(out, "locked") {
		t.Errorf("unlock in a lockout: status %d\n%s", code, out)
	}

	s.setLockout(lockoutParameters{tries: 3, recovery: 2 * time.Second})
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		l, err := s.tap.Lockout()
		if err != nil {
			t.Fatal(err)
		}
		if !l.Locked {
			break
		}
		if time.Since(start) > longEnough {
			t.Fatalf("the TPM stays locked: %+v", l)
		}
	}
	shown, err := d.afterLockout(a)
	if err != nil {
		t.Errorf("after the lockout: %v\n%s", err, d.logged())
	}
	if len(shown) == 0 {
		t.Error("the agent did not ask for the PIN")
	}
}

// aboutTheLastTry fails the test unless q asks for consent to the last try.
func aboutTheLastTry(t *testing.T, q *dialog) {
	t.Helper()
	if q.kind != "confirm" || !strings.Contains(q.text, "lock") {
		t.Errorf("the question about the last try has SSH_ASKPASS_PROMPT=%q:\n%s", q.kind, q.text)
	}
}

// afterLockout requests a signature and answers the prompts. The TPM gives back tries
// over time, so the agent may or may not ask about the last try.
func (d *agentRun) afterLockout(a *askpass) (shown []*dialog, err error) {
	done := make(chan error, 1)
	go func() { done <- d.sign(d.public) }()
	for {
		select {
		case err := <-done:
			return shown, err
		case <-time.After(time.Millisecond):
		}
		q := a.poll()
		if q == nil {
			continue
		}
		shown = append(shown, q)
		switch q.kind {
		case "":
			q.does("say", d.pin)
		case "confirm":
			q.does("say yes")
		default:
			q.does("nothing")
		}
	}
}

// setLockout runs TPM2_DictionaryAttackParameters (TPM 2.0 Part 3, 25.3), with
// the empty password that the lockout hierarchy has in a new TPM.
func (s *scene) setLockout(p lockoutParameters) {
	s.t.Helper()
	body := []byte{0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	for _, n := range []uint32{uint32(p.tries), uint32(p.recovery.Seconds()), uint32(p.recovery.Seconds())} {
		body = binary.BigEndian.AppendUint32(body, n)
	}
	command := binary.BigEndian.AppendUint32([]byte{0x80, 2}, uint32(10+len(body)))
	command = append(append(command, 0, 0, 1, 0x3a), body...)
	conn, err := net.Dial("unix", strings.TrimPrefix(s.tap.Address(), "swtpm:path="))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	answer := make([]byte, 4096)
	if _, err := conn.Write(command); err != nil {
		s.t.Fatal(err)
	}
	n, err := conn.Read(answer)
	if err != nil || n < 10 || binary.BigEndian.Uint32(answer[6:]) != 0 {
		s.t.Fatalf("TPM2_DictionaryAttackParameters: %x, %v", answer[:n], err)
	}
}

// unlocks runs tpm-agent unlock with a PIN.
func (d *agentRun) unlocks(pin string, args ...string) (out string, code int) {
	d.t.Helper()
	cmd := d.command("tpm-agent", append(append([]string{"unlock", "--pin-from", "fd:0"}, args...), "keys/id.tpm")...)
	cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+d.socket)
	cmd.Stdin = strings.NewReader(pin + "\n")
	b, err := cmd.CombinedOutput()
	return string(b), status(d.t, err)
}
