package randomart

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// TestAgainstSSHKeygen compares with what ssh-keygen draws for fresh keys, of
// types whose names differ in length.
func TestAgainstSSHKeygen(t *testing.T) {
	t.Parallel()
	keygen := needs.Program(t, "ssh-keygen")
	for kind, key := range freshKeys(t) {
		pub, err := ssh.NewPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "key.pub")
		if err := os.WriteFile(file, ssh.MarshalAuthorizedKey(pub), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(keygen, "-lvE", "sha256", "-f", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		_, want, _ := strings.Cut(strings.TrimSuffix(string(out), "\n"), "\n")
		if got := SHA256(kind, sha256.Sum256(pub.Marshal())); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", kind, got, want)
		}
	}
}

// freshKeys returns public keys by the kind that ssh-keygen writes in the
// border, and several of those that are quick to make.
func freshKeys(t *testing.T) func(func(string, any) bool) {
	return func(yield func(string, any) bool) {
		for range 8 {
			for bits, curve := range map[int]elliptic.Curve{256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()} {
				key, err := ecdsa.GenerateKey(curve, rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				if !yield(fmt.Sprintf("ECDSA %d", bits), key.Public()) {
					return
				}
			}
			pub, _, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if !yield("ED25519 256", pub) {
				return
			}
		}
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		yield("RSA 2048", key.Public())
	}
}

// TestCorners checks that a walk in one direction ends in its corner, and that a
// square shows at most the last symbol before S.
func TestCorners(t *testing.T) {
	t.Parallel()
	tests := []struct {
		octet    byte
		row, col int
	}{{0x00, 0, 0}, {0xff, height - 1, width - 1}, {0x55, 0, width - 1}, {0xaa, height - 1, 0}}
	for _, test := range tests {
		var digest [32]byte
		copy(digest[:], bytes.Repeat([]byte{test.octet}, len(digest)))
		lines := strings.Split(SHA256("ECDSA 256", digest), "\n")
		if len(lines) != height+2 {
			t.Fatalf("%d lines", len(lines))
		}
		if got := lines[1+test.row][1+test.col]; got != 'E' {
			t.Errorf("octets %#x: corner shows %q", test.octet, got)
		}
		if got := lines[1+height/2][1+width/2]; got != 'S' {
			t.Errorf("octets %#x: middle shows %q", test.octet, got)
		}
	}
}

// TestTitle checks that a title loses its size if there is no room, as
// OpenSSH's does, and never makes the border longer.
func TestTitle(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]string{
		"RSA 2048":                  "+---[RSA 2048]----+",
		"RSA 16384":                 "+---[RSA 16384]---+",
		"ED25519-CERT 256":          "+-[ED25519-CERT]--+",
		"A-KIND-OF-KEY-TOO-LONG 12": "+[A-KIND-OF-KEY-TO+",
	} {
		got, _, _ := strings.Cut(SHA256(kind, [32]byte{}), "\n")
		if got != want {
			t.Errorf("%s: border %q, want %q", kind, got, want)
		}
	}
}
