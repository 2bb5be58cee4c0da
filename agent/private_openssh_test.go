package agent

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
)

// attempt is a request to add a key.
type attempt struct {
	name    string
	request []byte

	// refused says why we refuse what OpenSSH's agent takes; "" where both
	// must give the same answer.
	refused string
}

// Why we refuse what OpenSSH takes. It finds out when the key is used, by
// signatures that nobody accepts, or never.
const (
	notChecked = "OpenSSH does not check that the private part belongs to the public one"
	notSorted  = "x/crypto does not read certificates with options that are not in order, or not encoded as they should be"
)

// TestPrivateKeysLikeOpenSSH: the same keys are taken and refused by ssh-agent
// and by us, but for differences that have a reason.
func TestPrivateKeysLikeOpenSSH(t *testing.T) {
	nc := dialUnix(t, sshAgent(t))
	all := slices.Concat(goodOnes(), texts(), certificates(), rsaAttempts(), ecdsaAttempts(), ed25519Attempts())
	seen := map[string]bool{}
	for _, at := range all {
		if seen[at.name] {
			t.Errorf("two of the name %q", at.name)
		}
		seen[at.name] = true
		t.Run(at.name, func(t *testing.T) { compareAttempt(t, nc, at) })
	}
}

func compareAttempt(t *testing.T, nc *net.UnixConn, at attempt) {
	theirs := bytes.Equal(ask(t, nc, at.request), succeeded)
	a, err := parseAddition(at.request)
	ours := err == nil && !a.foreign
	if ours {
		defer a.key.wipe()
		signsWith(t, a.key, a.public)
	}
	switch {
	case at.refused != "" && ours:
		t.Errorf("taken, although %s", at.refused)
	case at.refused == "" && ours != theirs:
		t.Errorf("ssh-agent takes it: %t, we: %t, %v", theirs, ours, err)
	case ours:
		listsIt(t, nc, a)
	}
}

// listsIt: both know the key by the same blob and the same comment.
func listsIt(t *testing.T, nc *net.UnixConn, a *addition) {
	t.Helper()
	entry := appendString(appendString(nil, string(a.public.Marshal())), a.comment)
	if !bytes.Contains(ask(t, nc, listThem), entry) {
		t.Error("ssh-agent lists it as another")
	}
	if !bytes.Equal(ask(t, nc, removeMessage(a.public.Marshal())), succeeded) {
		t.Error("ssh-agent does not know it")
	}
}

func goodOnes() (all []attempt) {
	for name, s := range signers() {
		all = append(all,
			attempt{name, adding(s, nil), ""},
			attempt{name + " certificate", adding(s, certFor(s)), ""},
			attempt{name + " certificate of a host", adding(s, certFor(s, func(c *ssh.Certificate) { c.CertType = ssh.HostCert })), ""},
			attempt{name + " certificate, no longer valid", adding(s, certFor(s, func(c *ssh.Certificate) { c.ValidBefore = 1 })), ""},
			attempt{name + " with nothing behind the type", message(msgAddIdentity, publicOf(s).Type()), ""},
			attempt{name + " without comment", adding(s, nil)[:len(adding(s, nil))-len("me@here")-4], ""},
		)
	}
	return all
}

// texts are types and comments.
func texts() (all []attempt) {
	for name, comment := range map[string]string{
		"no comment": "", "NUL at the end of the comment": "me\x00", "NUL as comment": "\x00",
		"NUL in the comment": "m\x00e", "two NULs at the end of the comment": "me\x00\x00",
		"comment with control characters": "\x1b[2J\n\xff", "long comment": strings.Repeat("x", 100<<10),
	} {
		all = append(all, attempt{name, message(msgAddIdentity, append(append([]any{ssh.KeyAlgoED25519}, privateFields(ed(), false)...), comment)...), ""})
	}
	typed := func(name, typ string, s crypto.Signer) {
		all = append(all, attempt{name, message(msgAddIdentity, append(append([]any{typ}, privateFields(s, false)...), "me@here")...), ""})
	}
	typed("NUL at the end of the type", "ssh-ed25519\x00", ed())
	typed("NUL in the type", "ssh-ed\x0025519", ed())
	typed("type in capitals", "SSH-ED25519", ed())
	typed("type of another curve", ssh.KeyAlgoECDSA384, p256())
	typed("type of another algorithm", ssh.KeyAlgoECDSA256, ed())
	short := message(msgAddIdentity, append(append([]any{"ed25519"}, privateFields(ed(), false)...), "me@here")...)
	all = append(all, attempt{"short name of the type", short, "only older versions of OpenSSH take the names that ssh-keygen -t has"})
	return append(all, attempt{"nothing", []byte{msgAddIdentity}, ""}, attempt{"no type", message(msgAddIdentity, ""), ""})
}

