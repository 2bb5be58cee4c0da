package agent

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// boundTo binds or ends the test.
func boundTo(t testing.TB, bodies ...[]byte) *bindings {
	t.Helper()
	b := new(bindings)
	for i, body := range bodies {
		if err := b.bind(body); err != nil {
			t.Fatalf("bind %d: %v", i, err)
		}
	}
	return b
}

func TestBind(t *testing.T) {
	cert := certify(hostC(), hostCA(), []string{"c"}, nil)
	hosts := map[string]ssh.Signer{
		"ed25519":     hostA(),
		"ecdsa 256":   must(ssh.NewSignerFromSigner(p256())),
		"ecdsa 384":   hostB(),
		"ecdsa 521":   must(ssh.NewSignerFromSigner(p521())),
		"rsa sha1":    withAlgorithm(hostC(), ssh.KeyAlgoRSA),
		"rsa 256":     withAlgorithm(hostC(), ssh.KeyAlgoRSASHA256),
		"rsa 512":     withAlgorithm(hostC(), ssh.KeyAlgoRSASHA512),
		"certificate": cert,
		"one of sha1": certify(hostA(), withAlgorithm(hostC(), ssh.KeyAlgoRSA), []string{"a"}, nil),
	}
	for name, host := range hosts {
		t.Run(name, func(t *testing.T) {
			b := boundTo(t, bindBody(host, "id", true))
			if !b.bound() || !b.remote() || !b.last().forwarding {
				t.Fatalf("%+v after a bind", b)
			}
			if !sameKey(b.last().host, host.PublicKey()) || string(b.last().sessionID) != "id" {
				t.Errorf("recorded %+v", b.last())
			}
		})
	}
}

// TestBindKeepsNoRequest: a request may be overwritten when it is answered.
func TestBindKeepsNoRequest(t *testing.T) {
	body := bindBody(hostA(), "id", false)
	b := boundTo(t, body)
	clear(body)
	if !sameKey(b.last().host, hostA().PublicKey()) || string(b.last().sessionID) != "id" {
		t.Errorf("recorded %+v", b.last())
	}
}

func TestBindTrailingBytes(t *testing.T) {
	boundTo(t, append(bindBody(hostA(), "id", false), "more than OpenSSH reads"...))
}

func TestBindRefused(t *testing.T) {
	good := bindRequest{Host: hostA().PublicKey().Marshal(), SessionID: []byte("id"), Signature: signedBy(hostA(), []byte("id"))}
	with := func(change func(*bindRequest)) []byte {
		m := good
		change(&m)
		return ssh.Marshal(m)
	}
	userCA := certify(hostA(), hostCA(), []string{"a"}, nil).PublicKey().(*ssh.Certificate)
	forged := *userCA
	forged.ValidPrincipals = []string{"b"}
	tests := map[string]struct {
		body []byte
		want string
	}{
		"nothing":             {nil, "session-bind"},
		"another host's":      {with(func(m *bindRequest) { m.Host = hostD().PublicKey().Marshal() }), "did not verify"},
		"of another id":       {with(func(m *bindRequest) { m.SessionID = []byte("di") }), "did not verify"},
		"no signature":        {with(func(m *bindRequest) { m.Signature = nil }), "signature of host key SHA256:"},
		"damaged signature":   {with(func(m *bindRequest) { m.Signature = flipped(m.Signature) }), "did not verify"},
		"junk at signature":   {with(func(m *bindRequest) { m.Signature = append(bytes.Clone(m.Signature), 0) }), "1 bytes behind it"},
		"junk at key":         {with(func(m *bindRequest) { m.Host = append(bytes.Clone(m.Host), 0) }), "host key"},
		"no key":              {with(func(m *bindRequest) { m.Host = nil }), "host key"},
		"long id":             {bindBody(hostA(), strings.Repeat("i", maxSessionID+1), false), "129 bytes"},
		"unknown key":         {with(func(m *bindRequest) { m.Host = ssh.Marshal(struct{ A, B string }{"ssh-mldsa-44", "x"}) }), `type "ssh-mldsa-44"`},
		"dsa":                 {with(func(m *bindRequest) { m.Host = ssh.Marshal(struct{ A, B string }{"ssh-dss", "x"}) }), `type "ssh-dss"`},
		"algorithm as key":    {with(func(m *bindRequest) { m.Host = ssh.Marshal(struct{ A, B string }{ssh.KeyAlgoRSASHA256, "x"}) }), "host key"},
		"giant rsa":           {with(func(m *bindRequest) { m.Host = rsaBlob(1<<17, 3) }), "too large"},
		"giant exponent":      {with(func(m *bindRequest) { m.Host = rsaBlob(2048, 1<<40+1) }), "too large"},
		"short rsa":           {with(func(m *bindRequest) { m.Host = rsaBlob(1023, 65537) }), "1023 bits"},
		"point off the curve": {with(func(m *bindRequest) { m.Host = offCurve() }), "curve"},
		"forged certificate":  {with(func(m *bindRequest) { m.Host = forged.Marshal() }), "false signature"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var b bindings
			err := b.bind(tt.body)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if b.bound() || !b.remote() {
				t.Errorf("%+v after a refusal", b)
			}
		})
	}
}

