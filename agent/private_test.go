package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// strings and numbers of a request, in order; a builder of its own, so that
// each field can be wrong.
func message(number byte, fields ...any) []byte {
	b := []byte{number}
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			b = appendString(b, f)
		case []byte:
			b = appendString(b, string(f))
		case *big.Int:
			b = append(b, ssh.Marshal(struct{ *big.Int }{f})...)
		case byte:
			b = append(b, f)
		default:
			panic(fmt.Sprintf("a field of type %T", f))
		}
	}
	return b
}

var ed = sync.OnceValue(func() crypto.Signer { return must(second(ed25519.GenerateKey(rand.Reader))) })

func second[A, B any](_ A, b B, err error) (B, error) { return b, err }

// privateFields are those of the private key between type and comment.
func privateFields(s crypto.Signer, certified bool) []any {
	switch k := s.(type) {
	case *rsa.PrivateKey:
		f := []any{k.D, k.Precomputed.Qinv, k.Primes[0], k.Primes[1]}
		if !certified {
			f = append([]any{k.N, big.NewInt(int64(k.E))}, f...)
		}
		return f
	case *ecdsa.PrivateKey:
		d := new(big.Int).SetBytes(must(k.Bytes()))
		if certified {
			return []any{d}
		}
		curve := strings.TrimPrefix(publicOf(k).Type(), "ecdsa-sha2-")
		return []any{curve, must(k.PublicKey.Bytes()), d}
	case ed25519.PrivateKey:
		return []any{[]byte(k[32:]), []byte(k)}
	}
	panic(fmt.Sprintf("a key of type %T", s))
}

// adding is an ADD_IDENTITY of s, of its certificate if there is one.
func adding(s crypto.Signer, cert *ssh.Certificate) []byte {
	var fields []any
	if cert != nil {
		fields = []any{cert.Type(), cert.Marshal()}
	} else {
		fields = []any{publicOf(s).Type()}
	}
	fields = append(append(fields, privateFields(s, cert != nil)...), "me@here")
	return message(msgAddIdentity, fields...)
}

func certFor(s crypto.Signer, change ...func(*ssh.Certificate)) *ssh.Certificate {
	cert := &ssh.Certificate{
		Key: publicOf(s), CertType: ssh.UserCert, KeyId: "id",
		ValidPrincipals: []string{"me"}, ValidBefore: ssh.CertTimeInfinity,
	}
	for _, c := range change {
		c(cert)
	}
	if err := cert.SignCert(rand.Reader, caSign()); err != nil {
		panic(err)
	}
	return cert
}

// signers are one of each type that is held.
func signers() map[string]crypto.Signer {
	return map[string]crypto.Signer{
		"rsa": rsa2k(), "p256": p256(), "p384": p384(), "p521": p521(), "ed25519": ed(),
	}
}

// added parses a request that must be right, and wipes its key in the end.
func added(t testing.TB, request []byte) *addition {
	t.Helper()
	a, err := parseAddition(request)
	if err != nil {
		t.Fatal(err)
	}
	if a.key != nil {
		t.Cleanup(a.key.wipe)
	}
	return a
}

