package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
)

// unlock is the command, with a key of the scene.
func (d *agentRun) unlock(args ...string) *exec.Cmd {
	d.t.Helper()
	return d.command("tpm-agent", append([]string{"unlock", "--socket", d.socket}, args...)...)
}

// TestUnlockOnTerminal: a mistake costs one try, typed twice it costs no more,
// and after the right PIN the agent signs without a question.
func TestUnlockOnTerminal(t *testing.T) {
	sc := newScene(t, patient, "")
	d := sc.serve(nil, "--prompt", "none")
	if err := d.sign(sc.public); err == nil {
		t.Fatal("it signs without a PIN")
	}
	mistake := sc.wrong(8)
	sc.costs(1, func() {
		s := sit(t, d.unlock("keys/id.tpm", "keys/plain.pub"))
		s.WaitFor("31 tries left before the TPM locks itself.")
		s.WaitFor("Enter PIN for keys/id.tpm: ")
		if s.Echoes() {
			t.Error("the PIN can be seen")
		}
		s.Type("\n") // is no try
		s.WaitFor("none was typed")
		s.WaitFor("Enter PIN for keys/id.tpm: ")
		for range 2 {
			s.Type(mistake + "\n")
			s.WaitFor("Wrong PIN. 30 tries left before the TPM locks itself.")
			s.WaitFor("Enter PIN for keys/id.tpm: ")
		}
		s.Type(sc.pin + "\n")
		s.WaitFor("The PIN of keys/id.tpm is right.")
		s.WaitFor("make it forget")
		s.WaitFor("keys/plain.pub needs no PIN.")
		s.ends(0)
		for range 3 {
			d.signs(sc.public)
		}
	})
	// Given again, by fingerprint and for a time.
	s := sit(t, d.unlock("--ttl", "90m", ssh.FingerprintSHA256(sc.public)))
	s.WaitFor("remembers the PIN of SHA256:")
	s.WaitFor("Enter PIN for SHA256:")
	s.Type(sc.pin + "\n")
	s.WaitFor("is right.")
	s.WaitFor("The agent remembers it for 90 minutes.")
	s.ends(0)
	d.signs(sc.public)
	if out, err := sc.command("tpm-agent", "lock", "--socket", d.socket).CombinedOutput(); err != nil || !strings.Contains(string(out), "1 PIN forgotten") {
		t.Errorf("%v: %s", err, out)
	}
	if err := d.sign(sc.public); err == nil {
		t.Error("it signs after lock")
	}
}

// TestUnlockGivenUp: three mistakes, Ctrl-C and Ctrl-D end it.
func TestUnlockGivenUp(t *testing.T) {
	sc := newScene(t, patient, "")
	d := sc.serve(nil, "--prompt", "none")
	for _, test := range []struct {
		name         string
		typed        []string
		status, cost int
		says         string
	}{
		{"mistakes", []string{sc.wrong(8) + "\n", sc.wrong(40) + "\n", sc.wrong(8) + "\n"}, 1, 3, "wrong PIN (28 tries left before the TPM locks)"},
		{"ctrl-c", []string{"\x03"}, 130, 0, "interrupted"},
		{"ctrl-d", []string{"\x04"}, 1, 0, "refused at the prompt"},
	} {
		t.Run(test.name, func(t *testing.T) {
			sc.costs(test.cost, func() {
				s := sit(t, d.unlock("keys/id.tpm", "keys/id.tpm"))
				for _, typed := range test.typed {
					s.WaitFor("Enter PIN for keys/id.tpm: ")
					s.Type(typed)
				}
				if test.cost > 0 { // the other name is asked for, too
					s.WaitFor("Enter PIN for keys/id.tpm: ")
					s.Type("\x04")
				}
				s.WaitFor(test.says)
				s.ends(test.status)
			})
		})
	}
}

