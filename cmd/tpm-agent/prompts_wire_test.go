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

// traces returns the octets that would reveal a PIN on the bus: its first octets and
// its digests, by name.
func traces(pin string, octets int) map[string][]byte {
	b := []byte(pin)
	one, two, three, five := sha1.Sum(b), sha256.Sum256(b), sha512.Sum384(b), sha512.Sum512(b)
	return map[string][]byte{
		"the PIN": b[:min(len(b), octets)],
		"SHA-1":   one[:8], "SHA-256": two[:8], "SHA-384": three[:8], "SHA-512": five[:8],
	}
}

// onTheBus returns the traces of a PIN in all commands to and answers from the TPM.
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

// keepsSecrets fails the test if a right or wrong PIN of the scene was on the bus or is
// in an agent's log.
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

// TestPromptBusSearch checks that onTheBus finds a PIN and a digest that were on the
// bus.
func TestPromptBusSearch(t *testing.T) {
	t.Parallel()
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
		t.Errorf("found only %s", found)
	}
}

// TestPromptBus checks that no PIN and no digest of one crosses the bus when a key is
// made and when it is used with a right or wrong PIN, for PINs of several lengths.
func TestPromptBus(t *testing.T) {
	t.Parallel()
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

// TestPromptBusPasswd checks the same when passwd changes a PIN from short to long and
// back, first with a wrong old PIN.
func TestPromptBusPasswd(t *testing.T) {
	t.Parallel()
	s := newScene(t, patient, randomPIN(4))
	s.octets = 4
	for _, n := range []int{32, 33, 100, 4} {
		next := s.wrong(n) // it is wrong until passwd sets it
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

// changePIN runs passwd, with both PINs in files.
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
