package softkey

import (
	"bytes"
	"crypto/rsa"
	"encoding/binary"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// added parses a request that must be valid, and wipes its key when the test ends.
func added(t testing.TB, request []byte) *Addition {
	t.Helper()
	a, err := ParseAddition(request)
	if err != nil {
		t.Fatal(err)
	}
	if a.Key != nil {
		t.Cleanup(a.Key.Wipe)
	}
	return a
}

func TestAddition(t *testing.T) {
	t.Parallel()
	for name, s := range sshtest.Signers() {
		for _, cert := range []*ssh.Certificate{nil, sshtest.CertFor(s), sshtest.CertFor(s, func(c *ssh.Certificate) { c.CertType = ssh.HostCert })} {
			t.Run(name, func(t *testing.T) {
				request := append(sshtest.Adding(s, cert), 1, 0, 0, 0, 9)
				a := added(t, request)
				if string(a.Constraints) != "\x01\x00\x00\x00\x09" || a.Comment != "me@here" || a.Foreign || !a.Layout {
					t.Errorf("parsed as %+v", a)
				}
				clear(request) // only the constraints may share its memory
				want := sshtest.PublicOf(s)
				if cert != nil {
					want = cert
				}
				if a.Typ != want.Type() || !bytes.Equal(a.Public.Marshal(), want.Marshal()) {
					t.Errorf("public key %x of type %s", a.Public.Marshal(), a.Typ)
				}
				if a.Key.AuthRequired() {
					t.Error("asks for a PIN")
				}
				signsWith(t, a.Key, a.Public)
			})
		}
	}
}

// TestAdditionTruncated cuts each request at each byte.
func TestAdditionTruncated(t *testing.T) {
	t.Parallel()
	for name, request := range captures(t) {
		t.Run(name, func(t *testing.T) {
			whole := added(t, request)
			end := len(request) - len(whole.Constraints)
			for n := range end {
				if a, err := ParseAddition(request[:n]); err == nil && a.Layout {
					a.Key.Wipe()
					t.Errorf("takes %d bytes of %d", n, len(request))
				}
			}
		})
	}
}

// captureDir has what OpenSSH's ssh-add sent for keys that ssh-keygen made, one
// request per file. WRITE_CAPTURES=1 writes new ones.
const captureDir = "testdata/additions"

func captures(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(captureDir + "/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no requests in %s, %v", captureDir, err)
	}
	all := map[string][]byte{}
	for _, f := range files {
		all[filepath.Base(f)] = sshtest.Must(os.ReadFile(f))
	}
	return all
}

// TestCaptures checks that all captured keys but DSA are held.
func TestCaptures(t *testing.T) {
	t.Parallel()
	for name, request := range captures(t) {
		a := added(t, request)
		foreign := strings.HasPrefix(name, "dsa")
		if a.Foreign != foreign || !a.Layout || !strings.HasPrefix(a.Comment, "comment of ") {
			t.Errorf("%s: %+v", name, a)
		}
		if constrained := strings.HasSuffix(name, "-t-c"); constrained != bytes.Equal(a.Constraints, []byte{1, 0, 0, 0, 60, 2}) {
			t.Errorf("%s: constraints %x", name, a.Constraints)
		}
		if !foreign {
			signsWith(t, a.Key, a.Public)
		}
	}
}