func certificates() []attempt {
	s := p256()
	of := func(name, refused string, change func(*ssh.Certificate)) attempt {
		return attempt{name, adding(s, certFor(s, change)), refused}
	}
	raw := func(name, refused string, s crypto.Signer, typ string, blob []byte) attempt {
		fields := append([]any{typ, blob}, privateFields(s, true)...)
		return attempt{name, message(msgAddIdentity, append(fields, "me@here")...), refused}
	}
	const typ = ssh.CertAlgoECDSA256v01
	good := certFor(s).Marshal()
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
		raw("plain key for a certificate", "", s, typ, publicOf(s).Marshal()),
		raw("certificate of another curve", "OpenSSH compares the curves of plain keys only", s, typ, certFor(p384()).Marshal()),
		raw("certificate of another type", "", s, typ, certFor(ed()).Marshal()),
		raw("certificate under the type of another", "", s, ssh.CertAlgoRSAv01, good),
		raw("certificate for another Ed25519 key", "", must(second(ed25519.GenerateKey(rand.Reader))), ssh.CertAlgoED25519v01, certFor(ed()).Marshal()),
		raw("certificate for another ECDSA key", notChecked, newECDSA(elliptic.P256()), typ, good),
		raw("certificate for another RSA key", notChecked, must(rsa.GenerateKey(rand.Reader, 2048)), ssh.CertAlgoRSAv01, certFor(rsa2k()).Marshal()),
		raw("certificate with options out of order", notSorted, s, typ, signedCert(s, appendString(appendString(appendString(appendString(nil, "b"), ""), "a"), ""))),
		raw("certificate with an empty string in an option", notSorted, s, typ, signedCert(s, appendString(appendString(nil, "b"), "\x00\x00\x00\x00"))),
		raw("certificate with half an option", "", s, typ, signedCert(s, appendString(nil, "b"))),
		raw("certificate built by hand", "", s, typ, signedCert(s, appendString(appendString(nil, "b"), ""))),
	}
	for _, format := range []string{ssh.KeyAlgoRSA, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512} {
		ca := must(ssh.NewSignerWithAlgorithms(must(ssh.NewSignerFromSigner(rsa2k())).(ssh.AlgorithmSigner), []string{format}))
		cert := certFor(s)
		if err := cert.SignCert(rand.Reader, ca); err != nil {
			panic(err)
		}
		all = append(all, attempt{"certificate signed with " + format, adding(s, cert), ""})
	}
	return all
}

// signedCert is a certificate whose extensions are encoded as given.
func signedCert(s crypto.Signer, extensions []byte) []byte {
	key := publicOf(s).Marshal()
	typ := publicOf(s).Type()
	blob := appendString(nil, typ+"-cert-v01@openssh.com")
	blob = appendString(blob, "nonce")
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
	}{1, ssh.UserCert, "id", nil, 0, 1 << 40, nil, extensions, nil, caSign().PublicKey().Marshal()})...)
	return appendString(blob, string(ssh.Marshal(must(caSign().Sign(rand.Reader, blob)))))
}

func rsaAttempts() []attempt {
	k := rsa2k().(*rsa.PrivateKey)
	one := big.NewInt(1)
	of := func(name, refused string, change func(f []any)) attempt {
		f := privateFields(k, false) // n, e, d, iqmp, p, q
		change(f)
		return attempt{"rsa, " + name, message(msgAddIdentity, append(append([]any{ssh.KeyAlgoRSA}, f...), "me@here")...), refused}
	}
	plus := func(i int) func([]any) {
		return func(f []any) { f[i] = new(big.Int).Add(f[i].(*big.Int), one) }
	}
	set := func(i int, v any) func([]any) { return func(f []any) { f[i] = v } }
	small := must(rsa.GenerateKey(rand.Reader, minRSABits))
	all := []attempt{
		{"rsa of 1024 bits", adding(small, nil), ""},
		{"rsa with an exponent of 31 bits", adding(rsaWith(1<<31-1), nil), ""},
		{"rsa with exponent 3", adding(rsaWith(3), nil), ""},
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
			of("another "+name, notChecked, plus(i)),
			of("negative "+name, "", set(i, []byte{0xff})),
			of("too long "+name, "", set(i, bytes.Repeat([]byte{1}, maxNumber+2))),
		)
	}
	return all
}

