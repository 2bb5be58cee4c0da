package keydir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// TestReadEntry compares ReadEntry with an Index of the directory.
func TestReadEntry(t *testing.T) {
	t.Parallel()
	key, other, ca := newKey(t), newKey(t), newCA(t)
	private := "-----BEGIN OPENSSH PRIVATE KEY-----\n"
	for name, files := range map[string]map[string]string{
		"alone":              {"k.tpm": string(key.pem)},
		"public key":         {"k.tpm": string(key.pem), "k.pub": key.line("of k")},
		"both public keys":   {"k.tpm": string(key.pem), "k.pub": key.line("first"), "k.tpm.pub": key.line("second")},
		"long name":          {"k.tpm": string(key.pem), "k.tpm.pub": key.line("of k.tpm")},
		"of another":         {"k.tpm": string(key.pem), "k.pub": other.line("not of k")},
		"of a private key":   {"k.tpm": string(key.pem), "k.pub": other.line("not of k"), "k": private, "k-cert.pub": other.certificate(t, ca, 1)},
		"certificates":       {"k.tpm": string(key.pem), "k-cert.pub": key.certificate(t, ca, 1), "k.tpm-cert.pub": key.certificate(t, ca, 2)},
		"other certificate":  {"k.tpm": string(key.pem), "k-cert.pub": other.certificate(t, ca, 1)},
		"broken certificate": {"k.tpm": string(key.pem), "k-cert.pub": "ssh-rsa-cert-v01@openssh.com AAAA\n"},
		"a neighbour":        {"k.tpm": string(key.pem), "l.pub": other.line("neighbour"), "l-cert.pub": other.certificate(t, ca, 3)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			x, err := Open([]string{dir}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			wantProblems := x.Problems()
			want := x.Entries()[0]
			got, problems, err := ReadEntry(filepath.Join(dir, "k.tpm"))
			if err != nil {
				t.Fatal(err)
			}
			if got.Path != want.Path || got.Comment != want.Comment || len(got.Certificates) != len(want.Certificates) {
				t.Errorf("%+v, want %+v", got, want)
			}
			if len(problems) != len(wantProblems) {
				t.Fatalf("%v, want %v", problems, wantProblems)
			}
			for i, p := range problems {
				if p.String() != wantProblems[i].String() {
					t.Errorf("%v, want %v", p, wantProblems[i])
				}
			}
		})
	}
}

func TestReadEntryFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "none.tpm"): os.ErrNotExist,
		text:                           keyfile.ErrNoKey,
		dir:                            keyfile.ErrNotRegular,
	} {
		if _, _, err := ReadEntry(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}
