package restrict

import (
	"bytes"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// boundTo returns the bindings of these bodies, all of which must be accepted.
func boundTo(t testing.TB, bodies ...[]byte) *Bindings {
	t.Helper()
	b := new(Bindings)
	for i, body := range bodies {
		if err := b.Bind(body); err != nil {
			t.Fatalf("bind %d: %v", i, err)
		}
	}
	return b
}

func TestBind(t *testing.T) {
	t.Parallel()
	cert := sshtest.Certify(sshtest.HostC(), sshtest.HostCA(), []string{"c"}, nil)
	hosts := map[string]ssh.Signer{
		"ed25519":             sshtest.HostA(),
		"ecdsa 256":           sshtest.Must(ssh.NewSignerFromSigner(sshtest.P256())),
		"ecdsa 384":           sshtest.HostB(),
		"ecdsa 521":           sshtest.Must(ssh.NewSignerFromSigner(sshtest.P521())),
		"rsa sha1":            sshtest.WithAlgorithm(sshtest.HostC(), ssh.KeyAlgoRSA),
		"rsa 256":             sshtest.WithAlgorithm(sshtest.HostC(), ssh.KeyAlgoRSASHA256),
		"rsa 512":             sshtest.WithAlgorithm(sshtest.HostC(), ssh.KeyAlgoRSASHA512),
		"certificate":         cert,
		"certificate by sha1": sshtest.Certify(sshtest.HostA(), sshtest.WithAlgorithm(sshtest.HostC(), ssh.KeyAlgoRSA), []string{"a"}, nil),
	}
	for name, host := range hosts {
		t.Run(name, func(t *testing.T) {
			b := boundTo(t, sshtest.BindBody(host, "id", true))
			if !b.bound() || !b.Remote() || !b.last().forwarding {
				t.Fatalf("%+v after a bind", b)
			}
			if !sshkey.Same(b.last().host, host.PublicKey()) || string(b.last().sessionID) != "id" {
				t.Errorf("recorded %+v", b.last())
			}
		})
	}
}

// TestBindCopies checks that the request may be overwritten after it was answered.
func TestBindCopies(t *testing.T) {
	t.Parallel()
	body := sshtest.BindBody(sshtest.HostA(), "id", false)
	b := boundTo(t, body)
	clear(body)
	if !sshkey.Same(b.last().host, sshtest.HostA().PublicKey()) || string(b.last().sessionID) != "id" {
		t.Errorf("recorded %+v", b.last())
	}
}

func TestBindTrailingBytes(t *testing.T) {
	t.Parallel()
	boundTo(t, append(sshtest.BindBody(sshtest.HostA(), "id", false), "more than OpenSSH reads"...))
}

func TestBindRefused(t *testing.T) {
	t.Parallel()
	good := bindRequest{Host: sshtest.HostA().PublicKey().Marshal(), SessionID: []byte("id"), Signature: sshtest.SignedBy(sshtest.HostA(), []byte("id"))}
	with := func(change func(*bindRequest)) []byte {
		m := good
		change(&m)
		return ssh.Marshal(m)
	}
	userCA := sshtest.Certify(sshtest.HostA(), sshtest.HostCA(), []string{"a"}, nil).PublicKey().(*ssh.Certificate)
	forged := *userCA
	forged.ValidPrincipals = []string{"b"}
	tests := map[string]struct {
		body []byte
		want string
	}{
		"nothing":             {nil, "session-bind"},
		"of another host":     {with(func(m *bindRequest) { m.Host = sshtest.HostD().PublicKey().Marshal() }), "did not verify"},
		"of another id":       {with(func(m *bindRequest) { m.SessionID = []byte("di") }), "did not verify"},
		"no signature":        {with(func(m *bindRequest) { m.Signature = nil }), "signature of host key SHA256:"},
		"damaged signature":   {with(func(m *bindRequest) { m.Signature = flipped(m.Signature) }), "did not verify"},
		"junk at signature":   {with(func(m *bindRequest) { m.Signature = append(bytes.Clone(m.Signature), 0) }), "1 bytes behind it"},
		"junk at key":         {with(func(m *bindRequest) { m.Host = append(bytes.Clone(m.Host), 0) }), "host key"},
		"no key":              {with(func(m *bindRequest) { m.Host = nil }), "host key"},
		"long id":             {sshtest.BindBody(sshtest.HostA(), strings.Repeat("i", maxSessionID+1), false), "129 bytes"},
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
			var b Bindings
			err := b.Bind(tt.body)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if b.bound() || !b.Remote() {
				t.Errorf("%+v after a refusal", b)
			}
		})
	}
}