// rsaWith makes a key with the exponent e.
func rsaWith(e int) *rsa.PrivateKey {
	one := big.NewInt(1)
	for {
		p, q := must(rand.Prime(rand.Reader, 512)), must(rand.Prime(rand.Reader, 512))
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		k := &rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: e},
			D:         new(big.Int).ModInverse(big.NewInt(int64(e)), phi), Primes: []*big.Int{p, q},
		}
		if k.D == nil || k.N.BitLen() < minRSABits || k.Validate() != nil {
			continue
		}
		k.Precompute()
		return k
	}
}

func ecdsaAttempts() (all []attempt) {
	for name, s := range map[string]crypto.Signer{"p256": p256(), "p384": p384(), "p521": p521()} {
		k := s.(*ecdsa.PrivateKey)
		n, one := k.Curve.Params().N, big.NewInt(1)
		d := new(big.Int).SetBytes(must(k.Bytes()))
		point := must(k.PublicKey.Bytes())
		curve := strings.TrimPrefix(publicOf(s).Type(), "ecdsa-sha2-")
		of := func(what, refused string, curve, point, d any) {
			all = append(all, attempt{
				fmt.Sprintf("%s, %s", name, what),
				message(msgAddIdentity, publicOf(s).Type(), curve, point, d, "me@here"), refused,
			})
		}
		size := len(point) / 2
		off := bytes.Clone(point)
		off[len(off)-1] ^= 1
		compressed := append([]byte{2 + point[len(point)-1]&1}, point[1:1+size]...)
		of("leading zeros", "", curve, point, append([]byte{0, 0, 0}, d.Bytes()...))
		of("another private key", notChecked, curve, point, new(big.Int).Xor(d, one))
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
		of("point beside the curve", "", curve, off, d)
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

// pointOf is the public key for d.
func pointOf(c elliptic.Curve, d *big.Int) []byte {
	raw := d.FillBytes(make([]byte, (c.Params().N.BitLen()+7)/8))
	return must(must(ecdsa.ParseRawPrivateKey(c, raw)).PublicKey.Bytes())
}

func ed25519Attempts() []attempt {
	k := ed().(ed25519.PrivateKey)
	other := must(second(ed25519.GenerateKey(rand.Reader)))
	public, private := []byte(k[32:]), []byte(k)
	of := func(name, refused string, public, private []byte) attempt {
		return attempt{"ed25519, " + name, message(msgAddIdentity, ssh.KeyAlgoED25519, public, private, "me@here"), refused}
	}
	return []attempt{
		of("another public key", notChecked, other[32:], private),
		of("another private key", notChecked, public, other),
		of("another seed", notChecked, public, append(bytes.Clone(other[:32]), public...)),
		of("another second half", notChecked, public, append(bytes.Clone(private[:32]), other[32:]...)),
		of("seed only", "", public, private[:32]),
		of("private key of 63 bytes", "", public, private[:63]),
		of("private key of 65 bytes", "", public, append(bytes.Clone(private), 0)),
		of("public key of 31 bytes", "", public[:31], private),
		of("public key of 33 bytes", "", append(bytes.Clone(public), 0), private),
		of("nothing", "", nil, nil),
	}
}

// TestConstraintsLikeOpenSSH: there is no difference between requests 17 and
// 25. What is behind the comment of either are constraints.
func TestConstraintsLikeOpenSSH(t *testing.T) {
	nc := dialUnix(t, sshAgent(t))
	for _, number := range []byte{msgAddIdentity, msgAddIDConstrained} {
		request := adding(p256(), nil)
		request[0] = number
		for constraints, good := range map[string]bool{"": true, "\x01\x00\x00\x00\x09": true, "\x02": true, "\x01\x00": false, "\x63": false} {
			with := append(bytes.Clone(request), constraints...)
			if got := bytes.Equal(ask(t, nc, with), succeeded); got != good {
				t.Errorf("request %d with constraints %x: ssh-agent takes it: %t", number, constraints, got)
			}
			if a := added(t, with); string(a.constraints) != constraints {
				t.Errorf("request %d with constraints %x: parsed as %x", number, constraints, a.constraints)
			}
		}
	}
}
