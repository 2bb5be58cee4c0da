package softkey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// attempt is a request to add a key.
type attempt struct {
	name    string
	request []byte

	// refused is why we refuse what OpenSSH's agent takes; "" if both must
	// answer the same.
	refused string
}

// Why we refuse what OpenSSH takes. With OpenSSH such a key fails in use.
const (
	notChecked = "OpenSSH does not check that the private part belongs to the public one"
	notSorted  = "x/crypto does not read certificates with options that are not in order, or not encoded as they should be"
)

// TestPrivateKeysLikeOpenSSH checks that we take and refuse the same keys as
// ssh-agent, except where the table has a reason.
func TestPrivateKeysLikeOpenSSH(t *testing.T) {
	t.Parallel()
	nc := sshtest.DialUnix(t, sshtest.SshAgent(t))
	all := slices.Concat(goodOnes(), texts(), certificates(), rsaAttempts(), ecdsaAttempts(), ed25519Attempts())
	seen := map[string]bool{}
	for _, at := range all {
		if seen[at.name] {
			t.Errorf("two attempts are named %q", at.name)
		}
		seen[at.name] = true
		t.Run(at.name, func(t *testing.T) { compareAttempt(t, nc, at) })
	}
}

func compareAttempt(t *testing.T, nc *net.UnixConn, at attempt) {
	theirs := bytes.Equal(sshtest.Exchange(t, nc, at.request), sshtest.Succeeded)
	a, err := ParseAddition(at.request)
	ours := err == nil && !a.Foreign
	if ours {
		defer a.Key.Wipe()
		signsWith(t, a.Key, a.Public)
	}
	switch {
	case at.refused != "" && ours:
		t.Errorf("taken, but must be refused: %s", at.refused)
	case at.refused == "" && ours != theirs:
		t.Errorf("taken by ssh-agent: %t; by us: %t, %v", theirs, ours, err)
	case ours:
		listsIt(t, nc, a)
	}
}

// listsIt checks that ssh-agent lists the same blob and comment as we would.
func listsIt(t *testing.T, nc *net.UnixConn, a *Addition) {
	t.Helper()
	entry := wire.AppendString(wire.AppendString(nil, string(a.Public.Marshal())), a.Comment)
	if !bytes.Contains(sshtest.Exchange(t, nc, sshtest.ListThem), entry) {
		t.Error("ssh-agent lists it differently")
	}
	if !bytes.Equal(sshtest.Exchange(t, nc, sshtest.RemoveMessage(a.Public.Marshal())), sshtest.Succeeded) {
		t.Error("ssh-agent does not know it")
	}
}

func goodOnes() (all []attempt) {
	for name, s := range sshtest.Signers() {
		all = append(all,
			attempt{name, sshtest.Adding(s, nil), ""},
			attempt{name + " certificate", sshtest.Adding(s, sshtest.CertFor(s)), ""},
			attempt{name + " certificate of a host", sshtest.Adding(s, sshtest.CertFor(s, func(c *ssh.Certificate) { c.CertType = ssh.HostCert })), ""},
			attempt{name + " certificate, no longer valid", sshtest.Adding(s, sshtest.CertFor(s, func(c *ssh.Certificate) { c.ValidBefore = 1 })), ""},
			attempt{name + " with nothing behind the type", sshtest.Message(wire.MsgAddIdentity, sshtest.PublicOf(s).Type()), ""},
			attempt{name + " without comment", sshtest.Adding(s, nil)[:len(sshtest.Adding(s, nil))-len("me@here")-4], ""},
		)
	}
	return all
}

// texts returns attempts with unusual types and comments.
func texts() (all []attempt) {
	for name, comment := range map[string]string{
		"no comment": "", "NUL at the end of the comment": "me\x00", "NUL as comment": "\x00",
		"NUL in the comment": "m\x00e", "two NULs at the end of the comment": "me\x00\x00",
		"comment with control characters": "\x1b[2J\n\xff", "long comment": strings.Repeat("x", 100<<10),
	} {
		all = append(all, attempt{name, sshtest.Message(wire.MsgAddIdentity, append(append([]any{ssh.KeyAlgoED25519}, sshtest.PrivateFields(sshtest.Ed25519(), false)...), comment)...), ""})
	}
	typed := func(name, typ string, s crypto.Signer) {
		all = append(all, attempt{name, sshtest.Message(wire.MsgAddIdentity, append(append([]any{typ}, sshtest.PrivateFields(s, false)...), "me@here")...), ""})
	}
	typed("NUL at the end of the type", "ssh-ed25519\x00", sshtest.Ed25519())
	typed("NUL in the type", "ssh-ed\x0025519", sshtest.Ed25519())
	typed("type in capitals", "SSH-ED25519", sshtest.Ed25519())
	typed("type of another curve", ssh.KeyAlgoECDSA384, sshtest.P256())
	typed("type of another algorithm", ssh.KeyAlgoECDSA256, sshtest.Ed25519())
	short := sshtest.Message(wire.MsgAddIdentity, append(append([]any{"ed25519"}, sshtest.PrivateFields(sshtest.Ed25519(), false)...), "me@here")...)
	all = append(all, attempt{"short name of the type", short, "only older versions of OpenSSH take the names that ssh-keygen -t has"})
	return append(all, attempt{"nothing", []byte{wire.MsgAddIdentity}, ""}, attempt{"no type", sshtest.Message(wire.MsgAddIdentity, ""), ""})
}

