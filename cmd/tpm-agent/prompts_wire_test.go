package main

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// traces are what would give a PIN away on the bus: its first octets, and digests
// of it, by what they are.
func traces(pin string, octets int) map[string][]byte {
	b := []byte(pin)
	one, two, three, five := sha1.Sum(b), sha256.Sum256(b), sha512.Sum384(b), sha512.Sum512(b)
	return map[string][]byte{
		"the PIN": b[:min(len(b), octets)],
		"SHA-1":   one[:8], "SHA-256": two[:8], "SHA-384": three[:8], "SHA-512": five[:8],
	}
}

// onTheBus lists the traces of a PIN in all that was sent to the TPM and came
// back.
func (s *scene) onTheBus(pin string) (found []string) {
	for direction, frames := range map[string][][]byte{"sent": s.tap.Commands(), "received": s.tap.Answers()} {
		all := bytes.Join(frames, nil)
		for what, trace := range traces(pin, s.octets) {
			if bytes.Contains(all, trace) {
				found = append(found, what+" "+direction)
			}
		}
	}
	return found
}

// keepsSecrets fails the test if the bus, the log of an agent, or a process
// shows a PIN of the scene, the right one or one that was typed.
func (s *scene) keepsSecrets() {
	for _, pin := range s.secrets {
		if found := s.onTheBus(pin); len(found) > 0 {
			s.t.Errorf("a PIN of %d octets on the bus: %q", len(pin), found)
		}
		for _, path := range must(filepath.Glob(filepath.Join(s.home, "d*", "log"))) {
			if log := must(os.ReadFile(path)); bytes.Contains(log, []byte(pin)) {
				s.t.Errorf("a PIN is in the log:\n%s", log)
			}
		}
	}
}

// TestPromptBusIsWatched: what has to be missing on the bus is found if it is
// there.
func TestPromptBusIsWatched(t *testing.T) {
	s := newScene(t, patient, "")
	s.octets = 4
	other := randomPIN(20)
	conn, err := net.Dial("unix", strings.TrimPrefix(s.tap.Address(), "swtpm:path="))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// TPM2_Hash of the PIN, with SHA-256, in the null hierarchy.
	body := binary.BigEndian.AppendUint16(nil, uint16(len(other)))
	body = append(append(body, other...), 0, 0x0b, 0x40, 0, 0, 7)
	command := append(binary.BigEndian.AppendUint32([]byte{0x80, 1}, uint32(10+len(body))), 0, 0, 1, 0x7d)
	if _, err := conn.Write(append(command, body...)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if found := fmt.Sprint(s.onTheBus(other)); !strings.Contains(found, "the PIN sent") || !strings.Contains(found, "SHA-256 received") {
		t.Errorf("found %s only", found)
	}
}

// TestPromptBus: neither PINs nor their digests cross the bus, whatever their
// length: when a key is made, used, and used with another PIN than its own.
func TestPromptBus(t *testing.T) {
	for _, n := range []int{4, 32, 33, 100} {
		t.Run(fmt.Sprintf("%d octets", n), func(t *testing.T) {
			s := newScene(t, patient, randomPIN(n))
			s.octets = 4
			a := newAskpass(t)
			d := s.serve(a.env())
			s.costs(2, func() {
				if _, err := d.asked(a, s.public, "say "+s.wrong(n), "say "+s.wrong(n+1), "say "+s.pin); err != nil {
					t.Error(err, d.logged())
				}
			})
			d.signs(s.pinless)
			if len(s.tap.Commands()) < 20 {
				t.Errorf("only %d commands were recorded", len(s.tap.Commands()))
			}
		})
	}
}

// TestPromptBusOfPasswd: the same for a change of the PIN, the old one wrong at
// first; from short to long and back.
func TestPromptBusOfPasswd(t *testing.T) {
	s := newScene(t, patient, randomPIN(4))
	s.octets = 4
	for _, n := range []int{32, 33, 100, 4} {
		next := s.wrong(n) // until it is set
		s.costs(1, func() {
			if out, code := s.changePIN(s.wrong(n), next); code == 0 || !strings.Contains(out, "wrong PIN") {
				t.Errorf("with a wrong PIN: status %d\n%s", code, out)
			}
		})
		s.costs(0, func() {
			if out, code := s.changePIN(s.pin, next); code != 0 {
				t.Fatalf("status %d\n%s", code, out)
			}
		})
		s.pin = next
	}
	s.costs(0, func() {
		if out, code := s.changePIN(s.pin, ""); code != 0 {
			t.Fatalf("removing the PIN: status %d\n%s", code, out)
		}
		if out, code := s.changePIN("", s.wrong(20)); code != 0 {
			t.Fatalf("setting a PIN: status %d\n%s", code, out)
		}
	})
}

// changePIN changes the PIN of the key. Both come from files.
func (s *scene) changePIN(old, new string) (out string, code int) {
	s.t.Helper()
	args := []string{"passwd", filepath.Join(s.keys, "id.tpm")}
	for option, pin := range map[string]string{"--pin-from": old, "--new-pin-from": new} {
		if pin != "" {
			s.write(option, pin+"\n", 0o600)
			args = append(args, option, "file:"+filepath.Join(s.home, option))
		}
	}
	if new == "" {
		args = append(args, "--remove")
	}
	b, err := s.command("tpm-agent", args...).CombinedOutput()
	return string(b), status(s.t, err)
}
