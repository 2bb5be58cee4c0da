package tpmkey_test

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"encoding/binary"
	"path/filepath"
	"testing"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// liar is a TPM that answers with octets that were made up: right frames around
// anything.
type liar struct{ octets []byte }

func (l *liar) Close() error  { return nil }
func (l *liar) Managed() bool { return false }

// Send takes the next answer from the octets: tag, response code and length of
// the body are made up, too; only the size in the header is right.
func (l *liar) Send(context.Context, []byte) ([]byte, error) {
	take := func(n int) []byte {
		n = min(n, len(l.octets))
		b := l.octets[:n]
		l.octets = l.octets[n:]
		return b
	}
	head := append(take(4), 0, 0, 0, 0) // tag, code, length of the body
	body := take(int(head[2])<<8&0x300 | int(head[3]))
	answer := binary.BigEndian.AppendUint16(nil, 0x8000|uint16(head[0]&3))
	answer = binary.BigEndian.AppendUint32(answer, uint32(10+len(body)))
	answer = binary.BigEndian.AppendUint32(answer, uint32(head[1]))
	return append(answer, body...), nil
}

// FuzzAnswers lets a TPM answer anything at the first and second use of keys,
// while a key is made or imported, and when it is asked what it is. Nothing but
// an error, or a right signature, may come of it.
func FuzzAnswers(f *testing.F) {
	var files []*keyfile.TPMKey
	paths, err := filepath.Glob("../keyfile/testdata/*.tpm")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		if file, err := keyfile.ReadFile(path); err == nil {
			files = append(files, file)
		}
	}
	if len(files) < 3 {
		f.Fatalf("%d key files to use", len(files))
	}
	private := newECDSA(f, elliptic.P256())
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{1, 0, 0, 4, 0x80, 0, 0, 0, 2, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, which uint8, octets []byte) {
		tpm := tpmkey.New(func(context.Context) (tpmkey.Conn, error) { return &liar{octets}, nil })
		defer tpm.Close()
		// The retries of what passes would wait; nobody has the time.
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		file := files[int(which)%len(files)]
		key, err := tpm.Key(file)
		if err != nil {
			return
		}
		for _, pin := range []string{"", "1234"} {
			sig, err := key.Sign(ctx, []byte(pin), digest(crypto.SHA256), crypto.SHA256)
			if err == nil && !verifies(key.Public(), crypto.SHA256, sig) {
				t.Error("a wrong signature got out")
			}
		}
		_, _ = tpm.Capabilities(ctx)
		if out, err := tpm.ImportPrivate(ctx, private, tpmkey.WrapOptions{}); err == nil && !samePublic(out.Public.Key, &private.PublicKey) {
			t.Error("another key was imported")
		}
		if out, err := tpm.Import(ctx, file); err == nil && !samePublic(out.Public.Key, file.Public.Key) {
			t.Error("another key was imported")
		}
		_, _, _ = tpm.StorageKey(ctx, 0x81000001)
		_, _ = tpm.Create(ctx, tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: []byte("1234")})
	})
}
