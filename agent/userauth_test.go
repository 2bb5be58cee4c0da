package agent

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// userauthCase is a login that was changed; tables of it are put to OpenSSH's
// agent too.
type userauthCase struct {
	change func(*signedUserauth)
	want   string // "" if it is a login
}

func userauthCases() map[string]userauthCase {
	host := func(blob []byte) func(*signedUserauth) {
		return func(m *signedUserauth) { m.Rest = ssh.Marshal(wireString{S: blob}) }
	}
	other := publicOf(p384())
	return map[string]userauthCase{
		"as it is":              {func(*signedUserauth) {}, ""},
		"no session identifier": {func(m *signedUserauth) { m.SessionID = nil }, "not the data"},
		"other number":          {func(m *signedUserauth) { m.Number = 51 }, "not the data"},
		"no signature":          {func(m *signedUserauth) { m.HasSig = 0 }, "not the data"},
		"signature of 2":        {func(m *signedUserauth) { m.HasSig = 2 }, "not the data"},
		"other service":         {func(m *signedUserauth) { m.Service = "ssh-userauth" }, "service"},
		"service with NUL":      {func(m *signedUserauth) { m.Service += "\x00" }, ""},
		"service, two NULs":     {func(m *signedUserauth) { m.Service += "\x00\x00" }, "NUL"},
		"user with NUL":         {func(m *signedUserauth) { m.User += "\x00" }, ""},
		"user with NUL inside":  {func(m *signedUserauth) { m.User = "\x00" + m.User }, "NUL"},
		"other method":          {func(m *signedUserauth) { m.Method = "hostbased" }, `method "hostbased"`},
		"method with NUL":       {func(m *signedUserauth) { m.Method += "\x00" }, ""},
		"plain with host key":   {func(m *signedUserauth) { m.Method = methodPublicKey }, "behind it"},
		"plain":                 {func(m *signedUserauth) { m.Method, m.Rest = methodPublicKey, nil }, ""},
		"host key missing":      {func(m *signedUserauth) { m.Rest = nil }, "ssh: "},
		"host key empty":        {host(nil), "host key"},
		"host key damaged":      {host(hostA().PublicKey().Marshal()[1:]), "host key"},
		"host key unknown":      {host(ssh.Marshal(wireString{S: []byte("x")})), `type "x"`},
		"junk at the end":       {func(m *signedUserauth) { m.Rest = append(m.Rest, 0) }, "1 bytes behind"},
		"other key":             {func(m *signedUserauth) { m.Key = other.Marshal() }, "another key"},
		"damaged key":           {func(m *signedUserauth) { m.Key = m.Key[1:] }, "key: "},
		"other curve":           {func(m *signedUserauth) { m.Algorithm = ssh.KeyAlgoECDSA384 }, ""},
		"algorithm with NUL":    {func(m *signedUserauth) { m.Algorithm += "\x00" }, ""},
		"algorithm of rsa":      {func(m *signedUserauth) { m.Algorithm = ssh.KeyAlgoRSASHA256 }, "algorithm"},
		"algorithm of fido":     {func(m *signedUserauth) { m.Algorithm = ssh.KeyAlgoSKECDSA256 }, "algorithm"},
		"of a certificate":      {func(m *signedUserauth) { m.Algorithm = ssh.CertAlgoECDSA256v01 }, "algorithm"},
		"unknown algorithm":     {func(m *signedUserauth) { m.Algorithm = "x" }, "algorithm"},
	}
}

func TestParseUserauth(t *testing.T) {
	key := publicOf(p256())
	for name, tt := range userauthCases() {
		t.Run(name, func(t *testing.T) {
			m := userauth(key, "id", "user", hostA().PublicKey())
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

// TestUserauthAlgorithms: each type of key and the names that fit it.
func TestUserauthAlgorithms(t *testing.T) {
	ecdsaCert := certified(plain("k", p256()), 0, ssh.CertTimeInfinity).Public
	rsaCert := certified(plain("k", rsa2k()), 0, ssh.CertTimeInfinity).Public
	fit := map[string][]string{
		ssh.KeyAlgoRSA:          {ssh.KeyAlgoRSA, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512},
		ssh.CertAlgoRSAv01:      {ssh.CertAlgoRSAv01, ssh.CertAlgoRSASHA256v01, ssh.CertAlgoRSASHA512v01},
		ssh.KeyAlgoECDSA521:     {ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
		ssh.CertAlgoECDSA256v01: {ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01},
		ssh.KeyAlgoED25519:      {ssh.KeyAlgoED25519},
	}
	for _, key := range []ssh.PublicKey{publicOf(rsa2k()), rsaCert, publicOf(p521()), ecdsaCert, hostA().PublicKey()} {
		for name := range algorithmTypes {
			m := userauth(key, "id", "user", nil)
			m.Algorithm = name
			_, err := parseUserauth(ssh.Marshal(m), key)
			if want := slices.Contains(fit[key.Type()], name); (err == nil) != want {
				t.Errorf("%s for %s: %v", name, key.Type(), err)
			}
		}
	}
}

func TestUserauthTruncated(t *testing.T) {
	key := publicOf(p256())
	data := login(key, "id", "user", hostA().PublicKey())
	for n := range data {
		if _, err := parseUserauth(data[:n], key); err == nil {
			t.Fatalf("%d bytes of %d were taken", n, len(data))
		}
	}
}

// FuzzUserauth: what is taken for a login is one with this key, made again it
// is the same.
func FuzzUserauth(f *testing.F) {
	key := fixedHost().PublicKey()
	for _, c := range userauthCases() {
		m := userauth(key, "id", "user", hostA().PublicKey())
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
			t.Fatalf("took %+v", r)
		}
		var m signedUserauth
		if err := ssh.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		made := userauth(key, string(r.sessionID), m.User, r.hostKey)
		made.Service, made.Method, made.Algorithm = m.Service, m.Method, m.Algorithm
		if r.hostKey != nil {
			return // of which there may be two forms: an mpint with zeros in front
		}
		if !bytes.Equal(ssh.Marshal(made), data) {
			t.Fatalf("%x became %x", data, ssh.Marshal(made))
		}
	})
}