// signsWith signs for each way the key can be used, and checks that the
// signature belongs to pub.
func signsWith(t testing.TB, k Key, pub ssh.PublicKey) {
	t.Helper()
	if cert, ok := pub.(*ssh.Certificate); ok {
		pub = cert.Key
	}
	data := []byte("what is to be signed")
	formats := map[string]crypto.Hash{}
	switch pub.Type() {
	case ssh.KeyAlgoRSA:
		formats[ssh.KeyAlgoRSASHA256] = crypto.SHA256
		formats[ssh.KeyAlgoRSASHA512] = crypto.SHA512
		formats[ssh.KeyAlgoRSA] = crypto.SHA1
	case ssh.KeyAlgoED25519:
		formats[pub.Type()] = 0
	default:
		_, hash, err := scheme(pub, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		formats[pub.Type()] = hash
	}
	for format, hash := range formats {
		digest := data
		if hash != 0 {
			h := hash.New()
			h.Write(data)
			digest = h.Sum(nil)
		}
		sig, err := k.Sign(context.Background(), nil, digest, hash)
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		if strings.HasPrefix(format, "ecdsa") {
			sig = must(wireECDSA(sig))
		}
		if err := pub.Verify(data, &ssh.Signature{Format: format, Blob: sig}); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
}

func TestAddition(t *testing.T) {
	for name, s := range signers() {
		for _, cert := range []*ssh.Certificate{nil, certFor(s), certFor(s, func(c *ssh.Certificate) { c.CertType = ssh.HostCert })} {
			t.Run(name, func(t *testing.T) {
				request := append(adding(s, cert), 1, 0, 0, 0, 9)
				a := added(t, request)
				if string(a.constraints) != "\x01\x00\x00\x00\x09" || a.comment != "me@here" || a.foreign || !a.layout {
					t.Errorf("parsed as %+v", a)
				}
				clear(request) // nothing but the constraints may be shared with it
				want := publicOf(s)
				if cert != nil {
					want = cert
				}
				if a.typ != want.Type() || !bytes.Equal(a.public.Marshal(), want.Marshal()) {
					t.Errorf("public key %x of type %s", a.public.Marshal(), a.typ)
				}
				if a.key.AuthRequired() {
					t.Error("asks for a PIN")
				}
				signsWith(t, a.key, a.public)
			})
		}
	}
}

// TestAdditionTruncated cuts each request at each byte.
func TestAdditionTruncated(t *testing.T) {
	for name, request := range captures(t) {
		t.Run(name, func(t *testing.T) {
			whole := added(t, request)
			end := len(request) - len(whole.constraints)
			for n := range end {
				if a, err := parseAddition(request[:n]); err == nil && a.layout {
					a.key.wipe()
					t.Errorf("takes %d bytes of %d", n, len(request))
				}
			}
		})
	}
}

// captureDir has what OpenSSH's ssh-add sent for keys that ssh-keygen made, one
// request a file. WRITE_CAPTURES=1 makes them anew.
const captureDir = "testdata/additions"

func captures(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(captureDir + "/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no requests in %s, %v", captureDir, err)
	}
	all := map[string][]byte{}
	for _, f := range files {
		all[filepath.Base(f)] = must(os.ReadFile(f))
	}
	return all
}

// TestCaptures: of what is there, this is held, and this is not.
func TestCaptures(t *testing.T) {
	for name, request := range captures(t) {
		a := added(t, request)
		foreign := strings.HasPrefix(name, "dsa")
		if a.foreign != foreign || !a.layout || !strings.HasPrefix(a.comment, "comment of ") {
			t.Errorf("%s: %+v", name, a)
		}
		if constrained := strings.HasSuffix(name, "-t-c"); constrained != bytes.Equal(a.constraints, []byte{1, 0, 0, 0, 60, 2}) {
			t.Errorf("%s: constraints %x", name, a.constraints)
		}
		if !foreign {
			signsWith(t, a.key, a.public)
		}
	}
}

// TestSSHAddSends has the ssh-add of this machine send keys of each type.
func TestSSHAddSends(t *testing.T) {
	for _, program := range []string{"ssh-add", "ssh-keygen"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	ca := keygen(t, dir, "ca", "-t", "ed25519")
	for name, args := range map[string][]string{
		"rsa": {"-t", "rsa", "-b", "2048"}, "rsa1024": {"-t", "rsa", "-b", "1024"},
		"ecdsa256": {"-t", "ecdsa", "-b", "256"}, "ecdsa384": {"-t", "ecdsa", "-b", "384"},
		"ecdsa521": {"-t", "ecdsa", "-b", "521"}, "ed25519": {"-t", "ed25519"}, "dsa": {"-t", "dsa"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "dsa" && exec.Command("ssh-keygen", "-q", "-t", "dsa", "-N", "", "-f", filepath.Join(t.TempDir(), "k")).Run() != nil {
				t.Skip("this ssh-keygen makes no DSA keys any more")
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
				if a.foreign != (name == "dsa") || !a.layout || a.comment != "comment of "+name {
					t.Errorf("%s: %+v", suffix, a)
				}
				if !a.foreign {
					signsWith(t, a.key, a.public)
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

// keygen has ssh-keygen make a key, and returns its file.
func keygen(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	args = append([]string{"-q", "-N", "", "-C", "comment of " + name, "-f", path}, args...)
	if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %s, %v", out, err)
	}
	return path
}

// sent is what ssh-add sends, to an agent that says yes to all of it.
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
		m, err := tryRecv(nc)
		if err != nil {
			break
		}
		requests = append(requests, m)
		send(t, nc, succeeded)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("ssh-add %q: %s, %v", args, out.String(), err)
	}
	return requests
}

// Fields of security keys behind the public key: application, flags, key
// handle, reserved.
var sk = []any{"ssh:", byte(1), "handle", ""}

// foreignKeys are requests for keys that others hold, without constraints. The
// names are the types.
func foreignKeys() map[string][]byte {
	all := map[string][]byte{}
	add := func(typ string, fields ...any) {
		fields = append(append([]any{typ}, fields...), "me@here")
		all[typ] = message(msgAddIDConstrained, fields...)
	}
	with := func(head ...any) []any { return append(head, sk...) }
	add("sk-ssh-ed25519@openssh.com", with(make([]byte, 32))...)
	add("sk-ssh-ed25519-cert-v01@openssh.com", with("certificate", make([]byte, 32))...)
	add("sk-ecdsa-sha2-nistp256@openssh.com", with("nistp256", make([]byte, 65))...)
	add("sk-ecdsa-sha2-nistp256-cert-v01@openssh.com", with("certificate")...)
	add("ssh-dss", "p", "q", "g", "y", "x")
	add("ssh-dss-cert-v01@openssh.com", "certificate", "x")
	add("ssh-ed448", make([]byte, 57), make([]byte, 114))
	add("ssh-mldsa44-ed25519@openssh.com", "public", "private")
	add("ssh-mldsa44-ed25519-cert-v01@openssh.com", "certificate", "private")
	return all
}

func TestForeign(t *testing.T) {
	for typ, request := range foreignKeys() {
		end := len(request)
		request = append(request, 2)
		a := added(t, request)
		if !a.foreign || !a.layout || a.key != nil || a.public != nil || a.typ != typ ||
			a.comment != "me@here" || string(a.constraints) != "\x02" {
			t.Errorf("%s: %+v", typ, a)
		}
		for n := 1 + 4 + len(typ); n < end; n++ {
			if _, err := parseAddition(request[:n]); err == nil {
				t.Errorf("%s: takes %d bytes of %d", typ, n, len(request))
			}
		}
	}
	for _, typ := range []string{"", "ssh-new", "rsa-sha2-256", "ssh-rsa ", "ecdsa-sha2-nistp192", "sk-new@openssh.com"} {
		a := added(t, append(message(msgAddIDConstrained, typ, "whatever"), 1, 2, 3))
		if !a.foreign || a.layout || a.key != nil || a.constraints != nil || a.comment != "" || a.typ != typ {
			t.Errorf("%q: %+v", typ, a)
		}
	}
}

// TestAdditionRSAInTime: numbers that would take for ever, or make the
// arithmetic panic. The time is the test's.
func TestAdditionRSAInTime(t *testing.T) {
	k := rsa2k().(*rsa.PrivateKey)
	n, e, d, iqmp, p, q := k.N, big.NewInt(int64(k.E)), k.D, k.Precomputed.Qinv, k.Primes[0], k.Primes[1]
	negative := []byte{0xff}
	num := func(i int64) *big.Int { return big.NewInt(i) }
	big200 := bytes.Repeat([]byte{0x7f}, 200<<10)
	odd := bytes.Repeat([]byte{0x7f}, maxNumber) // 16383 bits
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
		"longest e":               {n, odd, d, iqmp, p, q},
		"e is 0":                  {n, num(0), d, iqmp, p, q},
		"e is 1":                  {n, num(1), num(1), iqmp, p, q},
		"e is even":               {n, num(65536), d, iqmp, p, q},
		"e is another":            {n, num(3), d, iqmp, p, q},
		"e of 32 bits":            {n, num(1<<31 + 1), d, iqmp, p, q},
		"e of 64 bits":            {n, new(big.Int).SetUint64(1<<64 - 1), d, iqmp, p, q},
		"n is 0":                  {num(0), e, d, iqmp, p, q},
		"n is even":               {twice(n), e, d, iqmp, twice(p), q},
		"n is negative":           {new(big.Int).Neg(n), e, d, iqmp, p, q},
		"d is 0":                  {n, e, num(0), iqmp, p, q},
		"d is 1":                  {n, e, num(1), iqmp, p, q},
		"d is negative":           {n, e, new(big.Int).Neg(d), iqmp, p, q},
		"d is another":            {n, e, less(d), iqmp, p, q},
		"d is longer than n":      {n, e, new(big.Int).Add(d, times(n, times(less(p), less(q)))), iqmp, p, q},
		"iqmp is 0":               {n, e, d, num(0), p, q},
		"iqmp is another":         {n, e, d, less(iqmp), p, q},
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
			request := message(msgAddIdentity, append(append([]any{"ssh-rsa"}, f...), "me@here")...)
			if a, err := parseAddition(request); err == nil {
				t.Errorf("taken: %+v", a)
			} else {
				t.Log(err)
			}
		})
	}
	zeros := append([]byte{0, 0, 0}, n.Bytes()...)
	added(t, message(msgAddIdentity, "ssh-rsa", zeros, e, d, iqmp, p, q, ""))
	swapped := new(big.Int).ModInverse(p, q)
	a := added(t, message(msgAddIdentity, "ssh-rsa", n, e, d, swapped, q, p, ""))
	signsWith(t, a.key, a.public)
}

// FuzzParseAddition: whatever is taken can be used.
func FuzzParseAddition(f *testing.F) {
	for _, request := range captures(f) {
		f.Add(request)
		f.Add(request[:len(request)/2])
	}
	for _, request := range foreignKeys() {
		f.Add(request)
		giant := bytes.Clone(request)
		binary.BigEndian.PutUint32(giant[len(giant)-len("me@here")-4:], 1<<32-1)
		f.Add(giant)
	}
	f.Add(message(msgAddIdentity, "ssh-rsa", "", "", "", "", "", "", ""))
	f.Add(message(msgAddIdentity, "ecdsa-sha2-nistp256", "nistp384", "", "", ""))
	f.Fuzz(func(t *testing.T, request []byte) {
		a, err := parseAddition(request)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(request, a.constraints) || (a.foreign != (a.key == nil)) || (a.public == nil) != a.foreign {
			t.Fatalf("%+v", a)
		}
		if a.foreign {
			return
		}
		defer a.key.wipe()
		if a.public.Type() != a.typ || !a.layout {
			t.Fatalf("%+v", a)
		}
		signsWith(t, a.key, a.public)
		again, err := ssh.ParsePublicKey(a.public.Marshal())
		if err != nil || !bytes.Equal(again.Marshal(), a.public.Marshal()) {
			t.Fatalf("public key %x: %v", a.public.Marshal(), err)
		}
	})
}

func TestSoftwareKeyRefuses(t *testing.T) {
	a := added(t, adding(p256(), nil))
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.key.Sign(ended, nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, k := range []*addition{a, added(t, adding(rsa2k(), nil)), added(t, adding(ed(), nil))} {
		if _, err := k.key.Sign(context.Background(), nil, make([]byte, 33), crypto.SHA256); err == nil {
			t.Error(k.typ, "signs 33 bytes for SHA-256")
		}
	}
	for _, k := range []*addition{a, added(t, adding(rsa2k(), nil))} {
		if _, err := k.key.Sign(context.Background(), nil, make([]byte, 32), crypto.Hash(0)); err == nil {
			t.Error(k.typ, "signs what is not hashed")
		}
	}
}