func certificates() []attempt {
	s := sshtest.P256()
	of := func(name, refused string, change func(*ssh.Certificate)) attempt {
		return attempt{name, sshtest.Adding(s, sshtest.CertFor(s, change)), refused}
	}
	raw := func(name, refused string, s crypto.Signer, typ string, blob []byte) attempt {
		fields := append([]any{typ, blob}, sshtest.PrivateFields(s, true)...)
		return attempt{name, sshtest.Message(wire.MsgAddIdentity, append(fields, "me@here")...), refused}
	}
	const typ = ssh.CertAlgoECDSA256v01
	good := sshtest.CertFor(s).Marshal()
	spoilt := bytes.Clone(good)
	spoilt[len(spoilt)-1] ^= 1
	all := []attempt{
		of("certificate of a third kind", "", func(c *ssh.Certificate) { c.CertType = 3 }),
		of("certificate with 256 principals", "", func(c *ssh.Certificate) { c.ValidPrincipals = slices.Repeat([]string{"x"}, 256) }),
		of("certificate with 257 principals", "", func(c *ssh.Certificate) { c.ValidPrincipals = slices.Repeat([]string{"x"}, 257) }),
		of("certificate with NUL in the key id", "", func(c *ssh.Certificate) { c.KeyId = "a\x00b" }),
		of("certificate with NUL in a principal", "", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a\x00b"} }),
		of("certificate with NUL at the end of the key id", "", func(c *ssh.Certificate) { c.KeyId = "a\x00" }),
		of("certificate with options", "", func(c *ssh.Certificate) {
			c.CriticalOptions = map[string]string{"force-command": "x", "unknown": "y"}
			c.Extensions = map[string]string{"permit-pty": "", "permit-X11-forwarding": ""}
		}),
		raw("certificate with a false signature", "", s, typ, spoilt),
		raw("certificate cut short", "", s, typ, good[:len(good)-1]),
		raw("certificate with junk", "", s, typ, append(bytes.Clone(good), 0)),
		raw("no certificate", "", s, typ, nil),
		raw("plain key for a certificate", "", s, typ, sshtest.PublicOf(s).Marshal()),
		raw("certificate of another curve", "OpenSSH compares the curves of plain keys only", s, typ, sshtest.CertFor(sshtest.P384()).Marshal()),
		raw("certificate of another type", "", s, typ, sshtest.CertFor(sshtest.Ed25519()).Marshal()),
		raw("certificate under the type of another", "", s, ssh.CertAlgoRSAv01, good),
		raw("certificate for another Ed25519 key", "", sshtest.Must(sshtest.Second(ed25519.GenerateKey(rand.Reader))), ssh.CertAlgoED25519v01, sshtest.CertFor(sshtest.Ed25519()).Marshal()),
		raw("certificate for another ECDSA key", notChecked, sshtest.NewECDSA(elliptic.P256()), typ, good),
		raw("certificate for another RSA key", notChecked, sshtest.Must(rsa.GenerateKey(rand.Reader, 2048)), ssh.CertAlgoRSAv01, sshtest.CertFor(sshtest.RSA2048()).Marshal()),
		raw("certificate with options out of order", notSorted, s, typ, signedCert(s, wire.AppendString(wire.AppendString(wire.AppendString(wire.AppendString(nil, "b"), ""), "a"), ""))),
		raw("certificate with an empty string in an option", notSorted, s, typ, signedCert(s, wire.AppendString(wire.AppendString(nil, "b"), "\x00\x00\x00\x00"))),
		raw("certificate with half an option", "", s, typ, signedCert(s, wire.AppendString(nil, "b"))),
		raw("certificate built by hand", "", s, typ, signedCert(s, wire.AppendString(wire.AppendString(nil, "b"), ""))),
	}
	for _, format := range []string{ssh.KeyAlgoRSA, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512} {
		ca := sshtest.Must(ssh.NewSignerWithAlgorithms(sshtest.Must(ssh.NewSignerFromSigner(sshtest.RSA2048())).(ssh.AlgorithmSigner), []string{format}))
		cert := sshtest.CertFor(s)
		if err := cert.SignCert(rand.Reader, ca); err != nil {
			panic(err)
		}
		all = append(all, attempt{"certificate signed with " + format, sshtest.Adding(s, cert), ""})
	}
	return all
}

// signedCert makes a certificate whose extensions are encoded as given.
func signedCert(s crypto.Signer, extensions []byte) []byte {
	key := sshtest.PublicOf(s).Marshal()
	typ := sshtest.PublicOf(s).Type()
	blob := wire.AppendString(nil, typ+"-cert-v01@openssh.com")
	blob = wire.AppendString(blob, "nonce")
	blob = append(blob, key[4+len(typ):]...)
	blob = append(blob, ssh.Marshal(struct {
		Serial          uint64
		Type            uint32
		KeyID           string
		Principals      []byte
		After, Before   uint64
		Options         []byte
		Extensions      []byte
		Reserved, CAKey []byte
	}{1, ssh.UserCert, "id", nil, 0, 1 << 40, nil, extensions, nil, sshtest.CA().PublicKey().Marshal()})...)
	return wire.AppendString(blob, string(ssh.Marshal(sshtest.Must(sshtest.CA().Sign(rand.Reader, blob)))))
}

func rsaAttempts() []attempt {
	k := sshtest.RSA2048().(*rsa.PrivateKey)
	one := big.NewInt(1)
	of := func(name, refused string, change func(f []any)) attempt {
		f := sshtest.PrivateFields(k, false) // n, e, d, iqmp, p, q
		change(f)
		return attempt{"rsa, " + name, sshtest.Message(wire.MsgAddIdentity, append(append([]any{ssh.KeyAlgoRSA}, f...), "me@here")...), refused}
	}
	plus := func(i int) func([]any) {
		return func(f []any) { f[i] = new(big.Int).Add(f[i].(*big.Int), one) }
	}
	set := func(i int, v any) func([]any) { return func(f []any) { f[i] = v } }
	small := sshtest.Must(rsa.GenerateKey(rand.Reader, sshkey.MinRSABits))
	all := []attempt{
		{"rsa of 1024 bits", sshtest.Adding(small, nil), ""},
		{"rsa with an exponent of 31 bits", sshtest.Adding(rsaWith(1<<31-1), nil), ""},
		{"rsa with exponent 3", sshtest.Adding(rsaWith(3), nil), ""},
		of("leading zeros", "", func(f []any) {
			for i, x := range f {
				f[i] = append([]byte{0, 0, 0}, x.(*big.Int).Bytes()...)
			}
		}),
		of("swapped", "", func(f []any) { f[4], f[5], f[3] = f[5], f[4], new(big.Int).ModInverse(k.Primes[0], k.Primes[1]) }),
		of("swapped, but not iqmp", notChecked, func(f []any) { f[4], f[5] = f[5], f[4] }),
		of("exponent of 64 bits", "crypto/rsa has exponents of up to 31 bits", set(1, new(big.Int).SetUint64(1<<64-1))),
		of("exponent 0", notChecked, set(1, new(big.Int))),
		of("exponent 1", notChecked, set(1, one)),
		of("exponent even", notChecked, plus(1)),
		of("short modulus", "", set(0, new(big.Int).Rsh(k.N, 1025))),
		of("modulus 0", "", set(0, new(big.Int))),
		of("p 0", notChecked, set(4, new(big.Int))),
		of("p 1", "", set(4, one)),
	}
	for i, name := range []string{"modulus", "exponent", "d", "iqmp", "p", "q"} {
		all = append(
			all,
			of("different "+name, notChecked, plus(i)),
			of("negative "+name, "", set(i, []byte{0xff})),
			of("too long "+name, "", set(i, bytes.Repeat([]byte{1}, maxBits/8+2))),
		)
	}
	return all
}

// rsaWith makes a key with the exponent e.
func rsaWith(e int) *rsa.PrivateKey {
	one := big.NewInt(1)
	for {
		p, q := sshtest.Must(rand.Prime(rand.Reader, 512)), sshtest.Must(rand.Prime(rand.Reader, 512))
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		k := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: e},
			D:         new(big.Int).ModInverse(big.NewInt(int64(e)), phi), Primes: []*big.Int{p, q},
		}
		if k.D == nil || k.N.BitLen() < sshkey.MinRSABits || k.Validate() != nil {
			continue
		}
		k.Precompute()
		return k
	}
}