// flipped returns a copy of b with its last bit flipped.
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

// TestBindTruncated cuts a request at each byte.
func TestBindTruncated(t *testing.T) {
	t.Parallel()
	for _, host := range []ssh.Signer{sshtest.HostA(), sshtest.Certify(sshtest.HostB(), sshtest.HostCA(), []string{"b"}, nil)} {
		body := sshtest.BindBody(host, "id", false)
		for n := range body {
			var b Bindings
			if b.Bind(body[:n]) == nil || b.bound() || !b.Remote() {
				t.Fatalf("%s, %d bytes of %d are accepted", host.PublicKey().Type(), n, len(body))
			}
		}
	}
}

func TestBindOrder(t *testing.T) {
	t.Parallel()
	body := func(host ssh.Signer, id string, forwarding bool) []byte {
		return sshtest.BindBody(host, id, forwarding)
	}
	tests := map[string]struct {
		before [][]byte
		then   []byte
		want   string // "" for success
		n      int    // bindings in the end
	}{
		"twice":                       {[][]byte{body(sshtest.HostA(), "1", true)}, body(sshtest.HostA(), "1", true), "", 1},
		"twice, the second to log in": {[][]byte{body(sshtest.HostA(), "1", true)}, body(sshtest.HostA(), "1", false), "", 1},
		"other id, same host":         {[][]byte{body(sshtest.HostA(), "1", true)}, body(sshtest.HostA(), "2", true), "", 2},
		"same id, other host":         {[][]byte{body(sshtest.HostA(), "1", true)}, body(sshtest.HostB(), "1", true), "another host key", 1},
		"behind a login":              {[][]byte{body(sshtest.HostA(), "1", false)}, body(sshtest.HostB(), "2", false), "already bound", 1},
		"a login twice":               {[][]byte{body(sshtest.HostA(), "1", false)}, body(sshtest.HostA(), "1", false), "already bound", 1},
		"a forwarding again behind a login": {
			[][]byte{body(sshtest.HostA(), "1", true), body(sshtest.HostB(), "2", false)}, body(sshtest.HostA(), "1", true), "", 2,
		},
		"a login again behind a forwarding": {
			[][]byte{body(sshtest.HostA(), "1", true), body(sshtest.HostB(), "2", false)}, body(sshtest.HostB(), "2", false), "already bound", 2,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := boundTo(t, tt.before...)
			err := b.Bind(tt.then)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if len(b.hops) != tt.n || !b.Remote() {
				t.Errorf("%d bindings, want %d", len(b.hops), tt.n)
			}
		})
	}
}

