package restrict

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/sshkey"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// A userauthCase is a login that was changed. The cases are tried on OpenSSH's
// agent, too.
type userauthCase struct {
	change func(*sshtest.UserauthData)
	want   string // the error; "" if it is a login
}

func userauthCases() map[string]userauthCase {
	host := func(blob []byte) func(*sshtest.UserauthData) {
		return func(m *sshtest.UserauthData) { m.Rest = wire.AppendString(nil, blob) }
	}
	other := sshtest.PublicOf(sshtest.P384())
	return map[string]userauthCase{
		"as it is":              {func(*sshtest.UserauthData) {}, ""},
		"no session identifier": {func(m *sshtest.UserauthData) { m.SessionID = nil }, "not the data"},
		"other number":          {func(m *sshtest.UserauthData) { m.Number = 51 }, "not the data"},
		"no signature":          {func(m *sshtest.UserauthData) { m.HasSig = 0 }, "not the data"},
		"signature of 2":        {func(m *sshtest.UserauthData) { m.HasSig = 2 }, "not the data"},
		"other service":         {func(m *sshtest.UserauthData) { m.Service = "ssh-userauth" }, "service"},
		"service with NUL":      {func(m *sshtest.UserauthData) { m.Service += "\x00" }, ""},
		"service, two NULs":     {func(m *sshtest.UserauthData) { m.Service += "\x00\x00" }, "NUL"},
		"user with NUL":         {func(m *sshtest.UserauthData) { m.User += "\x00" }, ""},
		"user with NUL inside":  {func(m *sshtest.UserauthData) { m.User = "\x00" + m.User }, "NUL"},
		"other method":          {func(m *sshtest.UserauthData) { m.Method = "hostbased" }, `method "hostbased"`},
		"method with NUL":       {func(m *sshtest.UserauthData) { m.Method += "\x00" }, ""},
		"plain with host key":   {func(m *sshtest.UserauthData) { m.Method = methodPublicKey }, "behind its last field"},
		"plain":                 {func(m *sshtest.UserauthData) { m.Method, m.Rest = methodPublicKey, nil }, ""},
		"host key missing":      {func(m *sshtest.UserauthData) { m.Rest = nil }, "ends inside"},
		"host key empty":        {host(nil), "host key"},
		"host key damaged":      {host(sshtest.HostA().PublicKey().Marshal()[1:]), "host key"},
		"host key unknown":      {host(wire.AppendString(nil, []byte("x"))), `type "x"`},
		"junk at the end":       {func(m *sshtest.UserauthData) { m.Rest = append(m.Rest, 0) }, "behind its last field"},
		"other key":             {func(m *sshtest.UserauthData) { m.Key = other.Marshal() }, "another key"},
		"damaged key":           {func(m *sshtest.UserauthData) { m.Key = m.Key[1:] }, "key: "},
		"other curve":           {func(m *sshtest.UserauthData) { m.Algorithm = ssh.KeyAlgoECDSA384 }, ""},
		"algorithm with NUL":    {func(m *sshtest.UserauthData) { m.Algorithm += "\x00" }, ""},
		"algorithm of rsa":      {func(m *sshtest.UserauthData) { m.Algorithm = ssh.KeyAlgoRSASHA256 }, "algorithm"},
		"algorithm of fido":     {func(m *sshtest.UserauthData) { m.Algorithm = ssh.KeyAlgoSKECDSA256 }, "algorithm"},
		"of a certificate":      {func(m *sshtest.UserauthData) { m.Algorithm = ssh.CertAlgoECDSA256v01 }, "algorithm"},
		"unknown algorithm":     {func(m *sshtest.UserauthData) { m.Algorithm = "x" }, "algorithm"},
	}
}

func TestParseUserauth(t *testing.T) {
	t.Parallel()
	key := sshtest.PublicOf(sshtest.P256())
	for name, tt := range userauthCases() {
		t.Run(name, func(t *testing.T) {
			m := sshtest.Userauth(key, "id", "user", sshtest.HostA().PublicKey())
			tt.change(&m)
			r, err := parseUserauth(ssh.Marshal(m), key)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if err == nil && (string(r.sessionID) != "id" || r.user != "user" || !strings.HasPrefix(m.Method, r.method)) {
				t.Errorf("got %+v", r)
			}
			if err == nil && (r.hostKey != nil) != (r.method == methodHostBound) {
				t.Errorf("host key %v", r.hostKey)
			}
		})
	}
}

// TestUserauthAlgorithms tries all algorithms with each type of key.
func TestUserauthAlgorithms(t *testing.T) {
	t.Parallel()
	ecdsaCert := ssh.PublicKey(sshtest.CertFor(sshtest.P256()))
	rsaCert := ssh.PublicKey(sshtest.CertFor(sshtest.RSA2048()))
	fit := map[string][]string{
		ssh.KeyAlgoRSA:          {ssh.KeyAlgoRSA, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512},
		ssh.CertAlgoRSAv01:      {ssh.CertAlgoRSAv01, ssh.CertAlgoRSASHA256v01, ssh.CertAlgoRSASHA512v01},
		ssh.KeyAlgoECDSA521:     {ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
		ssh.CertAlgoECDSA256v01: {ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01},
		ssh.KeyAlgoED25519:      {ssh.KeyAlgoED25519},
	}
	for _, key := range []ssh.PublicKey{sshtest.PublicOf(sshtest.RSA2048()), rsaCert, sshtest.PublicOf(sshtest.P521()), ecdsaCert, sshtest.HostA().PublicKey()} {
		for name := range sshkey.AlgorithmTypes {
			m := sshtest.Userauth(key, "id", "user", nil)
			m.Algorithm = name
			_, err := parseUserauth(ssh.Marshal(m), key)
			if want := slices.Contains(fit[key.Type()], name); (err == nil) != want {
				t.Errorf("%s for %s: %v", name, key.Type(), err)
			}
		}
	}
}

func TestUserauthTruncated(t *testing.T) {
	t.Parallel()
	key := sshtest.PublicOf(sshtest.P256())
	data := sshtest.Login(key, "id", "user", sshtest.HostA().PublicKey())
	for n := range data {
		if _, err := parseUserauth(data[:n], key); err == nil {
			t.Fatalf("%d bytes of %d are accepted", n, len(data))
		}
	}
}

// FuzzUserauth checks that accepted data are a login with this key, and that the
// same fields encode to the same data.
func FuzzUserauth(f *testing.F) {
	key := sshtest.FixedHost().PublicKey()
	for _, c := range userauthCases() {
		m := sshtest.Userauth(key, "id", "user", sshtest.HostA().PublicKey())
		c.change(&m)
		f.Add(ssh.Marshal(m))
	}
	f.Add([]byte("SSHSIG\x00\x00\x00\x04file"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseUserauth(data, key)
		if err != nil {
			return
		}
		if !bytes.Contains(data, key.Marshal()) || len(r.sessionID) == 0 || strings.Contains(r.user, "\x00") {
			t.Fatalf("accepted %+v", r)
		}
		var m sshtest.UserauthData
		if err := ssh.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		made := sshtest.Userauth(key, string(r.sessionID), m.User, r.hostKey)
		made.Service, made.Method, made.Algorithm = m.Service, m.Method, m.Algorithm
		if r.hostKey != nil {
			return // its encoding may differ: an mpint with leading zeros
		}
		if !bytes.Equal(ssh.Marshal(made), data) {
			t.Fatalf("%x became %x", data, ssh.Marshal(made))
		}
	})
}