func ecdsaAttempts() (all []attempt) {
	for name, s := range map[string]crypto.Signer{"p256": sshtest.P256(), "p384": sshtest.P384(), "p521": sshtest.P521()} {
		k := s.(*ecdsa.PrivateKey)
		n, one := k.Curve.Params().N, big.NewInt(1)
		d := new(big.Int).SetBytes(sshtest.Must(k.Bytes()))
		point := sshtest.Must(k.PublicKey.Bytes())
		curve := strings.TrimPrefix(sshtest.PublicOf(s).Type(), "ecdsa-sha2-")
		of := func(what, refused string, curve, point, d any) {
			all = append(all, attempt{
				fmt.Sprintf("%s, %s", name, what),
				sshtest.Message(wire.MsgAddIdentity, sshtest.PublicOf(s).Type(), curve, point, d, "me@here"), refused,
			})
		}
		size := len(point) / 2
		off := bytes.Clone(point)
		off[len(off)-1] ^= 1
		compressed := append([]byte{2 + point[len(point)-1]&1}, point[1:1+size]...)
		of("leading zeros", "", curve, point, append([]byte{0, 0, 0}, d.Bytes()...))
		of("different private key", notChecked, curve, point, new(big.Int).Xor(d, one))
		of("private key 0", "", curve, point, new(big.Int))
		of("private key 1", "", curve, point, one)
		half := new(big.Int).Lsh(one, uint(n.BitLen()/2-1))
		of("private key of half the length", "", curve, pointOf(k.Curve, half), half)
		longer := new(big.Int).Lsh(half, 1)
		of("private key longer than half", "", curve, pointOf(k.Curve, longer), longer)
		of("private key is the order", "", curve, point, n)
		less := new(big.Int).Sub(n, one)
		of("private key is less by one", "", curve, pointOf(k.Curve, less), less)
		of("private key is longer", "", curve, point, new(big.Int).Lsh(d, 16))
		of("private key is negative", "", curve, point, new(big.Int).Neg(d))
		of("point off the curve", "", curve, off, d)
		of("point at infinity", "", curve, []byte{0}, d)
		of("no point", "", curve, "", d)
		of("point compressed", "", curve, compressed, d)
		of("point with junk", "", curve, append(bytes.Clone(point), 0), d)
		of("curve of another", "", "nistp192", point, d)
		of("curve without name", "", "", point, d)
		of("curve with NUL at the end", "", curve+"\x00", point, d)
		of("point 0", "", curve, append([]byte{4}, make([]byte, 2*size)...), d)
	}
	return all
}