// TestSSHAddSends has the ssh-add of this machine send keys of each type.
func TestSSHAddSends(t *testing.T) {
	t.Parallel()
	needs.Programs(t, "ssh-add", "ssh-keygen")
	dir := t.TempDir()
	ca := keygen(t, dir, "ca", "-t", "ed25519")
	for name, args := range map[string][]string{
		"rsa": {"-t", "rsa", "-b", "2048"}, "rsa1024": {"-t", "rsa", "-b", "1024"},
		"ecdsa256": {"-t", "ecdsa", "-b", "256"}, "ecdsa384": {"-t", "ecdsa", "-b", "384"},
		"ecdsa521": {"-t", "ecdsa", "-b", "521"}, "ed25519": {"-t", "ed25519"}, "dsa": {"-t", "dsa"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "dsa" && exec.Command("ssh-keygen", "-q", "-t", "dsa", "-N", "", "-f", filepath.Join(t.TempDir(), "k")).Run() != nil {
				t.Skip("needs an ssh-keygen that still makes DSA keys")
			}
			key := keygen(t, dir, name, args...)
			if out, err := exec.Command("ssh-keygen", "-q", "-s", ca, "-I", "id", "-n", "me", key+".pub").CombinedOutput(); err != nil {
				t.Fatalf("%s, %v", out, err)
			}
			requests := append(sent(t, key), sent(t, "-t", "60", "-c", key)...)
			if len(requests) != 4 {
				t.Fatalf("%d requests", len(requests))
			}
			for i, suffix := range []string{"", "-cert", "-t-c", "-cert-t-c"} {
				a := added(t, requests[i])
				if a.Foreign != (name == "dsa") || !a.Layout || a.Comment != "comment of "+name {
					t.Errorf("%s: %+v", suffix, a)
				}
				if !a.Foreign {
					signsWith(t, a.Key, a.Public)
				}
				if os.Getenv("WRITE_CAPTURES") != "" {
					if err := os.WriteFile(filepath.Join(captureDir, name+suffix), requests[i], 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// keygen has ssh-keygen make a key and returns its file.
func keygen(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	args = append([]string{"-q", "-N", "", "-C", "comment of " + name, "-f", path}, args...)
	if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %s, %v", out, err)
	}
	return path
}

// sent returns what ssh-add sends to an agent that accepts everything.
func sent(t testing.TB, args ...string) (requests [][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("ssh-add", args...)
	cmd.Env = []string{"SSH_AUTH_SOCK=" + path, "SSH_ASKPASS_REQUIRE=never"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for {
		m, err := sshtest.TryRecv(nc)
		if err != nil {
			break
		}
		requests = append(requests, m)
		sshtest.Send(t, nc, sshtest.Succeeded)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("ssh-add %q: %s, %v", args, out.String(), err)
	}
	return requests
}

func TestForeign(t *testing.T) {
	t.Parallel()
	for typ, request := range sshtest.ForeignKeys() {
		end := len(request)
		request = append(request, 2)
		a := added(t, request)
		if !a.Foreign || !a.Layout || a.Key != nil || a.Public != nil || a.Typ != typ ||
			a.Comment != "me@here" || string(a.Constraints) != "\x02" {
			t.Errorf("%s: %+v", typ, a)
		}
		for n := 1 + 4 + len(typ); n < end; n++ {
			if _, err := ParseAddition(request[:n]); err == nil {
				t.Errorf("%s: takes %d bytes of %d", typ, n, len(request))
			}
		}
	}
	for _, typ := range []string{"", "ssh-new", "rsa-sha2-256", "ssh-rsa ", "ecdsa-sha2-nistp192", "sk-new@openssh.com"} {
		a := added(t, append(sshtest.Message(wire.MsgAddIDConstrained, typ, "whatever"), 1, 2, 3))
		if !a.Foreign || a.Layout || a.Key != nil || a.Constraints != nil || a.Comment != "" || a.Typ != typ {
			t.Errorf("%q: %+v", typ, a)
		}
	}
}

// TestAdditionRSAInTime has numbers that would take very long or make the
// arithmetic panic. A hang fails by the timeout of the test.
func TestAdditionRSAInTime(t *testing.T) {
	t.Parallel()
	k := sshtest.RSA2048().(*rsa.PrivateKey)
	n, e, d, iqmp, p, q := k.N, big.NewInt(int64(k.E)), k.D, k.Precomputed.Qinv, k.Primes[0], k.Primes[1]
	negative := []byte{0xff}
	num := func(i int64) *big.Int { return big.NewInt(i) }
	big200 := bytes.Repeat([]byte{0x7f}, 200<<10)
	odd := bytes.Repeat([]byte{0x7f}, maxBits/8) // 16383 bits
	half := new(big.Int).SetBytes(odd[3:])
	times := func(x, y *big.Int) *big.Int { return new(big.Int).Mul(x, y) }
	twice := func(x *big.Int) *big.Int { return new(big.Int).Lsh(x, 1) }
	less := func(x *big.Int) *big.Int { return new(big.Int).Sub(x, num(1)) }
	for name, f := range map[string][]any{
		"modulus of 200 KiB":      {big200, e, d, iqmp, p, q},
		"all of 200 KiB":          {big200[:80<<10], big200[:80<<10], big200[:80<<10], iqmp, p, q},
		"d of 200 KiB":            {n, e, big200, iqmp, p, q},
		"iqmp of 200 KiB":         {n, e, d, big200, p, q},
		"p of 200 KiB":            {n, e, d, iqmp, big200, q},
		"longest of all":          {odd, e, odd, odd, odd, odd},
		"longest, p is n and q 1": {odd, e, odd, odd, odd, num(1)},
		"longest, p is 1 and q n": {odd, e, odd, num(1), num(1), odd},
		"longest, p is 5":         {times(num(5), half), e, half, num(1), num(5), half},
		"longest, q is 5":         {times(num(5), half), e, half, num(1), half, num(5)},
		"longest e":               {n, odd, d, iqmp, p, q},
		"e is 0":                  {n, num(0), d, iqmp, p, q},
		"e is 1":                  {n, num(1), num(1), iqmp, p, q},
		"e is even":               {n, num(65536), d, iqmp, p, q},
		"e is a different one":    {n, num(3), d, iqmp, p, q},
		"e of 32 bits":            {n, num(1<<31 + 1), d, iqmp, p, q},
		"e of 64 bits":            {n, new(big.Int).SetUint64(1<<64 - 1), d, iqmp, p, q},
		"n is 0":                  {num(0), e, d, iqmp, p, q},
		"n is even":               {twice(n), e, d, iqmp, twice(p), q},
		"n is negative":           {new(big.Int).Neg(n), e, d, iqmp, p, q},
		"d is 0":                  {n, e, num(0), iqmp, p, q},
		"d is 1":                  {n, e, num(1), iqmp, p, q},
		"d is negative":           {n, e, new(big.Int).Neg(d), iqmp, p, q},
		"d is a different one":    {n, e, less(d), iqmp, p, q},
		"d is longer than n":      {n, e, new(big.Int).Add(d, times(n, times(less(p), less(q)))), iqmp, p, q},
		"iqmp is 0":               {n, e, d, num(0), p, q},
		"iqmp is a different one": {n, e, d, less(iqmp), p, q},
		"iqmp is not reduced":     {n, e, d, new(big.Int).Add(iqmp, p), p, q},
		"iqmp is for q":           {n, e, d, iqmp, q, p},
		"p and q are 0":           {n, e, d, iqmp, num(0), num(0)},
		"p is n and q is 1":       {n, e, d, iqmp, n, num(1)},
		"p is 1 and q is n":       {n, e, d, iqmp, num(1), n},
		"p is negative":           {n, e, d, iqmp, new(big.Int).Neg(p), new(big.Int).Neg(q)},
		"p times q is not n":      {n, e, d, iqmp, less(p), q},
		"p times q is twice n":    {n, e, d, iqmp, twice(p), q},
		"p is q":                  {times(p, p), e, d, iqmp, p, p},
		"modulus of 1023 bits":    {new(big.Int).SetBit(num(1), 1022, 1), e, d, iqmp, p, q},
		"all numbers empty":       {"", "", "", "", "", ""},
		"all numbers negative":    {negative, negative, negative, negative, negative, negative},
		"no numbers":              {},
	} {
		t.Run(name, func(t *testing.T) {
			request := sshtest.Message(wire.MsgAddIdentity, append(append([]any{"ssh-rsa"}, f...), "me@here")...)
			if a, err := ParseAddition(request); err == nil {
				t.Errorf("taken: %+v", a)
			} else {
				t.Log(err)
			}
		})
	}
	zeros := append([]byte{0, 0, 0}, n.Bytes()...)
	added(t, sshtest.Message(wire.MsgAddIdentity, "ssh-rsa", zeros, e, d, iqmp, p, q, ""))
	swapped := new(big.Int).ModInverse(p, q)
	a := added(t, sshtest.Message(wire.MsgAddIdentity, "ssh-rsa", n, e, d, swapped, q, p, ""))
	signsWith(t, a.Key, a.Public)
}

// FuzzParseAddition checks that a key that is accepted can sign.
func FuzzParseAddition(f *testing.F) {
	for _, request := range captures(f) {
		f.Add(request)
		f.Add(request[:len(request)/2])
	}
	for _, request := range sshtest.ForeignKeys() {
		f.Add(request)
		giant := bytes.Clone(request)
		binary.BigEndian.PutUint32(giant[len(giant)-len("me@here")-4:], 1<<32-1)
		f.Add(giant)
	}
	f.Add(sshtest.Message(wire.MsgAddIdentity, "ssh-rsa", "", "", "", "", "", "", ""))
	f.Add(sshtest.Message(wire.MsgAddIdentity, "ecdsa-sha2-nistp256", "nistp384", "", "", ""))
	f.Fuzz(func(t *testing.T, request []byte) {
		a, err := ParseAddition(request)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(request, a.Constraints) || (a.Foreign != (a.Key == nil)) || (a.Public == nil) != a.Foreign {
			t.Fatalf("%+v", a)
		}
		if a.Foreign {
			return
		}
		defer a.Key.Wipe()
		if a.Public.Type() != a.Typ || !a.Layout {
			t.Fatalf("%+v", a)
		}
		signsWith(t, a.Key, a.Public)
		again, err := ssh.ParsePublicKey(a.Public.Marshal())
		if err != nil || !bytes.Equal(again.Marshal(), a.Public.Marshal()) {
			t.Fatalf("public key %x: %v", a.Public.Marshal(), err)
		}
	})
}