// TestUnlockLastTry: the try that would lock the TPM wants a typed yes, and is
// never spent on a PIN that nobody has typed.
func TestUnlockLastTry(t *testing.T) {
	sc := newScene(t, lockoutParameters{3, 2 * time.Hour}, "")
	d := sc.serve(nil, "--prompt", "none")
	s := sit(t, d.unlock("keys/id.tpm"))
	for _, left := range []string{"Wrong PIN. 2 tries left", "Wrong PIN. One more locks the TPM."} {
		s.WaitFor("Enter PIN for keys/id.tpm: ")
		s.Type(sc.wrong(8) + "\n")
		s.WaitFor(left)
	}
	s.WaitFor("Try the PIN of keys/id.tpm anyway?")
	s.WaitFor("Type yes to go on, anything else to stop: ")
	if !s.Echoes() {
		t.Error("what is typed cannot be seen")
	}
	s.Type("y\n")
	s.WaitFor("the last try is left: refused at the prompt")
	s.ends(1)

	write(t, filepath.Join(sc.home, "pin"), []byte(sc.wrong(8)))
	sc.costs(0, func() {
		out, err := d.unlock("--pin-from", "file:pin", "keys/id.tpm").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "one try is left before the TPM locks itself, and that is not spent unasked") {
			t.Errorf("%v: %s", err, out)
		}
	})
	// With the right PIN it is no loss.
	s = sit(t, d.unlock("keys/id.tpm"))
	s.WaitFor("Type yes to go on, anything else to stop: ")
	s.Type("yes\n")
	s.WaitFor("Enter PIN for keys/id.tpm: ")
	s.Type(sc.pin + "\n")
	s.WaitFor("is right")
	s.ends(0)

	s = sit(t, d.unlock("keys/id.tpm"))
	s.WaitFor("Type yes to go on, anything else to stop: ")
	s.Type("yes\n")
	s.WaitFor("Enter PIN for keys/id.tpm: ")
	s.Type(sc.wrong(8) + "\n")
	s.WaitFor("tpm-agent: unlocking keys/id.tpm: wrong PIN, and the TPM has locked itself")
	s.WaitFor("hint: wait 2 hours, which gives one try back; keys without a PIN go on")
	s.ends(1)

	// In the lockout nobody is asked; the key without a PIN does not care.
	out, err := d.unlock("keys/id.tpm", "keys/plain.tpm").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "locked out after too many wrong PINs") || !strings.Contains(string(out), "hint: wait 2 hours, which gives one try back; keys without a PIN go on") || !strings.Contains(string(out), "keys/plain.tpm needs no PIN.") {
		t.Errorf("%v: %s", err, out)
	}
	d.signs(sc.pinless)
	if err := d.sign(sc.public); err == nil {
		t.Error("it signs in a lockout")
	}
	out, err = sc.command("tpm-agent", "why", "-n", "1", "--socket", d.socket).CombinedOutput()
	if err != nil || !strings.Contains(string(out), ": locked out after too many wrong PINs\n") || !strings.Contains(string(out), "\n  hint     wait;") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestUnlockWithoutTerminal says how else a PIN can be given.
func TestUnlockWithoutTerminal(t *testing.T) {
	sc := newScene(t, patient, "")
	d := sc.serve(nil, "--prompt", "none")
	cmd := d.unlock("keys/id.tpm")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdin = strings.NewReader("meant for something else\n")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "there is no terminal to ask on\nhint: --pin-from fd:0") {
		t.Errorf("%v: %s", err, out)
	}
	if sc.counter() > 0 {
		t.Error("what was on standard input was taken for a PIN")
	}
}

// TestUnlockLengths: PINs of all lengths, with what is not ASCII, through files
// and a descriptor.
func TestUnlockLengths(t *testing.T) {
	for _, pin := range []string{"7", randomPIN(32), randomPIN(33), strings.Repeat("0123456789", 100), "gr\u00fc\u00dfe \U0001f511 \t\"'"} {
		sc := newScene(t, patient, pin)
		if len(pin) == 1 {
			sc.secrets = nil // which is everywhere
		}
		d := sc.serve(nil, "--prompt", "none")
		for _, source := range []string{"file:pin", "fd:0", "fd:3"} {
			write(t, filepath.Join(sc.home, "pin"), []byte(pin+"\n"))
			file := must(os.Open(filepath.Join(sc.home, "pin")))
			cmd := d.unlock("--pin-from", source, "keys/id.tpm")
			cmd.Stdin, cmd.ExtraFiles = file, []*os.File{file}
			out, err := cmd.CombinedOutput()
			file.Close()
			if err != nil {
				t.Errorf("%d octets, %s: %v: %s", len(pin), source, err, out)
			}
			d.signs(sc.public)
			if strings.Contains(string(out)+d.logged(), pin) && len(pin) > 1 {
				t.Error("the PIN is in the output, or in the log")
			}
		}
		if n := sc.counter(); n != 0 {
			t.Errorf("%d octets: %d wrong tries", len(pin), n)
		}
	}
}

// TestUnlockForwarded: over a connection that brings no descriptor, as a
// forwarded one, an agent takes no PIN, forgets none, and does not say why.
func TestUnlockForwarded(t *testing.T) {
	sc := newScene(t, patient, "")
	d := sc.serve(nil, "--prompt", "none")
	socket := filepath.Join(filepath.Dir(d.socket), "f")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go forward(l, d.socket)
	write(t, filepath.Join(sc.home, "pin"), []byte(sc.pin))
	for _, args := range [][]string{{"unlock", "--pin-from", "file:pin", "keys/id.tpm"}, {"lock"}, {"why"}} {
		out, err := sc.command("tpm-agent", append(args, "--socket", socket)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "\nhint: is it tpm-agent?") || !strings.Contains(string(out), "ssh -A") {
			t.Errorf("%q: %v: %s", args, err, out)
		}
	}
}