func TestBindLimit(t *testing.T) {
	t.Parallel()
	var b Bindings
	for i := range maxBindings {
		if err := b.Bind(sshtest.BindBody(sshtest.HostA(), fmt.Sprint(i), true)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Bind(sshtest.BindBody(sshtest.HostA(), "one more", true)); err == nil || len(b.hops) != maxBindings {
		t.Errorf("got %v and %d bindings", err, len(b.hops))
	}
	if err := b.Bind(sshtest.BindBody(sshtest.HostA(), "3", true)); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestWireCertificate has certificates that x/crypto parses and OpenSSH refuses,
// and an unusual encoding that both accept.
func TestWireCertificate(t *testing.T) {
	t.Parallel()
	many := make([]string, 257)
	made := func(ca ssh.Signer, change func(*ssh.Certificate)) []byte {
		return sshtest.Certify(sshtest.HostA(), ca, []string{"a"}, change).PublicKey().Marshal()
	}
	tests := map[string]struct {
		blob []byte
		want string
	}{
		"good":            {made(sshtest.HostCA(), nil), ""},
		"from ecdsa":      {made(sshtest.HostB(), nil), ""},
		"from rsa":        {made(sshtest.HostC(), nil), ""},
		"unknown type":    {made(sshtest.HostCA(), func(c *ssh.Certificate) { c.CertType = 3 }), "unknown type 3"},
		"256 principals":  {made(sshtest.HostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = many[1:] }), ""},
		"257 principals":  {made(sshtest.HostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = many }), "257 principals"},
		"NUL behind name": {made(sshtest.HostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a\x00"} }), ""},
		"NUL inside name": {made(sshtest.HostCA(), func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a\x00b"} }), "NUL"},
		"NUL in id":       {made(sshtest.HostCA(), func(c *ssh.Certificate) { c.KeyId = "\x00b" }), "NUL"},
		"short authority": {shortAuthority(), "512 bits"},
		"false signature": {flipped(made(sshtest.HostCA(), nil)), "false signature"},
		"empty option":    {emptyOption(), ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := sshkey.Parse(tt.blob)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// shortAuthority returns a certificate from an authority with a short RSA key,
// whose signature is therefore never verified.
func shortAuthority() []byte {
	cert := *sshtest.Certify(sshtest.HostA(), sshtest.HostC(), []string{"a"}, nil).PublicKey().(*ssh.Certificate)
	cert.SignatureKey = sshtest.Must(ssh.ParsePublicKey(rsaBlob(512, 3)))
	return cert.Marshal()
}

// emptyOption returns a certificate with an option whose value is an empty string
// inside its string, which x/crypto cannot encode.
func emptyOption() []byte {
	var blob []byte
	cert := sshtest.Certify(sshtest.HostA(), sshtest.HostCA(), []string{"a"}, func(c *ssh.Certificate) {
		c.Extensions = map[string]string{"x@example.org": "\x00\x00\x00\x00"}
	}).PublicKey().(*ssh.Certificate)
	blob = cert.Marshal()
	from := ssh.Marshal(struct{ K, V string }{"x@example.org", string(ssh.Marshal(struct{ S string }{"\x00\x00\x00\x00"}))})
	to := ssh.Marshal(struct{ K, V string }{"x@example.org", "\x00\x00\x00\x00"})
	blob = bytes.Replace(blob, ssh.Marshal(struct{ S []byte }{from}), ssh.Marshal(struct{ S []byte }{to}), 1)
	blob = blob[:len(blob)-wire.LengthSize-len(ssh.Marshal(cert.Signature))]
	return append(blob, ssh.Marshal(struct{ S []byte }{sshtest.SignedBy(sshtest.HostCA(), blob)})...)
}

// FuzzBind checks that only what verifies is recorded, and that a refusal is not
// forgotten.
func FuzzBind(f *testing.F) {
	for _, host := range []ssh.Signer{sshtest.HostA(), sshtest.HostB(), sshtest.HostC(), sshtest.Certify(sshtest.HostA(), sshtest.HostCA(), []string{"a"}, nil)} {
		f.Add(sshtest.BindBody(host, "id", false))
		f.Add(sshtest.BindBody(host, "other", true))
	}
	f.Add(ssh.Marshal(bindRequest{Host: rsaBlob(16384, 1<<24-1), Signature: make([]byte, 100)}))
	f.Fuzz(func(t *testing.T, body []byte) {
		var b Bindings
		err := b.Bind(body)
		if !b.Remote() || b.bound() != (err == nil) {
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
		if err := b.Bind(body); (err == nil) != m.Forwarding {
			t.Fatalf("again: %v", err)
		}
	})
}