// flipped has the last bit changed.
func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

func rsaBlob(bits uint, e int64) []byte {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return ssh.Marshal(struct {
		Type string
		E, N *big.Int
	}{ssh.KeyAlgoRSA, big.NewInt(e), n.Add(n, big.NewInt(1))})
}

func offCurve() []byte {
	point := make([]byte, 65)
	point[0], point[64] = 4, 1
	return ssh.Marshal(struct {
		Type, Curve string
		Point       []byte
	}{ssh.KeyAlgoECDSA256, "nistp256", point})
}

// TestBindTruncated: at every byte.
func TestBindTruncated(t *testing.T) {
	for _, host := range []ssh.Signer{hostA(), certify(hostB(), hostCA(), []string{"b"}, nil)} {
		body := bindBody(host, "id", false)
		for n := range body {
			var b bindings
			if b.bind(body[:n]) == nil || b.bound() || !b.remote() {
				t.Fatalf("%s, %d bytes of %d were taken", host.PublicKey().Type(), n, len(body))
			}
		}
	}
}

func TestBindOrder(t *testing.T) {
	body := func(host ssh.Signer, id string, forwarding bool) []byte { return bindBody(host, id, forwarding) }
	tests := map[string]struct {
		before [][]byte
		then   []byte
		want   string // "" for success
		n      int    // bindings after that
	}{
		"twice":                       {[][]byte{body(hostA(), "1", true)}, body(hostA(), "1", true), "", 1},
		"twice, the second to log in": {[][]byte{body(hostA(), "1", true)}, body(hostA(), "1", false), "", 1},
		"other id, same host":         {[][]byte{body(hostA(), "1", true)}, body(hostA(), "2", true), "", 2},
		"same id, other host":         {[][]byte{body(hostA(), "1", true)}, body(hostB(), "1", true), "another host key", 1},
		"behind a login":              {[][]byte{body(hostA(), "1", false)}, body(hostB(), "2", false), "already bound", 1},
		"a login twice":               {[][]byte{body(hostA(), "1", false)}, body(hostA(), "1", false), "already bound", 1},
		"a forwarding again behind a login": {
			[][]byte{body(hostA(), "1", true), body(hostB(), "2", false)}, body(hostA(), "1", true), "", 2,
		},
		"a login again behind a forwarding": {
			[][]byte{body(hostA(), "1", true), body(hostB(), "2", false)}, body(hostB(), "2", false), "already bound", 2,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := boundTo(t, tt.before...)
			err := b.bind(tt.then)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if len(b.hops) != tt.n || !b.remote() {
				t.Errorf("%d bindings, want %d", len(b.hops), tt.n)
			}
		})
	}
}

