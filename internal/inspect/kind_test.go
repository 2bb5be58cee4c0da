package inspect

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"testing"

	"golang.org/x/crypto/ssh"
)

// blob puts strings behind each other as SSH does.
func blob(fields ...string) (b []byte) {
	for _, f := range fields {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

func TestKindOfBlob(t *testing.T) {
	t.Parallel()
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
		want Kind
	}{
		{ed.Marshal(), Kind{"ed25519", 256}},
		{ec.Marshal(), Kind{"ecdsa", 521}},
		{ca.PublicKey().Marshal(), Kind{"rsa", 2048}},
		{cert.Marshal(), Kind{"ecdsa-cert", 521}},
		{blob("sk-ssh-ed25519@openssh.com", string(make([]byte, 32)), "ssh:"), Kind{"ed25519-sk", 256}},
		{blob("ssh-mldsa44@example.com", "x"), Kind{"ssh-mldsa44@example.com", 0}},
		{blob("bad\x1b[31m\u202eone"), Kind{"bad[31mone", 0}},
		{[]byte{0, 0, 0, 9, 'x'}, Kind{}},
		{[]byte{255, 255, 255, 255, 'x'}, Kind{}},
		{nil, Kind{}},
	} {
		if got := KindOfBlob(test.blob); got != test.want {
			t.Errorf("%q: %v, not %v", test.blob, got, test.want)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
