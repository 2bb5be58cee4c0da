package tpmkey_test

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// liar is a TPM that answers with arbitrary octets in correct frames.
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

// FuzzAnswers lets a TPM answer anything when keys are used for the first and second
// time, created or imported, and when its capabilities are read. The result must be
// an error or a correct signature.
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
	bound := boundFile(f, files[0])
	files = append(files, bound)
	pcrs, err := bound.Policy[0].PCRs(32)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(len(files)-1), []byte{})
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{1, 0, 0, 4, 0x80, 0, 0, 0, 2, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, which uint8, octets []byte) {
		tpm := tpmkey.New(func(context.Context) (tpmkey.Conn, error) { return &liar{octets}, nil })
		defer tpm.Close()
		// Retries would take too long.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
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
			t.Error("a different key was imported")
		}
		if out, err := tpm.Import(ctx, file); err == nil && !samePublic(out.Public.Key, file.Public.Key) {
			t.Error("a different key was imported")
		}
		_, _, _ = tpm.StorageKey(ctx, 0x81000001)
		_, _ = tpm.Create(ctx, tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: []byte("1234")})
		_, _ = tpm.Create(ctx, tpmkey.Template{Algorithm: tpmkey.ECDSAP256, PCRs: []int{7, 11}})
		_ = tpm.CheckPCRs(ctx, bound.Public.NameAlg, pcrs)
	})
}

// boundFile returns a copy of a key file with a policy, PolicyPCR and
// PolicyAuthValue. No TPM would load it.
func boundFile(t testing.TB, file *keyfile.TPMKey) *keyfile.TPMKey {
	t.Helper()
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](file.Pubkey[2:])
	if err != nil {
		t.Fatal(err)
	}
	pcr := keyfile.PCRSelection{Hash: uint16(tpm2.TPMAlgSHA256), PCRs: []int{7}}.Policy(make([]byte, 32))
	first := sha256.Sum256(slices.Concat(make([]byte, 32), []byte{0, 0, 1, 0x7f}, pcr.CommandPolicy))
	second := sha256.Sum256(slices.Concat(first[:], []byte{0, 0, 1, 0x6b}))
	area.ObjectAttributes.UserWithAuth = false
	area.AuthPolicy.Buffer = second[:]
	bound, err := keyfile.NewLoadable(tpm2.Marshal(tpm2.New2B(*area)), file.Privkey, keyfile.ParentOwner, false)
	if err != nil {
		t.Fatal(err)
	}
	bound.Policy = []keyfile.Policy{pcr, {CommandCode: uint32(tpm2.TPMCCPolicyAuthValue)}}
	if _, err := tpmkey.New[tpmkey.Conn](nil).Key(bound); err != nil {
		t.Fatal(err)
	}
	return bound
}