func TestBindLimit(t *testing.T) {
	var b bindings
	for i := range maxBindings {
		if err := b.bind(bindBody(hostA(), fmt.Sprint(i), true)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.bind(bindBody(hostA(), "one more", true)); err == nil || len(b.hops) != maxBindings {
		t.Errorf("got %v and %d bindings", err, len(b.hops))
	}
	if err := b.bind(bindBody(hostA(), "3", true)); err != nil {
		t.Errorf("one that is there: %v", err)
	}
}

// TestWireCertificate: certificates that x/crypto's parser takes and OpenSSH's
// does not, and one the other way round.
func TestWireCertificate(t *testing.T) {
	many := make([]string, maxPrincipals+1)
	short := must(ssh.NewSignerFromSigner(shortRSA(t)))
	made := func(ca ssh.Signer, change func(*ssh.Certificate)) []byte {
		return certify(hostA(), ca, []string{"a"}, change).PublicKey().Marshal()
	}
	tests := map[string]struct {
		blob []byte
		want string
	}{
		"good":            {made(hostCA(), nil), ""},
		"from ecdsa":      {made(hostB(), nil), ""},
		"from rsa":        {made(hostC(), nil), ""},
		"unknown type":    {made(hostCA(), func(c *ssh.Certificate) { c.CertType = 3 }), "unknown type 3"},
		"256 principals":  {made(hostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = many[1:] }), ""},
		"257 principals":  {made(hostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = many }), "257 principals"},
		"NUL behind name": {made(hostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a\x00"} }), ""},
		"NUL inside name": {made(hostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a\x00b"} }), "NUL"},
		"NUL in id":       {made(hostCA(), func(c *ssh.Certificate) { c.KeyId = "\x00b" }), "NUL"},
		"short authority": {made(short, nil), "512 bits"},
		"false signature": {flipped(made(hostCA(), nil)), "false signature"},
		"empty option":    {emptyOption(), ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parseWireKey(tt.blob)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// shortRSA makes a key that crypto/rsa would rather not.
func shortRSA(t *testing.T) *rsa.PrivateKey {
	t.Setenv("GODEBUG", "rsa1024min=0")
	return must(rsa.GenerateKey(rand.Reader, 512))
}

// emptyOption is a certificate with an option whose value is a string without
// anything in it, which x/crypto cannot write.
func emptyOption() []byte {
	var blob []byte
	cert := certify(hostA(), hostCA(), []string{"a"}, func(c *ssh.Certificate) {
		c.Extensions = map[string]string{"x@example.org": "\x00\x00\x00\x00"}
	}).PublicKey().(*ssh.Certificate)
	blob = cert.Marshal()
	from := ssh.Marshal(struct{ K, V string }{"x@example.org", string(ssh.Marshal(struct{ S string }{"\x00\x00\x00\x00"}))})
	to := ssh.Marshal(struct{ K, V string }{"x@example.org", "\x00\x00\x00\x00"})
	blob = bytes.Replace(blob, ssh.Marshal(struct{ S []byte }{from}), ssh.Marshal(struct{ S []byte }{to}), 1)
	blob = blob[:len(blob)-lengthSize-len(ssh.Marshal(cert.Signature))]
	return append(blob, ssh.Marshal(struct{ S []byte }{signedBy(hostCA(), blob)})...)
}

// FuzzBind: nothing is recorded that does not verify, and a refusal is not
// forgotten.
func FuzzBind(f *testing.F) {
	for _, host := range []ssh.Signer{hostA(), hostB(), hostC(), certify(hostA(), hostCA(), []string{"a"}, nil)} {
		f.Add(bindBody(host, "id", false))
		f.Add(bindBody(host, "other", true))
	}
	f.Add(ssh.Marshal(bindRequest{Host: rsaBlob(16384, 1<<24-1), Signature: make([]byte, 100)}))
	f.Fuzz(func(t *testing.T, body []byte) {
		var b bindings
		err := b.bind(body)
		if !b.remote() || b.bound() != (err == nil) {
			t.Fatalf("%v, and %+v", err, b)
		}
		if err != nil {
			return
		}
		var sig ssh.Signature
		var m bindRequest
		if err := ssh.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		if err := ssh.Unmarshal(m.Signature, &sig); err != nil {
			t.Fatal(err)
		}
		if err := b.last().host.Verify(b.last().sessionID, &sig); err != nil {
			t.Fatal(err)
		}
		if err := b.bind(body); (err == nil) != m.Forwarding {
			t.Fatalf("again: %v", err)
		}
	})
}
