package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/agent"
)

// blob puts strings behind each other as SSH does.
func blob(fields ...string) (b []byte) {
	for _, f := range fields {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

func TestKindOfBlob(t *testing.T) {
	signer := func(key any) ssh.PublicKey { return must(ssh.NewSignerFromKey(key)).PublicKey() }
	ed := signer(must(ed25519.NewKeyFromSeed(make([]byte, 32)), nil))
	ec := signer(must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)))
	cert := &ssh.Certificate{Key: ec}
	ca := must(ssh.NewSignerFromKey(must(rsa.GenerateKey(rand.Reader, 2048))))
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		blob []byte
		want kind
	}{
		{ed.Marshal(), kind{"ed25519", 256}},
		{ec.Marshal(), kind{"ecdsa", 521}},
		{ca.PublicKey().Marshal(), kind{"rsa", 2048}},
		{cert.Marshal(), kind{"ecdsa-cert", 521}},
		{blob("sk-ssh-ed25519@openssh.com", string(make([]byte, 32)), "ssh:"), kind{"ed25519-sk", 256}},
		{blob("ssh-mldsa44@example.com", "x"), kind{"ssh-mldsa44@example.com", 0}},
		{blob("bad\x1b[31m\u202eone"), kind{"bad[31mone", 0}},
		{[]byte{0, 0, 0, 9, 'x'}, kind{}},
		{[]byte{255, 255, 255, 255, 'x'}, kind{}},
		{nil, kind{}},
	} {
		if got := kindOfBlob(test.blob); got != test.want {
			t.Errorf("%q: %v, not %v", test.blob, got, test.want)
		}
	}
	if fingerprintOf(&sshagent.Key{Blob: cert.Marshal()}) != ssh.FingerprintSHA256(ec) {
		t.Error("a certificate has another fingerprint than its key")
	}
}

func TestOfferWords(t *testing.T) {
	for want, h := range map[string]*agent.Held{
		"offered": {},
		"offered, for 0 seconds, confirm, to a b>u@c, PIN remembered for 15 minutes": {
			Mortal: true, Confirm: true, Destinations: []string{"a", "b>u@\u202ec"}, PIN: 15 * time.Minute,
		},
		"offered, to 4 destinations, PIN remembered": {Destinations: []string{"a", "b", "c", "d"}, PIN: agent.Forever},
	} {
		if got := newOffer(h).words(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	if got := new(offer).words(); got != "not offered" {
		t.Error(got)
	}
}