// pointOf returns the public key of d.
func pointOf(c elliptic.Curve, d *big.Int) []byte {
	raw := d.FillBytes(make([]byte, (c.Params().N.BitLen()+7)/8))
	return sshtest.Must(sshtest.Must(ecdsa.ParseRawPrivateKey(c, raw)).PublicKey.Bytes())
}

func ed25519Attempts() []attempt {
	k := sshtest.Ed25519().(ed25519.PrivateKey)
	other := sshtest.Must(sshtest.Second(ed25519.GenerateKey(rand.Reader)))
	public, private := []byte(k[32:]), []byte(k)
	of := func(name, refused string, public, private []byte) attempt {
		return attempt{"ed25519, " + name, sshtest.Message(wire.MsgAddIdentity, ssh.KeyAlgoED25519, public, private, "me@here"), refused}
	}
	return []attempt{
		of("different public key", notChecked, other[32:], private),
		of("different private key", notChecked, public, other),
		of("different seed", notChecked, public, append(bytes.Clone(other[:32]), public...)),
		of("different second half", notChecked, public, append(bytes.Clone(private[:32]), other[32:]...)),
		of("seed only", "", public, private[:32]),
		of("private key of 63 bytes", "", public, private[:63]),
		of("private key of 65 bytes", "", public, append(bytes.Clone(private), 0)),
		of("public key of 31 bytes", "", public[:31], private),
		of("public key of 33 bytes", "", append(bytes.Clone(public), 0), private),
		of("nothing", "", nil, nil),
	}
}

// TestConstraintsLikeOpenSSH checks that requests 17 and 25 mean the same: what
// follows the comment is constraints in both.
func TestConstraintsLikeOpenSSH(t *testing.T) {
	t.Parallel()
	nc := sshtest.DialUnix(t, sshtest.SshAgent(t))
	for _, number := range []byte{wire.MsgAddIdentity, wire.MsgAddIDConstrained} {
		request := sshtest.Adding(sshtest.P256(), nil)
		request[0] = number
		for constraints, good := range map[string]bool{"": true, "\x01\x00\x00\x00\x09": true, "\x02": true, "\x01\x00": false, "\x63": false} {
			with := append(bytes.Clone(request), constraints...)
			if got := bytes.Equal(sshtest.Exchange(t, nc, with), sshtest.Succeeded); got != good {
				t.Errorf("request %d with constraints %x: taken by ssh-agent: %t", number, constraints, got)
			}
			if a := added(t, with); string(a.Constraints) != constraints {
				t.Errorf("request %d with constraints %x: parsed as %x", number, constraints, a.Constraints)
			}
		}
	}
}