// forward passes on what comes, and nothing else.
func forward(l net.Listener, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("unix", to)
		if err != nil {
			in.Close()
			return
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				defer pair[0].Close()
				buf := make([]byte, 4096)
				for {
					n, err := pair[1].Read(buf)
					if err != nil {
						return
					}
					if _, err := pair[0].Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}
}

// TestUnlockStrangeAgents: what an agent answers that is not ours, or is broken.
func TestUnlockStrangeAgents(t *testing.T) {
	sc := newScene(t, patient, "")
	write(t, filepath.Join(sc.home, "pin"), []byte(sc.pin))
	for name, test := range map[string]struct {
		answer []byte
		says   string
	}{
		"knows nothing":   {framed(5), agent.ErrNotOwner.Error()},
		"yes to all":      {framed(6), "cannot be understood"},
		"an empty answer": {framed(), "asking the agent"},
		"too long":        {[]byte{0xff, 0xff, 0xff, 0xff}, "an answer of 4294967295 bytes"},
		"hangs up":        {nil, "closed the connection"},
		"half a name":     {framed(29, 0, 0, 0, 99, 'k'), "cannot be understood"},
	} {
		s := startScripted(t, test.answer)
		for _, args := range [][]string{{"unlock", "--pin-from", "file:pin", "keys/id.tpm"}, {"lock"}, {"why"}} {
			out, err := sc.command("tpm-agent", append(args, "--socket", s.path)...).CombinedOutput()
			var exit *exec.ExitError
			says := test.says
			if says == agent.ErrNotOwner.Error() && args[0] != "unlock" {
				says = "hint: is it tpm-agent?"
			}
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), says) {
				t.Errorf("%s: %q: %v: %s", name, args, err, out)
			}
		}
		for range len(s.requests) {
			r := <-s.requests
			if !r.local {
				t.Error("a request came without a descriptor")
			}
			if strings.Contains(string(r.message), sc.pin) {
				t.Error("an agent that is not ours got the PIN")
			}
		}
	}
}

// TestUnlockAnswersDialogs: a PIN that is given while somebody is asked for it
// is the answer, and takes the dialog off the screen. A wrong one does not.
func TestUnlockAnswersDialogs(t *testing.T) {
	sc := newScene(t, patient, "")
	a := newAskpass(t)
	d := sc.serve(a.env())
	signed := make(chan error, 1)
	go func() { signed <- d.sign(sc.public) }()
	q := a.next()
	for _, pin := range []string{sc.wrong(8), sc.pin} {
		write(t, filepath.Join(sc.home, "pin"), []byte(pin))
		if out, err := d.unlock("--pin-from", "file:pin", "keys/id.tpm").CombinedOutput(); (err == nil) != (pin == sc.pin) {
			t.Fatalf("%v: %s", err, out)
		}
		select {
		case err := <-signed:
			if pin != sc.pin || err != nil {
				t.Fatalf("the request has ended: %v", err)
			}
			signed <- err
		default:
		}
	}
	if err := <-signed; err != nil {
		t.Error(err)
	}
	q.gone()
	if q := a.poll(); q != nil {
		t.Errorf("somebody is asked again: %s", q.text)
	}
	if n := sc.counter(); n != 1 {
		t.Errorf("%d wrong tries", n)
	}
}

// TestUnlockNames: names that are none, and what steers a terminal in them.
func TestUnlockNames(t *testing.T) {
	sc := newScene(t, patient, "")
	d := sc.serve(nil, "--prompt", "none")
	evil := "e\x1b[2Jvil\n\u202e.tpm"
	write(t, filepath.Join(sc.home, evil), must(os.ReadFile(filepath.Join(sc.keys, "plain.tpm"))))
	write(t, filepath.Join(sc.home, "pin"), []byte(sc.pin))
	for _, name := range []string{"", "keys", "/dev/null", "none\x1b[2J", "SHA256:", "SHA256:\x1b[2J", strings.Repeat("x", 5000), "pin", evil} {
		out, err := d.unlock("--pin-from", "file:pin", name).CombinedOutput()
		var exit *exec.ExitError
		if name == evil {
			if err != nil || string(out) != "e[2Jvil.tpm needs no PIN.\n" {
				t.Errorf("%q: %v: %q", name, err, out)
			}
		} else if !errors.As(err, &exit) || exit.ExitCode() != 1 || strings.ContainsAny(string(out), "\x1b\u202e") || !strings.HasPrefix(string(out), "tpm-agent: ") {
			t.Errorf("%q: %v: %q", name, err, out)
		}
	}
	if n := sc.counter(); n != 0 {
		t.Errorf("%d wrong tries", n)
	}
}
