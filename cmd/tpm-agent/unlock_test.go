package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

// unlock returns a tpm-agent unlock command for this agent.
func (d *agentRun) unlock(args ...string) *exec.Cmd {
	d.t.Helper()
	return d.command("tpm-agent", append([]string{"unlock", "--socket", d.socket}, args...)...)
}

// TestUnlockOnTerminal checks that a wrong PIN costs one try even if it is typed twice,
// and that after the right PIN the agent signs without a prompt.
func TestUnlockOnTerminal(t *testing.T) {
	t.Parallel()
	sc := newScene(t, patient, "")
	d := sc.serve(nil, "--prompt", "none")
	if err := d.sign(sc.public); err == nil {
		t.Fatal("the agent signed without a PIN")
	}
	mistake := sc.wrong(8)
	sc.costs(1, func() {
		s := sit(t, d.unlock("keys/id.tpm", "keys/plain.pub"))
		s.WaitFor("31 tries left before the TPM locks itself.")
		s.WaitFor("Enter PIN for keys/id.tpm: ")
		if s.Echoes() {
			t.Error("the terminal shows the PIN")
		}
		s.Type("\n") // costs no try
		s.WaitFor("you typed none")
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
	// Give the PIN again, by fingerprint and with a time limit.
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
		t.Error("the agent signed after lock")
	}
}

// TestUnlockCancelled checks that three wrong PINs, Ctrl-C and Ctrl-D end unlock.
func TestUnlockCancelled(t *testing.T) {
	t.Parallel()
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
				if test.cost > 0 { // unlock then asks for the second key
					s.WaitFor("Enter PIN for keys/id.tpm: ")
					s.Type("\x04")
				}
				s.WaitFor(test.says)
				s.ends(test.status)
			})
		})
	}
}

// TestUnlockLastTry checks that unlock uses the last try before a lockout only if the
// user types yes, and never for a PIN from a file. It then checks the lockout.
func TestUnlockLastTry(t *testing.T) {
	t.Parallel()
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
		t.Error("the terminal does not show the answer")
	}
	s.Type("y\n")
	s.WaitFor("the last try was not used: refused at the prompt")
	s.ends(1)

	write(t, filepath.Join(sc.home, "pin"), []byte(sc.wrong(8)))
	sc.costs(0, func() {
		out, err := d.unlock("--pin-from", "file:pin", "keys/id.tpm").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "one try is left before the TPM locks itself, and that is not spent unasked") {
			t.Errorf("%v: %s", err, out)
		}
	})
	// With the right PIN, the last try is not lost.
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
	s.WaitFor("hint: wait 2 hours, which gives one try back; keys without a PIN keep working")
	s.ends(1)

	// In the lockout unlock asks for no PIN, and the key without a PIN works.
	out, err := d.unlock("keys/id.tpm", "keys/plain.tpm").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "locked out after too many wrong PINs") || !strings.Contains(string(out), "hint: wait 2 hours, which gives one try back; keys without a PIN keep working") || !strings.Contains(string(out), "keys/plain.tpm needs no PIN.") {
		t.Errorf("%v: %s", err, out)
	}
	d.signs(sc.pinless)
	if err := d.sign(sc.public); err == nil {
		t.Error("the agent signed in a lockout")
	}
	out, err = sc.command("tpm-agent", "why", "-n", "1", "--socket", d.socket).CombinedOutput()
	if err != nil || !strings.Contains(string(out), ": locked out after too many wrong PINs\n") || !strings.Contains(string(out), "\n  hint     wait;") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestUnlockWithoutTerminal checks that unlock without a terminal names other ways to
// give the PIN, and does not read standard input.
func TestUnlockWithoutTerminal(t *testing.T) {
	t.Parallel()
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
		t.Error("unlock used standard input as the PIN")
	}
}

// TestUnlockLengths checks unlock with PINs of many lengths and with non-ASCII ones,
// from files and descriptors.
func TestUnlockLengths(t *testing.T) {
	t.Parallel()
	for _, pin := range []string{"7", randomPIN(32), randomPIN(33), strings.Repeat("0123456789", 100), "gr\u00fc\u00dfe \U0001f511 \t\"'"} {
		sc := newScene(t, patient, pin)
		if len(pin) == 1 {
			sc.secrets = nil // a short PIN occurs everywhere by chance
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
			t.Errorf("%d octets: the TPM counted %d wrong tries", len(pin), n)
		}
	}
}

// TestUnlockForwarded checks that the agent refuses unlock, lock and why over a
// connection that cannot pass descriptors, such as a forwarded one.
func TestUnlockForwarded(t *testing.T) {
	t.Parallel()
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

// forward copies data between its clients and the socket to, but no descriptors.
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

// TestUnlockOtherAgents checks that unlock, lock and why fail cleanly with an agent that
// is not tpm-agent or is broken, and that it does not get the PIN.
func TestUnlockOtherAgents(t *testing.T) {
	t.Parallel()
	sc := newScene(t, patient, "")
	write(t, filepath.Join(sc.home, "pin"), []byte(sc.pin))
	for name, test := range map[string]struct {
		answer []byte
		says   string
	}{
		"knows nothing":   {sshtest.Framed(5), control.ErrNotOwner.Error()},
		"yes to all":      {sshtest.Framed(6), "cannot be understood"},
		"an empty answer": {sshtest.Framed(), "asking the agent"},
		"too long":        {[]byte{0xff, 0xff, 0xff, 0xff}, "impossible message length 4294967295"},
		"hangs up":        {nil, "closed the connection"},
		"half a name":     {sshtest.Framed(29, 0, 0, 0, 99, 'k'), "cannot be understood"},
	} {
		s := sshtest.StartScripted(t, test.answer)
		for _, args := range [][]string{{"unlock", "--pin-from", "file:pin", "keys/id.tpm"}, {"lock"}, {"why"}} {
			out, err := sc.command("tpm-agent", append(args, "--socket", s.Path)...).CombinedOutput()
			var exit *exec.ExitError
			says := test.says
			if says == control.ErrNotOwner.Error() && args[0] != "unlock" {
				says = "hint: is it tpm-agent?"
			}
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), says) {
				t.Errorf("%s: %q: %v: %s", name, args, err, out)
			}
		}
		for range len(s.Requests) {
			r := <-s.Requests
			if !r.Local {
				t.Error("a request came without a descriptor")
			}
			if strings.Contains(string(r.Message), sc.pin) {
				t.Error("an agent that is not tpm-agent got the PIN")
			}
		}
	}
}

// TestUnlockAnswersDialogs checks that unlock answers an open dialog for the key and
// closes it, and that a wrong PIN does not.
func TestUnlockAnswersDialogs(t *testing.T) {
	t.Parallel()
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
		t.Errorf("the agent asked again: %s", q.text)
	}
	if n := sc.counter(); n != 1 {
		t.Errorf("the TPM counted %d wrong tries", n)
	}
}

// TestUnlockNames checks that unlock reports invalid names without printing their
// control characters.
func TestUnlockNames(t *testing.T) {
	t.Parallel()
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
		t.Errorf("the TPM counted %d wrong tries", n)
	}
}

// readFrame reads a message and returns it without its length.
func readFrame(c net.Conn) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(c, message)
	return message, err
}
