package keydir

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// A testKey is a key file with a valid public part and a private part of zeros.
type testKey struct {
	pem    []byte
	public ssh.PublicKey
}

func newKey(t testing.TB) testKey {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := priv.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(&priv.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	k, err := keyfile.NewLoadable(eccArea(point), sized(make([]byte, 126)), keyfile.ParentOwner, true)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return testKey{pem, public}
}

// eccArea is a TPM2B_PUBLIC of a P-256 signing key.
func eccArea(point []byte) []byte {
	var b []byte
	for _, v := range []uint16{0x0023, 0x000b, 0x0004, 0x0472, 0, 0x0010, 0x0010, 0x0003, 0x0010} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	b = append(b, sized(point[1:33])...)
	return sized(append(b, sized(point[33:])...))
}

func sized(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// line returns the content of the key's .pub file.
func (k testKey) line(comment string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.public))) + " " + comment + "\n"
}

func newCA(t testing.TB) ssh.Signer {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// certificate returns the content of the key's -cert.pub file.
func (k testKey) certificate(t testing.TB, ca ssh.Signer, serial uint64) string {
	t.Helper()
	cert := &ssh.Certificate{Key: k.public, Serial: serial, CertType: ssh.UserCert, ValidPrincipals: []string{"me"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(cert))
}

// pemBlock wraps der in PEM.
func pemBlock(kind string, der []byte) []byte {
	return fmt.Appendf(nil, "-----BEGIN %s-----\n%s\n-----END %s-----\n", kind, base64.StdEncoding.EncodeToString(der), kind)
}
